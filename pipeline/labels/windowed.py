"""Labels of texts longer than a model's context, made in overlapping windows as the annotation job makes them.

B rows, T tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.data.windows import Window, cover


def over_windows(of_window: Callable[[Window], Tensor], tokens: int, context: int | None) -> Tensor:
    """Return values [..., B, T] of texts, each token's from the first window that holds it.

    Args:
        of_window: function that returns the values of a window's tokens, from `start` to `stop`; values before
            `label_from` are dropped.
        tokens: length T of the texts, padding included.
        context: window length, half of which is shared with the next window; None for a model without a limit.
    """
    if context is None or tokens <= context:
        return of_window(Window(0, 0, tokens, 0))
    windows = cover(0, tokens, window=context, overlap=context // 2)
    return torch.cat([of_window(window)[..., window.label_from - window.start :] for window in windows], dim=-1)
