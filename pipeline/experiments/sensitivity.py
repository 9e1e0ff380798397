"""Sensitivity of each layer to less precision: one at a time is rounded, and the loss measured (the paper's scan).

A layer is a module with a matrix of its own: linear, embedding or convolution.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from pipeline.models.quantization import Codec, CodecKind

What = Literal["weights", "activations"]
ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The cost of rounding one layer and no other."""

    layer: str
    """As `named_modules` has it."""
    what: What
    kind: CodecKind
    loss_change: float
    """Rounded minus exact, in the loss's unit."""


@torch.no_grad()
def sensitivities(
    model: ModelT,
    loss: Callable[[ModelT], float],
    *,
    kinds: Sequence[CodecKind] = ("int8",),
    whats: Sequence[What] = ("weights", "activations"),
) -> Iterator[Sensitivity]:
    """Each layer's weights, or what it gives out, rounded alone, in the order of the layers; the model stays as it was.

    int8 has one scale a tensor, for activations one a call. A table that two layers share is rounded for both, once. A
    layer whose weights the loss uses without a call of it has no activations to round.
    """
    exact, seen = loss(model), set[int]()
    for name, layer in model.named_modules():
        matrices = [matrix for matrix in layer.parameters(recurse=False) if matrix.ndim > 1]
        shared = {id(matrix) for matrix in matrices} <= seen
        seen.update(map(id, matrices))
        for what, kind in product(whats, kinds) if matrices else ():
            if what == "weights" and shared:
                continue
            with _rounded(layer, matrices, what, kind) as calls:
                change = loss(model) - exact
            if what == "weights" or calls:
                yield Sensitivity(layer=name, what=what, kind=kind, loss_change=change)


def rounded(values: Tensor, kind: CodecKind) -> Tensor:
    """Values of any shape as they come back from one codec for all of them."""
    return Codec.calibrated(kind, values.reshape(-1, 1)).round_trip(values)


@contextmanager
def _rounded(layer: nn.Module, matrices: Sequence[nn.Parameter], what: What, kind: CodecKind) -> Iterator[list[None]]:
    """A list that grows with every call whose activations were rounded."""
    calls: list[None] = []

    def round_output(_: nn.Module, __: object, output: Tensor) -> Tensor:
        calls.append(None)
        return rounded(output, kind)

    kept = [matrix.clone() for matrix in matrices]
    hook = layer.register_forward_hook(round_output) if what == "activations" else None
    try:
        for matrix in matrices if what == "weights" else ():
            matrix.copy_(rounded(matrix, kind))
        yield calls
    finally:
        for matrix, values in zip(matrices, kept, strict=True):
            matrix.copy_(values)
        if hook is not None:
            hook.remove()
