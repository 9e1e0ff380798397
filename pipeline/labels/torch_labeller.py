"""Labellers: a label method with its checkpoint on a device, which turns batches of windows into labels in nats.

B rows, T tokens of the longest row.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.data.windows import WindowBatch
from pipeline.labels import causal, exact, mixture, second_order
from pipeline.labels.ensemble import Ensemble, columns_to_compute, member_columns
from pipeline.labels.mixture import Teacher
from pipeline.models.causal_lm import BlockedAttention, frequency_border
from pipeline.models.estimator import Estimator
from pipeline.models.loading import declared_start, load_causal, load_estimator, load_second_order
from pipeline.models.second_order import SecondOrderModel
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, Device, Dtype, Method, Shape

LOG = logging.getLogger(__name__)

ENTROPY_ALONE: Mapping[str, Shape] = {ENTROPY: ()}
SECOND_ORDER_COLUMNS: Mapping[str, Shape] = {ENTROPY: (), EXPECTED_ENTROPY: ()}

Columns = Mapping[str, Tensor]
OfWindows = Callable[[Tensor, Tensor, Tensor, int], Columns]
"""Function that labels a batch, and returns the labels by column. A column is [B, T], or [K, B, T] if its values have
the shape (K,). The arguments are input_ids [B, T], lengths [B], the positions to label [B, T], and the maximum number
of tokens per forward pass."""


# On a CPU core, SmolLM2 labels 1.6 times as fast with 2,048 or 1,024 tokens per forward pass as with 16,384. For a
# model of a few million parameters, the number makes no difference. On a GPU, a forward pass needs enough work that the
# GPU does not wait for its host to launch kernels: some 9 TFLOP, which are 20 ms of an H100 or 32,768 tokens of SmolLM2
# (computed). Larger batches have more padding: with FineWeb's windows of 2,047 tokens, 3% at 32,768 tokens, and 14% at
# eight times that size. A forward pass without padding would save the 3%, but would need a mask, which rules out the
# fastest attention kernels.
CPU_FORWARD_TOKENS = 2**11
FORWARD_FLOP = 2**43
FEWEST_FORWARD_TOKENS, MOST_FORWARD_TOKENS = 2**14, 2**17
WINDOW_TOKENS = 2**14  # most tokens in a batch of the exact method, which sorts the prefixes of a batch by length


def forward_tokens(model: nn.Module, device: str) -> int:
    """Return the number of tokens per forward pass on a device: a power of two, equal for models of similar size."""
    if device == "cpu":
        return CPU_FORWARD_TOKENS
    parameters = sum(parameter.numel() for parameter in model.parameters())
    enough: int = 2 ** round(math.log2(FORWARD_FLOP / (2 * parameters)))
    return min(MOST_FORWARD_TOKENS, max(FEWEST_FORWARD_TOKENS, enough))


class DeviceError(Exception):
    """Failure to label rows on this device. Another device may be able to label them."""


@dataclass(frozen=True)
class TorchLabeller:
    """A label method with a loaded checkpoint."""

    columns: Mapping[str, Shape]
    """Shape of a token's value in each label column."""
    of_windows: OfWindows
    device: str
    budget: int
    """Maximum number of tokens per forward pass."""
    batch_tokens: int
    """Maximum number of tokens per batch."""
    border: int | None = None
    """Maximum length of short windows. They must not share a batch with longer windows. None if all windows may share a
    batch."""

    def label(
        self, batches: Iterable[WindowBatch], labelled: Callable[[WindowBatch], None] = lambda batch: None
    ) -> tuple[list[dict[str, np.ndarray]], int]:
        """Return each batch's labels by column, and the number of batches that were labelled in parts.

        Labels are float32 [B, T], or [K, B, T] for values of the shape (K,). Ids are exact in float32.
        All windows are sent to the device in one transfer, and all labels come back in one transfer. In between, the
        device does not wait for its host. The function `labelled` is called with each batch as soon as the batch is
        labelled or, on a GPU, submitted to the device.
        """
        all_batches, parts, at = list(batches), 0, 0
        sizes = [batch.ids_BT.size for batch in all_batches]
        # Allocated first, because small tensors that outlive the large tensors of a forward pass leave holes in the
        # heap, 900 bytes per token.
        widths = [math.prod(shape) for shape in self.columns.values()]
        labels_CN = torch.empty(sum(widths), sum(sizes), device=self.device)
        with BlockedAttention() if self.device == "cpu" else nullcontext():
            for batch, size, sent in zip(all_batches, sizes, self._on_device(all_batches), strict=True):
                labels, budget = self._within_memory(*sent)
                parts += budget < self.budget
                for column_WN, name in zip(labels_CN.split(widths), self.columns, strict=True):
                    column_WN[:, at : at + size] = labels[name].flatten(start_dim=-2)
                at += size
                labelled(batch)
        parts_CN = labels_CN.cpu().split(sizes, dim=1)
        return [
            {
                name: part_WN.unflatten(1, batch.ids_BT.shape).view(*shape, *batch.ids_BT.shape).numpy()
                for (name, shape), part_WN in zip(self.columns.items(), part_CN.split(widths), strict=True)
            }
            for batch, part_CN in zip(all_batches, parts_CN, strict=True)
        ], parts

    def _on_device(self, batches: Sequence[WindowBatch]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Return an iterator over three tensors on the device for each batch: ids, lengths and positions to label."""
        ids = _sent([batch.ids_BT for batch in batches], self.device)
        lengths = _sent([batch.lengths_B for batch in batches], self.device)
        wanted = _sent([batch.wanted_BT for batch in batches], self.device)
        return zip(ids, lengths, wanted, strict=True)

    def _within_memory(self, ids_BT: Tensor, lengths_B: Tensor, wanted_BT: Tensor) -> tuple[Columns, int]:
        """Return a batch's labels, and the number of tokens per forward pass for which the device's memory sufficed.

        A batch that does not fit into memory is retried with the same number of tokens after torch has released its
        cached memory. The labels are then bit-identical. If the batch still does not fit, it is labelled in parts, and
        the labels differ by rounding.

        Raises:
            DeviceError: if not even a single window fits into memory.
        """
        for budget in _budgets(self.budget, smallest=ids_BT.shape[1]):
            try:
                return self.of_windows(ids_BT, lengths_B, wanted_BT, budget), budget
            except torch.OutOfMemoryError:
                pass
            torch.cuda.empty_cache()  # outside the handler, since the error's traceback holds tensors
        raise DeviceError(f"a window of {ids_BT.shape[1]} tokens does not fit into the memory of {self.device}")


def _sent(arrays: Sequence[np.ndarray], device: str) -> list[Tensor]:
    """Return arrays of one dtype as tensors on a device, sent in a single transfer that may still be in progress."""
    if not arrays:
        return []
    joined_N = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
    if device != "cpu":
        joined_N = joined_N.pin_memory().to(device, non_blocking=True)
    parts = joined_N.split([array.size for array in arrays])
    return [part.view(array.shape) for part, array in zip(parts, arrays, strict=True)]


def _budgets(budget: int, smallest: int) -> Iterator[int]:
    """Yield the token budgets to try: `budget` twice, then a half, a quarter and so on, down to `smallest`."""
    yield from (budget, budget)
    while (budget := budget // 2) >= smallest:
        yield budget


def in_parts(
    one_pass: Callable[[Tensor, Tensor], Columns], ids_BT: Tensor, lengths_B: Tensor, _: Tensor, budget: int
) -> Columns:
    """Return a batch's labels from a one-pass method, applied to as many rows at a time as the budget allows."""
    rows = max(1, budget // ids_BT.shape[1])
    parts = [one_pass(*part) for part in zip(ids_BT.split(rows), lengths_B.split(rows), strict=True)]
    return {name: torch.cat([part[name] for part in parts], dim=-2) for name in parts[0]}


def exact_labeller(estimator: Estimator, device: Device) -> TorchLabeller:
    """Return a labeller that makes exact labels with an estimator, which must be on the device."""
    entropies, positions = partial(exact.token_entropies, estimator), exact.default_batch_tokens(device)
    return TorchLabeller({ENTROPY: ()}, lambda *batch: {ENTROPY: entropies(*batch)}, device, positions, WINDOW_TOKENS)


def second_order_labeller(
    model: SecondOrderModel, device: Device, columns: Mapping[str, Shape] = SECOND_ORDER_COLUMNS
) -> TorchLabeller:
    """Return a labeller that makes label columns with a second-order model, which must be on the device."""

    def one_pass(ids_BT: Tensor, _: Tensor) -> Columns:
        return dict(zip(SECOND_ORDER_COLUMNS, second_order.token_entropies(model, ids_BT), strict=True))

    both = partial(in_parts, one_pass)
    tokens, border = forward_tokens(model, device), frequency_border(model.transformer.config)
    return TorchLabeller(columns, both, device, tokens, tokens, border and border - 1)  # minus the start token


def causal_labeller(
    model: PreTrainedModel, start: int, device: Device, columns: Mapping[str, Shape] = ENTROPY_ALONE
) -> TorchLabeller:
    """Return a labeller that makes label columns with a causal language model, which must be on the device.

    The model reads the token `start` before each window.
    """
    labels = partial(in_parts, lambda ids, lengths: causal.token_labels(model, ids, start, columns, lengths))
    tokens = forward_tokens(model, device)
    return TorchLabeller(columns, labels, device, tokens, tokens, frequency_border(model.config))


def mixture_labeller(teachers: Sequence[Teacher], device: Device, columns: Mapping[str, Shape]) -> TorchLabeller:
    """Return a labeller that makes label columns with a mixture of language models, which must be on the device."""
    labels = partial(in_parts, lambda ids, lengths: mixture.token_labels(teachers, ids, columns, lengths))
    tokens = min(forward_tokens(teacher.model, device) for teacher in teachers)
    border = _shared_border([frequency_border(teacher.model.config) for teacher in teachers])
    return TorchLabeller(columns, labels, device, tokens, tokens, border)


def mean_labeller(labellers: Sequence[TorchLabeller], columns: Mapping[str, Shape]) -> TorchLabeller:
    """Return a labeller whose labels are the means of the labels of several labellers of one method."""
    own = member_columns(len(labellers))

    def of_windows(*batch: Any) -> Columns:
        labels = [labeller.of_windows(*batch) for labeller in labellers]
        apart = {name: each[ENTROPY] for name, each in zip(own, labels, strict=True)}
        means = {name: torch.stack([each[name] for each in labels]).mean(dim=0) for name in labels[0]}
        return {**means, **apart}

    border = _shared_border([labeller.border for labeller in labellers])
    first, budget = labellers[0], min(labeller.budget for labeller in labellers)
    batch_tokens = min(labeller.batch_tokens for labeller in labellers)
    return TorchLabeller(columns, of_windows, first.device, budget, batch_tokens, border)


def _shared_border(borders: Sequence[int | None]) -> int | None:
    """Return the window length beyond which models change their rotary frequencies (LongRoPE); None if none does so.

    Raises:
        ValueError: if the models' lengths differ. A batch could then not serve all models.
    """
    known = {border for border in borders if border is not None}
    if len(known) > 1:
        listed = " and ".join(f"{border:,}" for border in sorted(known))
        raise ValueError(
            f"the checkpoints change their rotary frequencies (LongRoPE) at different lengths, beyond {listed} tokens; "
            "name checkpoints of one such length with `estimator`"
        )
    return known.pop() if known else None


def load_labeller(
    method: Method,
    checkpoint: Path,
    device: Device,
    dtype: Dtype = "float32",
    start: int | None = None,
    columns: Mapping[str, Shape] | None = None,
) -> TorchLabeller:
    """Load the method's checkpoint onto the device and return its labeller.

    Args:
        dtype: precision of the model's computations. Losses and sums are in float32 or float64.
        start: token that a causal model reads before each window; by default the token that the checkpoint declares.
        columns: label columns to compute, out of the method's columns, with the shapes of their values. The default is
            `entropy`, with `expected_entropy` for a second-order model.
    """
    if method == "exact":
        return exact_labeller(load_estimator(checkpoint, device, dtype), device)
    if method == "second-order":
        model = load_second_order(checkpoint, device, dtype)
        return second_order_labeller(model, device, columns or SECOND_ORDER_COLUMNS)
    first = declared_start(checkpoint) if start is None else start
    return causal_labeller(load_causal(checkpoint, device, dtype), first, device, columns or ENTROPY_ALONE)


def load_ensemble(
    method: Method, ensemble: Ensemble, device: Device, dtype: Dtype, columns: Mapping[str, Shape]
) -> TorchLabeller:
    """Load the checkpoints of an ensemble onto the device, and return the labeller of the ensemble.

    All checkpoints of the ensemble read the same tokens. Labels of causal models come from the mean of the models'
    probabilities. With the other methods, a label is the mean of the checkpoints' labels. A single checkpoint labels
    by itself.

    Raises:
        ValueError: if the device has no memory for all checkpoints.
    """
    checkpoints, starts = ensemble
    names = columns_to_compute(columns, len(checkpoints))
    if len(checkpoints) == 1:
        return load_labeller(method, checkpoints[0], device, dtype, starts[0], names)
    labellers, teachers = list[TorchLabeller](), list[Teacher]()
    for number, (checkpoint, start) in enumerate(zip(checkpoints, starts, strict=True), 1):
        try:
            if method == "causal":
                first = declared_start(checkpoint) if start is None else start
                teachers.append(Teacher(load_causal(checkpoint, device, dtype), first))
            else:
                labellers.append(load_labeller(method, checkpoint, device, dtype))
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{checkpoint}, checkpoint {number} of {len(checkpoints)}, does not fit into the memory of {device} "
                "next to those before it; name fewer with `estimator`, or set `dtype` bfloat16"
            ) from error
    return mixture_labeller(teachers, device, names) if teachers else mean_labeller(labellers, names)


def device_here(gpus: float | None = None) -> Device:
    """Return the device on which this process labels: a GPU if there is one and `gpus` is not 0, otherwise the CPU.

    Raises:
        ValueError: if a GPU is requested and there is none.
    """
    if gpus and not torch.cuda.is_available():
        raise ValueError(f"`gpus_per_worker` {gpus:g}, but torch sees no GPU here; leave it out")
    return "cuda" if gpus != 0 and torch.cuda.is_available() else "cpu"


def load_labellers(
    ensembles: Sequence[Ensemble], device: Device, *, method: Method, dtype: Dtype, columns: Mapping[str, Shape]
) -> tuple[TorchLabeller, ...]:
    """Return one labeller on the device for each of a run's ensembles, in their order.

    torch is limited to one CPU thread, because labels must not depend on the number of cores.

    Raises:
        RuntimeError: if the device does not exist.
    """
    torch.set_num_threads(1)
    if device == "cuda" and dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        LOG.warning("%s cannot multiply in bfloat16; `dtype` float32 is faster", torch.cuda.get_device_name())
    return tuple(load_ensemble(method, ensemble, device, dtype, columns) for ensemble in ensembles)
