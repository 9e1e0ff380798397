"""Labellers: a label method with its checkpoint on a device. Batches of windows in, nats out.

B rows, T tokens of the longest row.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.data.windows import WindowBatch
from pipeline.labels import causal, exact, second_order
from pipeline.models.causal_lm import BlockedAttention, frequency_border
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.loading import declared_start, load_causal, load_estimator, load_second_order
from pipeline.models.second_order import SecondOrderModel
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, Device, Dtype, Method

LOG = logging.getLogger(__name__)

Columns = Mapping[str, Tensor]
OfWindows = Callable[[Tensor, Tensor, Tensor, int], Columns]
"""(input_ids [B, T], lengths [B], wanted positions [B, T], most tokens of a forward) to columns of nats [B, T]"""


# On a CPU core SmolLM2 labels 1.6 times as many tokens a second in forwards of 2,048 tokens as of 16,384, and as many
# in 1,024; a model of a few million parameters does not care. A GPU wants so much work in a forward that it does not
# wait for its host to launch kernels: some 9 TFLOP, 20 ms of an H100, 32,768 tokens of SmolLM2 (computed). More tokens
# fill batches with padding: of FineWeb's windows of 2,047, 3% with 32,768 tokens, 14% with eight times as many. So
# little is not worth a forward without padding, whose mask would rule out the fastest attention kernels.
CPU_FORWARD_TOKENS = 2**11
FORWARD_FLOP = 2**43
FEWEST_FORWARD_TOKENS, MOST_FORWARD_TOKENS = 2**14, 2**17
WINDOW_TOKENS = 2**14  # of windows whose prefixes the exact method sorts by length together


def forward_tokens(model: nn.Module, device: str) -> int:
    """Tokens to label in one forward on a device; a power of two, so that models of a size label in equal batches."""
    if device == "cpu":
        return CPU_FORWARD_TOKENS
    parameters = sum(parameter.numel() for parameter in model.parameters())
    enough: int = 2 ** round(math.log2(FORWARD_FLOP / (2 * parameters)))
    return min(MOST_FORWARD_TOKENS, max(FEWEST_FORWARD_TOKENS, enough))


class DeviceError(Exception):
    """This device cannot label the rows; another one may."""


@dataclass(frozen=True)
class TorchLabeller:
    """A label method with its checkpoint loaded."""

    columns: tuple[str, ...]
    of_windows: OfWindows
    device: str
    budget: int
    """Most tokens of a forward."""
    batch_tokens: int
    """Most tokens of a batch."""
    border: int | None = None
    """Windows of so many tokens, and longer ones, must not share a batch."""

    def label(
        self, batches: Iterable[WindowBatch], labelled: Callable[[WindowBatch], None] = lambda batch: None
    ) -> tuple[list[dict[str, np.ndarray]], int]:
        """Float32 [B, T] for every column of every batch, and how many batches were labelled in parts.

        Windows go to the device in one transfer and labels come back in one: in between it does not wait for its host.
        `labelled` is called with each batch when it is, on a GPU as soon as the device has the work.
        """
        all_batches, parts, at = list(batches), 0, 0
        sizes = [batch.ids_BT.size for batch in all_batches]
        # Before: small results that outlive the large ones of a forward leave holes in the heap, 900 bytes a token.
        labels_CN = torch.empty(len(self.columns), sum(sizes), device=self.device)
        with BlockedAttention() if self.device == "cpu" else nullcontext():
            for batch, size, sent in zip(all_batches, sizes, self._on_device(all_batches), strict=True):
                labels, budget = self._within_memory(*sent)
                parts += budget < self.budget
                for column, name in enumerate(self.columns):
                    labels_CN[column, at : at + size] = labels[name].flatten()
                at += size
                labelled(batch)
        parts_CN = labels_CN.cpu().split(sizes, dim=1)
        return [
            {name: part_CN[column].view(batch.ids_BT.shape).numpy() for column, name in enumerate(self.columns)}
            for batch, part_CN in zip(all_batches, parts_CN, strict=True)
        ], parts

    def _on_device(self, batches: Sequence[WindowBatch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Ids, lengths and wanted positions of each batch."""
        ids = _sent([batch.ids_BT for batch in batches], self.device)
        lengths = _sent([batch.lengths_B for batch in batches], self.device)
        wanted = _sent([batch.wanted_BT for batch in batches], self.device)
        return zip(ids, lengths, wanted, strict=True)

    def _within_memory(self, ids_BT: Tensor, lengths_B: Tensor, wanted_BT: Tensor) -> tuple[Columns, int]:
        """The labels, and the budget of a forward that fitted the device's memory.

        A batch that does not fit is tried again when the memory that torch keeps for later has been given back: it
        then gives the same bits. Only if that fails too is it labelled in parts, whose labels differ by rounding.

        Raises:
            DeviceError: if not even a single window fits.
        """
        for budget in _budgets(self.budget, smallest=ids_BT.shape[1]):
            try:
                return self.of_windows(ids_BT, lengths_B, wanted_BT, budget), budget
            except torch.OutOfMemoryError:
                pass
            torch.cuda.empty_cache()  # not before the error is gone, whose traceback holds tensors
        raise DeviceError(f"a window of {ids_BT.shape[1]} tokens does not fit the memory of {self.device}")


def _sent(arrays: Sequence[np.ndarray], device: str) -> list[Tensor]:
    """Arrays of one type on a device, in one transfer, which need not have ended."""
    if not arrays:
        return []
    joined_N = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device != "cpu":
        joined_N = joined_N.pin_memory().to(device, non_blocking=True)
    parts = joined_N.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _budgets(budget: int, smallest: int) -> Iterator[int]:
    """The whole budget twice, then halves of it that hold a window."""
    yield from (budget, budget)
    while (budget := budget // 2) >= smallest:
        yield budget


def in_parts(one_pass: Callable[[Tensor], Columns], ids_BT: Tensor, _: Tensor, __: Tensor, budget: int) -> Columns:
    """A method of one pass over every window, run on as many rows at a time as the budget allows."""
    parts = [one_pass(ids_bT) for ids_bT in ids_BT.split(max(1, budget // ids_BT.shape[1]))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def exact_labeller(estimator: EntropyEstimator, device: Device) -> TorchLabeller:
    """Exact labels of an estimator that is on the device."""
    entropies, positions = partial(exact.token_entropies, estimator), exact.default_batch_tokens(device)
    return TorchLabeller((ENTROPY,), lambda *batch: {ENTROPY: entropies(*batch)}, device, positions, WINDOW_TOKENS)


def second_order_labeller(model: SecondOrderModel, device: Device) -> TorchLabeller:
    """Both columns of a second-order model that is on the device."""
    columns = (ENTROPY, EXPECTED_ENTROPY)
    both = partial(in_parts, lambda ids: dict(zip(columns, second_order.token_entropies(model, ids), strict=True)))
    tokens, border = forward_tokens(model, device), frequency_border(model.transformer.config)
    return TorchLabeller(columns, both, device, tokens, tokens, border and border - 1)  # it reads the start too


def causal_labeller(model: PreTrainedModel, start: int, device: Device) -> TorchLabeller:
    """Losses of a causal language model that is on the device and reads the token `start` before each window."""
    losses = partial(in_parts, lambda ids: {ENTROPY: causal.token_entropies(model, ids, start)})
    tokens = forward_tokens(model, device)
    return TorchLabeller((ENTROPY,), losses, device, tokens, tokens, frequency_border(model.config))


def load_labeller(
    method: Method, checkpoint: Path, device: Device, dtype: Dtype = "float32", start: int | None = None
) -> TorchLabeller:
    """The method with its checkpoint on the device, computing in `dtype`; losses and sums are wider.

    `start` is the token that a causal model reads before each window; what it declares where None.
    """
    if method == "exact":
        return exact_labeller(load_estimator(checkpoint, device, dtype), device)
    if method == "second-order":
        return second_order_labeller(load_second_order(checkpoint, device, dtype), device)
    first = declared_start(checkpoint) if start is None else start
    return causal_labeller(load_causal(checkpoint, device, dtype), first, device)


def device_here(gpus: float | None = None) -> Device:
    """The device of a process that labels: a GPU where there is one, unless 0 GPUs are asked for.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    if gpus and not torch.cuda.is_available():
        raise ValueError(f"`gpus_per_worker` {gpus:g}, but torch sees no GPU here; leave it out")
    return "cuda" if gpus != 0 and torch.cuda.is_available() else "cpu"


def load_labellers(
    checkpoints: Sequence[Path], device: Device, *, method: Method, dtype: Dtype, start: int | None
) -> tuple[TorchLabeller, ...]:
    """The method with each of a run's checkpoints on a GPU, or on one core: labels must not depend on how many.

    Raises:
        RuntimeError: if there is no such device.
    """
    torch.set_num_threads(1)
    if device == "cuda" and dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        LOG.warning("%s cannot multiply in bfloat16; `dtype` float32 is faster", torch.cuda.get_device_name())
    return tuple(load_labeller(method, checkpoint, device, dtype, start) for checkpoint in checkpoints)
