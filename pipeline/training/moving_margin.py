"""Margin that changes during training: nats are added to all labels at first, and nothing from halfway on.

If the margin starts below 0, the flood level rises. Training then begins as plain cross-entropy. Later, when the model
could memorise, the flood level keeps the losses from falling further. If the margin starts above 0, the flood level
falls. The model then at first learns only tokens with losses far above their entropies.

Shapes: B rows, T tokens.
"""

from dataclasses import dataclass, replace

from pipeline.training.batches import Batch

ARRIVAL = 0.5
"""Share of the training's batches after which nothing is added to the labels."""


@dataclass(frozen=True, kw_only=True)
class MovingMargin:
    """Nats that are added to all labels. They change linearly from `first` at the first batch to 0 halfway."""

    first: float
    """Nats that are added to all labels in the first batch. A negative number makes labels begin too low and rise."""
    steps: int
    """Number of batches of the training."""

    def at(self, step: int) -> float:
        """Return the nats to add to all labels at a step. Steps are counted from 0."""
        return self.first * max(0.0, 1 - step / (ARRIVAL * self.steps))

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Return the batch with the nats of a step added to its labels."""
        assert batch.labels_BT is not None
        return replace(batch, labels_BT=batch.labels_BT + self.at(step))
