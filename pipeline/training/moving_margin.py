"""Margin that moves during training: labels begin too low or too high, and have their own values from halfway on.

With a rising flood level, training begins as plain cross-entropy, and losses are kept up later, when the model could
memorise. With a falling level, the model at first learns only tokens with losses far above their entropies.

Shapes: B rows, T tokens.
"""

from dataclasses import dataclass, replace

from pipeline.training.batches import Batch

ARRIVAL = 0.5
"""Share of the training after which labels have their own values."""


@dataclass(frozen=True, kw_only=True)
class MovingMargin:
    """Nats that are added to all labels: `first` at the first batch, changing linearly to 0 halfway."""

    first: float
    """Nats to add at the first batch; below 0 for labels that rise."""
    steps: int
    """Number of batches of the training."""

    def at(self, step: int) -> float:
        """Return the nats to add at a step, counted from 0."""
        return self.first * max(0.0, 1 - step / (ARRIVAL * self.steps))

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Return the batch with the labels of a step."""
        assert batch.labels_BT is not None
        return replace(batch, labels_BT=batch.labels_BT + self.at(step))
