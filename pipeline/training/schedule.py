"""The learning rate's course."""

import math
from typing import Literal

Decay = Literal["cosine", "linear"]


def learning_rate_share(progress: float, warmup: float, decay: Decay) -> float:
    """Share of the peak rate at a share of the training: linear up to `warmup`, then by the decay to zero."""
    if progress < warmup:
        return progress / warmup
    done = (progress - warmup) / (1 - warmup)
    return 1 - done if decay == "linear" else 0.5 + 0.5 * math.cos(math.pi * done)
