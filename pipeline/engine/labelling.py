"""Documents to labels: windows, batches of neighbouring lengths, a label method, and the pieces put together.

B rows, T tokens of the longest row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.windows import Window, budget_groups, cover
from pipeline.labels import causal, exact, second_order
from pipeline.models.checkpoint import declared_start, load_causal, load_estimator, load_second_order
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, Dtype, Method

BATCH_TOKENS = 16384

LabelWindows = Callable[[Tensor, Tensor, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Labeller:
    """A loaded label method: (input_ids [B, T], lengths [B], wanted positions [B, T]) to columns of nats [B, T]."""

    columns: tuple[str, ...]
    label: LabelWindows
    device: str


def load_labeller(
    method: Method, checkpoint: Path, device: str, dtype: Dtype = "float32", start: int | None = None
) -> Labeller:
    """The method with its checkpoint on the device, computing in `dtype`; losses and sums are wider.

    `start` is the token that a causal model reads before each window; what it declares where None.
    """
    precision = getattr(torch, dtype)
    if method == "exact":
        estimator = load_estimator(checkpoint, device).to(precision)
        return Labeller((ENTROPY,), lambda *batch: {ENTROPY: exact.token_entropies(estimator, *batch)}, device)
    if method == "second-order":
        model = load_second_order(checkpoint, device).to(precision)
        columns = (ENTROPY, EXPECTED_ENTROPY)
        return Labeller(
            columns, lambda ids, *_: dict(zip(columns, second_order.token_entropies(model, ids), strict=True)), device
        )
    language_model = load_causal(checkpoint, device).to(precision)
    first = declared_start(checkpoint) if start is None else start
    return Labeller((ENTROPY,), lambda ids, *_: {ENTROPY: causal.token_entropies(language_model, ids, first)}, device)


def label_documents(
    documents: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    labeller: Labeller,
    *,
    window: int,
    overlap: int,
    batch_invariant: bool = False,
) -> dict[str, list[np.ndarray]]:
    """A float32 array a document for every column, NaN where `wanted` (bool, a document each) is False.

    Labels of a document depend on those beside it by rounding, since shapes decide the order of sums. With
    `batch_invariant` every window is labelled by itself, and they are the same bits whatever is beside it.

    Raises:
        ValueError: if a wanted label is not finite.
    """
    results = {name: [np.full(len(ids), np.nan, np.float32) for ids in documents] for name in labeller.columns}
    windows = [
        piece
        for index, ids in enumerate(documents)
        for piece in cover(index, len(ids), window=window, overlap=overlap)
        if wanted[index][piece.label_from : piece.stop].any()
    ]
    windows.sort(key=len, reverse=True)
    for group in budget_groups([len(piece) for piece in windows], 1 if batch_invariant else BATCH_TOKENS):
        batch = windows[group]
        ids_BT, lengths_B, wanted_BT = _padded(documents, wanted, batch)
        moved = (array.to(labeller.device) for array in (ids_BT, lengths_B, wanted_BT))
        for name, values_BT in labeller.label(*moved).items():
            if not values_BT.cpu()[wanted_BT].isfinite().all():
                raise ValueError(f"the checkpoint gives {name} that is not finite; it is broken or was not trained")
            labels_BT = torch.where(wanted_BT, values_BT.cpu(), torch.nan).numpy()
            for row, piece in enumerate(batch):
                results[name][piece.document][piece.label_from : piece.stop] = labels_BT[
                    row, piece.label_from - piece.start : len(piece)
                ]
    return results


def _padded(
    documents: Sequence[np.ndarray], wanted: Sequence[np.ndarray], batch: list[Window]
) -> tuple[Tensor, Tensor, Tensor]:
    lengths_B = torch.tensor([len(piece) for piece in batch])
    ids_BT = torch.zeros(len(batch), int(lengths_B.max()), dtype=torch.long)
    wanted_BT = torch.zeros(ids_BT.shape, dtype=torch.bool)
    for row, piece in enumerate(batch):
        ids_BT[row, : len(piece)] = torch.from_numpy(documents[piece.document][piece.start : piece.stop])
        labelled = wanted[piece.document][piece.label_from : piece.stop]
        wanted_BT[row, piece.label_from - piece.start : len(piece)] = torch.from_numpy(labelled)
    return ids_BT, lengths_B, wanted_BT
