"""Section `training`: the loop against bare steps, flood against cross-entropy, and ways to compute the loss.

N tokens, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipeline.models import cross_entropy as chunked
from schemas.annotations import Device
from tests.benchmarks import training
from tests.device.log import Figures, Log
from tests.device.sizes import TINY, Sizes
from tests.device.speed import best_seconds

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
WINDOWS, STEPS = 8, 12


def section(log: Log, sizes: Sizes, device: Device) -> None:
    size = _size(sizes)
    log.measure("training", "flood against cross-entropy, a step", partial(_flood, size, device))
    log.measure("training", "the loop against bare steps", partial(_loop, size, device))
    for vocabulary in sizes.vocabularies:
        for name, loss in _losses().items():
            what = f"loss forward and backward, vocabulary {vocabulary:,}, {name}"
            if loss is None:
                log.skip("training", what, "is not installed, or is not for this torch")
            elif name == "cut-cross-entropy" and device == "cpu":
                log.skip("training", what, "is for GPUs")
            else:
                log.measure("training", what, partial(_loss, loss, sizes, vocabulary, device))


def _size(sizes: Sizes) -> training.Size:
    if sizes is TINY:
        return replace(training.QUICK, precision="bf16")
    shape = sizes.models[0]
    return training.Size(
        context=1024,
        width=shape.width,
        layers=shape.layers,
        heads=shape.heads,
        vocabulary=shape.vocabulary,
        windows=WINDOWS,
        steps=STEPS,
        precision="bf16",
    )


def _flood(size: training.Size, device: Device) -> Figures:
    place = torch.device(device)
    plain, flood = (
        best_seconds(training.step(name, size, place), device, size.repeats) for name in ("cross-entropy", "flood")
    )
    return {"cross-entropy, s": plain, "flood, s": flood, "times": flood / plain}


def _loop(size: training.Size, device: Device) -> Figures:
    place = torch.device(device)
    bare = best_seconds(lambda: training.bare(size, place), device, 1)
    loop = best_seconds(lambda: training.looped(size), device, 1)
    tokens = training.tokens_of(size)
    return {"bare, tokens/s": tokens / bare, "loop, tokens/s": tokens / loop, "share": bare / loop}


def _losses() -> dict[str, Loss | None]:
    """Return functions that compute a sum of losses, by name. None stands for a library that is not installed."""
    return {
        "all logits": lambda hidden, head, target: cross_entropy((hidden @ head.T).float(), target, reduction="sum"),
        "chunked": _chunked,
        "cut-cross-entropy": _kernel() if find_spec("cut_cross_entropy") else None,
        "torch's linear_cross_entropy": getattr(nn.functional, "linear_cross_entropy", None),
    }


def _chunked(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor) -> Tensor:
    """Return the sum of the losses from this project's loop over chunks of logits."""
    losses_N: Tensor = chunked._ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, None, target_N, None, None, hidden_ND.dtype, False
    )
    return losses_N.sum()


def _kernel() -> Loss:
    def loss(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor) -> Tensor:
        with chunked.cut_cross_entropy():
            return chunked.token_cross_entropy(hidden_ND, head_VD, target_N).sum()

    return loss


def _loss(loss: Loss, sizes: Sizes, vocabulary: int, device: Device) -> Figures:
    """Return the time that the forward and backward pass of a loss takes in bfloat16, and on a GPU its peak memory.

    The tokens are those of a training batch of the smallest model.
    """
    tokens, width = (1024 * WINDOWS, sizes.models[0].width) if sizes is not TINY else (64, 16)
    torch.manual_seed(0)
    hidden_ND = torch.randn(tokens, width, device=device, dtype=torch.bfloat16).requires_grad_()
    head_VD = (torch.randn(vocabulary, width, device=device, dtype=torch.bfloat16) * width**-0.5).requires_grad_()
    target_N = torch.randint(vocabulary, (tokens,), device=device)

    def step() -> None:
        loss(hidden_ND, head_VD, target_N).sum().backward()

    found: Figures = {"ms": 1e3 * best_seconds(step, device, sizes.repeats)}
    if device == "cuda":
        hidden_ND.grad = head_VD.grad = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        found["GB"] = (torch.cuda.max_memory_allocated() - before) / 1e9
    return found
