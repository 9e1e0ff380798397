"""Labels of texts longer than a model's context, from overlapping windows like those of `pipeline.annotate`.

B rows, T tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.data.windows import Window, cover


def over_windows(of_window: Callable[[Window], Tensor], tokens: int, context: int | None) -> Tensor:
    """Return the values [..., B, T] of texts. A token's value is from the first window that contains the token.

    Args:
        of_window: function that returns the values of a window's tokens from `start` to `stop`. Values before the
            window's `label_from` are dropped.
        tokens: length T of the texts, padding included.
        context: length of a window, which shares half of its tokens with the next window. None for a model without a
            limit.
    """
    if context is None or tokens <= context:
        return of_window(Window(0, 0, tokens, 0))
    windows = cover(0, tokens, window=context, overlap=context // 2)
    return torch.cat([of_window(window)[..., window.label_from - window.start :] for window in windows], dim=-1)
