"""Objectives for `transformers.Trainer` and trainers built on it: windows, a collator and a loss.

The windows are those of `LabelledWindows`, as in a plain torch DataLoader. A dataset that was changed with the library
`datasets` is cut into windows by `EntropyWindows`.

A trainer passes only logits and `labels` to its loss, so each label is an int64 that carries two values. The lower half
is the token's id, and the upper half holds the bits of the token's entropy as float32. As usual, the label -100 marks a
position without a target, which trainers skip and do not count. The first token of a row or of a packed document has
the label -100, since the model does not predict it.

Shapes: B rows, T tokens of the longest row, V vocabulary, S tokens of all rows, N targets of all rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence

from pipeline.data.packing import PADDING, PackedWindow, best_fit, position_ids
from pipeline.data.windows import cover
from pipeline.models.logit_sums import logit_sums
from pipeline.training.config import ObjectiveSettings
from pipeline.training.objectives import StepObjective, objective_function
from pipeline.training.penalties import Penalty, penalty_function
from schemas.annotations import ENTROPY, INPUT_IDS

IGNORED = -100
LOWER = 2**32 - 1
POSITION_IDS = "position_ids"

Nats = list[float | None]
Piece = tuple[list[int], Nats]
"""Token ids of a piece of a document, and the entropy of each token; None for a token without a label."""


def packed_labels(input_ids: Tensor, entropies: Tensor) -> Tensor:
    """Pack token ids and entropies in nats into one int64 tensor of the same shape. A missing entropy is NaN."""
    return entropies.float().view(torch.int32).long() << 32 | input_ids.long()


def unpacked_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the token ids and the entropies that int64 labels carry.

    At positions without a target, the id is IGNORED and the entropy is NaN.
    """
    ignored = labels == IGNORED
    entropies = (labels >> 32).to(torch.int32).view(torch.float32)
    return (labels & LOWER).masked_fill(ignored, IGNORED), entropies.masked_fill(ignored, torch.nan)


@dataclass(frozen=True, kw_only=True)
class EntropyWindows:
    """Function for `Dataset.map` that cuts documents into windows of at most `context` tokens.

    Usage: `dataset.map(EntropyWindows(context=1024), batched=True, remove_columns=dataset.column_names)`

    No token is left out. A document longer than `context` becomes several windows. Each of these windows after the
    first begins with the last token of the previous window; the label of this token is dropped, so that no token is
    predicted twice. Every token is predicted, except the first token of a document that has no separator before it.
    Empty documents have no window.
    """

    context: int
    packed: bool = False
    """Pack several documents, or pieces of documents, into a row. By default, each document or piece is a row of its
    own. `position_ids` restart at each document or piece, so that transformers keeps attention within it. Only
    documents in the same batch of `map` are packed together."""
    separator: int | None = None
    """Id of a token to insert before each document; None inserts nothing. The inserted token has no label."""
    column: str = ENTROPY

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ValueError(f"windows need a context of at least 2 tokens, not {self.context}")

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Cut a batch of documents into windows, and return the columns of the windows by name.

        In `rows` and in the result, a column has one list of numbers per row. A missing label is None.

        Raises:
            ValueError: if a column is missing, or a row does not have one label per token.
        """
        _require_columns(rows, self.column)
        documents = zip(rows[INPUT_IDS], rows[self.column], strict=True)
        pieces = [piece for ids, nats in documents for piece in self._pieces(list(ids), list(nats))]
        sizes = [len(ids) for ids, _ in pieces]
        groups = best_fit(sizes, self.context) if self.packed else [[piece] for piece in range(len(pieces))]
        windows: dict[str, list[Any]] = {
            INPUT_IDS: [[token for piece in row for token in pieces[piece][0]] for row in groups],
            self.column: [[label for piece in row for label in pieces[piece][1]] for row in groups],
        }
        if self.packed:
            windows[POSITION_IDS] = [[at for piece in row for at in range(sizes[piece])] for row in groups]
        return windows

    def _pieces(self, ids: list[int], nats: Nats) -> Iterator[Piece]:
        _require_label_per_token(len(ids), len(nats))
        if ids and self.separator is not None:
            ids, nats = [self.separator, *ids], [None, *nats]
        for window in cover(0, len(ids), window=self.context, overlap=1):
            repeated: Nats = [None] * (window.label_from - window.start)
            yield ids[window.start : window.stop], repeated + nats[window.label_from : window.stop]


@dataclass(frozen=True)
class EntropyCollator:
    """Collator that makes a batch from windows or rows of an annotated dataset.

    A batch has `input_ids` and `labels`. The labels carry ids and entropies.

    Rows without `position_ids` are padded to [B, T], and the batch has an `attention_mask`. Rows that `EntropyWindows`
    has packed have `position_ids`, and are concatenated to [1, S] without padding. The windows of `LabelledWindows` are
    concatenated in the same way. Flash attention accepts concatenated rows without a mask. Other attention kernels need
    a mask, whose size grows with S².
    """

    pad_token_id: int
    context: int
    """Largest number of tokens in a row. Cut longer documents with `LabelledWindows` or `EntropyWindows`."""
    column: str = ENTROPY

    def __call__(self, rows: Sequence[Mapping[str, Any] | PackedWindow]) -> dict[str, Tensor]:
        """Return the rows as a batch of tensors. The columns of a row are lists of numbers; a missing label is None.

        Raises:
            ValueError: if a row lacks a column, does not have one label per token, or is longer than the context.
        """
        return self._batch([window_row(row, self.column) if isinstance(row, PackedWindow) else row for row in rows])

    def _batch(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        each = [self._tensors(row) for row in rows]
        ids, labels = [ids_T for ids_T, _ in each], [labels_T for _, labels_T in each]
        if POSITION_IDS in rows[0]:
            positions_S = torch.cat([torch.as_tensor(row[POSITION_IDS]).long() for row in rows])
            labels_S = torch.cat(labels).masked_fill(positions_S == 0, IGNORED)
            flat = {INPUT_IDS: torch.cat(ids), POSITION_IDS: positions_S, "labels": labels_S}
            return {name: values_S.unsqueeze(0) for name, values_S in flat.items()}
        return {
            INPUT_IDS: pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }

    def _tensors(self, row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the token ids and the packed labels of a row, both int64 [T]."""
        _require_columns(row, self.column)
        tokens = len(row[INPUT_IDS])
        _require_label_per_token(tokens, len(row[self.column]))
        if tokens > self.context:
            raise ValueError(
                f"a row has {tokens} tokens, but the context is {self.context}: cut the documents into windows with"
                f" LabelledWindows(dataset, CutWithOverlap(length={self.context})), or with"
                f" dataset.map(EntropyWindows(context={self.context}), batched=True,"
                " remove_columns=dataset.column_names)"
            )
        ids_T = torch.as_tensor(row[INPUT_IDS]).long()
        nats_T = torch.as_tensor(np.array(row[self.column], dtype=np.float32))  # null becomes NaN
        labels_T = packed_labels(ids_T, nats_T)
        labels_T[:1] = IGNORED  # nothing predicts it, and older versions of transformers count it
        return ids_T, labels_T


def window_row(window: PackedWindow, column: str = ENTROPY) -> dict[str, np.ndarray]:
    """Return a window as a row: its tokens without padding, their labels, and positions, from 0 in each document."""
    real_T = window.document_T != PADDING
    columns = {INPUT_IDS: window.input_ids_T, column: window.entropy_T, POSITION_IDS: position_ids(window.document_T)}
    return {name: values_T[real_T] for name, values_T in columns.items()}


def window_rows(windows: Iterable[PackedWindow]) -> Iterator[dict[str, np.ndarray]]:
    """Yield each window as a row.

    With this function, `datasets.IterableDataset.from_generator` makes the kind of dataset that TRL's trainers demand.
    """
    yield from map(window_row, windows)


def entropy_loss(settings: ObjectiveSettings, mean_entropy: float | None = None) -> Callable[..., Tensor]:
    """Return a function for a trainer's `compute_loss_func`, which takes logits and the labels of `EntropyCollator`.

    The logits at each position are those of the next token.

    Args:
        mean_entropy: mean of the dataset's labels in nats. The objective mask needs this mean if `threshold` is not
            set. The objectives flood-mean and iflood need it if `level` is not set.

    Raises:
        ValueError: if `mean_entropy` is needed but missing.
    """
    given = {"mask": settings.threshold, "flood-mean": settings.level, "iflood": settings.level}
    if given.get(settings.objective, 0.0) is None and mean_entropy is None:
        raise ValueError(f"{settings.objective} needs mean_entropy, the mean of the dataset's labels")
    objective, penalty = objective_function(settings, mean_entropy or 0.0), penalty_function(settings)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Return this batch's part of the optimizer step's loss. The parts add up to the mean over all targets.

        Raises:
            ValueError: if the objective compares all tokens of a step, and this batch has only some of them.
        """
        logits_BTV = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        labels = labels.to(logits_BTV.device)
        losses_BT, labels_BT = _documents(token_losses(logits_BTV, labels), labels)
        ids_BT, entropies_BT = unpacked_labels(labels_BT)
        real_BT = ids_BT != IGNORED
        targets = real_BT.sum() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        if isinstance(objective, StepObjective):
            _require_whole_step(settings, int(real_BT.sum()), int(targets.flatten()[0]))
        total = objective(losses_BT, entropies_BT, real_BT)[real_BT].sum()
        if penalty is not None:
            total = total + penalties(penalty, logits_BTV, labels).sum()
        return total / targets.sum().clamp(min=1)  # DataParallel has one number per GPU, and scales the loss up

    return loss


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy [B, T] of each target in nats, and 0 at positions without a target.

    Index i is for token i, given the tokens before it. Pass this function to a trainer as
    `preprocess_logits_for_metrics`, together with `mean_cross_entropy`.
    """
    ids_BT, _ = unpacked_labels(labels.to(logits.device))
    predicted = logits[:, :-1].transpose(1, 2).float()
    losses_BT = cross_entropy(predicted, ids_BT[:, 1:], ignore_index=IGNORED, reduction="none")
    return pad(losses_BT, (1, 0))


def penalties(penalty: Penalty, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the penalties of all targets of a batch, [N]."""
    ids_BT = unpacked_labels(labels)[0][:, 1:]
    target_BT = ids_BT != IGNORED
    return penalty(logit_sums(logits[:, :-1][target_BT].float(), ids_BT[target_BT]))


def mean_cross_entropy(evaluated: Any) -> dict[str, float]:
    """Return the mean cross-entropy in nats per target, as the only entry `cross_entropy` of a dictionary.

    Pass this function to a trainer as `compute_metrics`. Evaluations then show `eval_cross_entropy` alongside the
    objective's `eval_loss`.
    """
    targets = evaluated.label_ids != IGNORED
    targets[:, 0] = False
    return {"cross_entropy": float(evaluated.predictions[targets].mean(dtype=np.float64))}


def _documents(losses: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Split losses and labels of a single packed row into [B, T], with one row per document.

    Each document in the packed row begins with a position without a target. If there are several rows, they
    are not packed, and losses and labels are returned unchanged.
    """
    if len(labels) > 1:
        return losses, labels
    starts = (labels[0] == IGNORED).nonzero().flatten()[1:].tolist()
    losses_BT, labels_BT = (list(torch.tensor_split(values[0], starts)) for values in (losses, labels))
    return pad_sequence(losses_BT, batch_first=True), pad_sequence(labels_BT, batch_first=True, padding_value=IGNORED)


def _require_columns(row: Mapping[str, Any], column: str) -> None:
    if column not in row or INPUT_IDS not in row:
        raise ValueError(
            f"a row has {', '.join(row)}, but `{INPUT_IDS}` and `{column}` are needed: annotate the dataset, and"
            " set remove_unused_columns=False"
        )


def _require_label_per_token(tokens: int, labels: int) -> None:
    if tokens != labels:
        raise ValueError(f"a row has {labels} labels for {tokens} tokens")


def _require_whole_step(settings: ObjectiveSettings, targets: int, of_step: int) -> None:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if targets != of_step or (distributed and torch.distributed.get_world_size() > 1):
        raise ValueError(
            f"{settings.objective} compares all tokens of a step, but this trainer passes only a part of them: set"
            " gradient_accumulation_steps=1 and use one process, or train with jobs.train_language_model"
        )
