"""Texts longer than a model's context, labelled in overlapping windows as the main job labels them.

B rows, T tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.data.windows import Window, cover


def over_windows(of_window: Callable[[Window], Tensor], tokens: int, context: int | None) -> Tensor:
    """Values [..., B, T] of texts of `tokens` tokens, each token's from the first window that holds it.

    Args:
        of_window: values of all tokens of a window, from its `start` to its `stop`; those before `label_from` are
            left out.
        tokens: length of the texts, padding included.
        context: most tokens of a window, which shares half of them with the next; None where a model has no limit.
    """
    if context is None or tokens <= context:
        return of_window(Window(0, 0, tokens, 0))
    windows = cover(0, tokens, window=context, overlap=context // 2)
    return torch.cat([of_window(window)[..., window.label_from - window.start :] for window in windows], dim=-1)
