"""A label method with its checkpoint on a device: batches of windows in, nats out.

B rows, T tokens of the longest row.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.engine.annotation import Annotator, with_tokenizers
from pipeline.engine.batches import BATCH_TOKENS, Batch
from pipeline.engine.errors import DeviceError
from pipeline.engine.run import Run
from pipeline.engine.worker import Device
from pipeline.labels import causal, exact, second_order
from pipeline.models.loading import declared_start, load_causal, load_estimator, load_second_order
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, Dtype, Method

Columns = Mapping[str, Tensor]
OfWindows = Callable[[Tensor, Tensor, Tensor, int], Columns]
"""(input_ids [B, T], lengths [B], wanted positions [B, T], most tokens of a forward) to columns of nats [B, T]"""


@dataclass(frozen=True)
class TorchLabeller:
    """A loaded label method."""

    columns: tuple[str, ...]
    of_windows: OfWindows
    device: str
    budget: int
    """Tokens of a forward at the most."""

    def label(self, batches: Iterable[Batch]) -> tuple[list[dict[str, np.ndarray]], int]:
        """Float32 [B, T] for every column of every batch, and how many batches were labelled in parts.

        All batches are given to the device before the first result is fetched: it does not wait for its host.
        """
        results, parts = [], 0
        for batch in batches:
            found, budget = self._within_memory(batch)
            parts += budget < self.budget
            results.append(found)
        return [{name: values_BT.cpu().numpy() for name, values_BT in found.items()} for found in results], parts

    def _within_memory(self, batch: Batch) -> tuple[Columns, int]:
        """The labels, and the budget of a forward that fitted the device's memory.

        A batch that does not fit is tried again when the memory that torch keeps for later has been given back: it
        then gives the same bits. Only if that fails too is it labelled in parts, whose labels differ by rounding.

        Raises:
            DeviceError: if not even a single window fits.
        """
        for budget in _budgets(self.budget, smallest=batch.ids_BT.shape[1]):
            try:
                ids_BT, lengths_B, wanted_BT = map(self._to_device, (batch.ids_BT, batch.lengths_B, batch.wanted_BT))
                return self.of_windows(ids_BT, lengths_B, wanted_BT, budget), budget
            except torch.OutOfMemoryError:
                pass
            torch.cuda.empty_cache()  # not before the error is gone, whose traceback holds tensors
        raise DeviceError(f"a window of {batch.ids_BT.shape[1]} tokens does not fit the memory of {self.device}")

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device != "cpu" else tensor


def _budgets(budget: int, smallest: int) -> Iterator[int]:
    """The whole budget twice, then halves of it that hold a window."""
    yield from (budget, budget)
    while (budget := budget // 2) >= smallest:
        yield budget


def in_parts(one_pass: Callable[[Tensor], Columns], ids_BT: Tensor, _: Tensor, __: Tensor, budget: int) -> Columns:
    """A method of one pass over every window, run on as many rows at a time as the budget allows."""
    parts = [one_pass(ids_bT) for ids_bT in ids_BT.split(max(1, budget // ids_BT.shape[1]))]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def load_labeller(
    method: Method, checkpoint: Path, device: str, dtype: Dtype = "float32", start: int | None = None
) -> TorchLabeller:
    """The method with its checkpoint on the device, computing in `dtype`; losses and sums are wider.

    `start` is the token that a causal model reads before each window; what it declares where None.
    """
    precision = getattr(torch, dtype)
    if method == "exact":
        estimator = load_estimator(checkpoint, device).to(precision)
        budget = exact.default_batch_tokens(device)
        return TorchLabeller(
            (ENTROPY,), lambda *batch: {ENTROPY: exact.token_entropies(estimator, *batch)}, device, budget
        )
    if method == "second-order":
        model = load_second_order(checkpoint, device).to(precision)
        columns = (ENTROPY, EXPECTED_ENTROPY)
        both = partial(in_parts, lambda ids: dict(zip(columns, second_order.token_entropies(model, ids), strict=True)))
        return TorchLabeller(columns, both, device, BATCH_TOKENS)
    language_model = load_causal(checkpoint, device).to(precision)
    first = declared_start(checkpoint) if start is None else start
    losses = partial(in_parts, lambda ids: {ENTROPY: causal.token_entropies(language_model, ids, first)})
    return TorchLabeller((ENTROPY,), losses, device, BATCH_TOKENS)


def device_here(gpus: float | None = None) -> Device:
    """The device of a process that labels: a GPU where there is one, unless 0 GPUs are asked for.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    if gpus and not torch.cuda.is_available():
        raise ValueError(f"--gpus-per-worker {gpus:g}, but torch sees no GPU here; leave it out")
    return "cuda" if gpus != 0 and torch.cuda.is_available() else "cpu"


def load_annotator(run: Run, device: str) -> Annotator:
    """A run's checkpoints on a GPU, or on one core: labels must not depend on how many there are.

    Raises:
        ValueError: if a checkpoint of the Hub cannot be fetched.
        RuntimeError: if there is no such device.
    """
    torch.set_num_threads(1)
    run, settings = run.on_this_node(), run.provenance
    labellers = tuple(
        load_labeller(settings.method, checkpoint, device, settings.dtype, settings.start_token)
        for checkpoint in run.checkpoints
    )
    return with_tokenizers(run, labellers)
