"""Token dropout by entropy: the model reads fewer and fewer of the tokens that are easy to predict.

The method follows EntroDrop (arXiv 2512.23422). A random share of the tokens with the lowest labels is hidden from the
model, which reads the start token instead of each of them. The share rises during training along a sigmoid. All tokens
are still predicted.

Shapes: B rows, T tokens.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.training.batches import Batch

STEEPNESS = 10.0


@dataclass(frozen=True, kw_only=True)
class TokenDropout:
    """Rule that selects, at each step, the tokens that are hidden from the model.

    Raises:
        ValueError: if `most` is 0 or less, or above 1.
    """

    threshold: float
    """Label in nats below which a token may be hidden. Tokens without a label are always read."""
    most: float
    """Largest share of hidden tokens among the tokens with labels below `threshold`, reached at the end of training."""
    steps: int
    """Number of batches of the training. The share of hidden tokens rises from about 0 at the first batch to about
    `most` at the last batch. Halfway, the share is half of `most`."""
    hidden: int
    """Id of the token that the model reads instead of a hidden one."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.most <= 1:
            raise ValueError(f"the share of hidden tokens must be above 0 and at most 1, not {self.most}")

    def share_at(self, step: int) -> float:
        """Return the share of hidden tokens among tokens with labels below `threshold`. Steps are counted from 0."""
        return self.most / (1 + math.exp(-STEEPNESS * (step / self.steps - 0.5)))

    def __call__(self, batch: Batch, step: int) -> Batch:
        """Return the batch as the model reads it at a step. The same step always hides the same tokens."""
        assert batch.labels_BT is not None
        random = np.random.default_rng([self.seed, step])
        drawn_BT: Tensor = torch.from_numpy(random.random(tuple(batch.input_ids_BT.shape)))
        hidden_BT = (batch.labels_BT < self.threshold) & (drawn_BT < self.share_at(step))
        return replace(batch, read_ids_BT=batch.input_ids_BT.masked_fill(hidden_BT, self.hidden))
