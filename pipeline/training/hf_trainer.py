"""The objectives in `transformers.Trainer` and trainers built on it: windows, a collator and a loss.

Such a loss gets logits and `labels` alone. So `labels` carry both: the lower half of an int64 is the token's id, the
upper half the bits of its entropy as float32. -100, which trainers count and skip, stays a position without a target;
the first token of a row or of a packed document has it, since nothing predicts it.

B rows, T tokens of the longest row, V vocabulary, S tokens of all rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence

from pipeline.data.packing import best_fit
from pipeline.data.windows import cover
from pipeline.training.config import ObjectiveSettings
from pipeline.training.objectives import StepObjective, objective_function
from schemas.annotations import ENTROPY, INPUT_IDS

IGNORED = -100
LOWER = 2**32 - 1
POSITION_IDS = "position_ids"

Nats = list[float | None]
Piece = tuple[list[int], Nats]
"""Tokens, and the entropy of each, None where it has none."""


def packed_labels(input_ids: Tensor, entropies: Tensor) -> Tensor:
    """Ids and entropies in nats (NaN: none) of any shape as one int64 tensor of it."""
    return entropies.float().view(torch.int32).long() << 32 | input_ids.long()


def unpacked_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ids, IGNORED where there is no target, and entropies."""
    ignored = labels == IGNORED
    entropies = (labels >> 32).to(torch.int32).view(torch.float32)
    return (labels & LOWER).masked_fill(ignored, IGNORED), entropies.masked_fill(ignored, torch.nan)


@dataclass(frozen=True, kw_only=True)
class EntropyWindows:
    """Documents as windows of at most `context` tokens, for `dataset.map(EntropyWindows(context=1024), batched=True,
    remove_columns=dataset.column_names)`.

    No token is left out. A document that is longer gives several windows, each beginning with the last token of the one
    before, without its label: every token is predicted once, but for the first of each document, which nothing precedes
    unless there is a separator. Empty documents give no window.
    """

    context: int
    packed: bool = False
    """Put several documents, or pieces of them, in a row; `position_ids` begin anew with each, by which transformers
    keeps attention within it. Documents are packed with those of the same batch of `map`."""
    separator: int | None = None
    """Id of a token to put before each document, without a label; none where None."""
    column: str = ENTROPY

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ValueError(f"windows need a context of at least 2 tokens, not {self.context}")

    def __call__(self, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Rows by column, lists of numbers, as windows.

        Raises:
            ValueError: if a column is missing, or a row has not one label a token.
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
        _require_one_a_token(len(ids), len(nats))
        if ids and self.separator is not None:
            ids, nats = [self.separator, *ids], [None, *nats]
        for window in cover(0, len(ids), window=self.context, overlap=1):
            repeated: Nats = [None] * (window.label_from - window.start)
            yield ids[window.start : window.stop], repeated + nats[window.label_from : window.stop]


@dataclass(frozen=True)
class EntropyCollator:
    """Rows of an annotated dataset as a batch of `input_ids`, and `labels` that hold both columns.

    Rows are padded, with an `attention_mask`. Packed rows stand end to end in one [1, S], with their `position_ids`:
    that is what flash attention takes, whereas the masks of others grow with S².
    """

    pad_token_id: int
    context: int
    """Most tokens of a row; EntropyWindows makes such rows of longer documents."""
    column: str = ENTROPY

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch; values are lists of numbers, null in `column` where a token has no label.

        Raises:
            ValueError: if a row lacks a column, has not one label a token, or is longer than the context.
        """
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
        """Ids and labels [T] of a row."""
        _require_columns(row, self.column)
        tokens = len(row[INPUT_IDS])
        _require_one_a_token(tokens, len(row[self.column]))
        if tokens > self.context:
            raise ValueError(
                f"a row has {tokens} tokens, and the context is {self.context}: make windows of the documents, with"
                f" dataset.map(EntropyWindows(context={self.context}), batched=True,"
                " remove_columns=dataset.column_names)"
            )
        ids_T = torch.as_tensor(row[INPUT_IDS]).long()
        nats_T = torch.as_tensor(np.array(row[self.column], dtype=np.float32))  # null becomes NaN
        labels_T = packed_labels(ids_T, nats_T)
        labels_T[:1] = IGNORED  # nothing predicts it, and older versions of transformers count it
        return ids_T, labels_T


def entropy_loss(settings: ObjectiveSettings, mean_entropy: float | None = None) -> Callable[..., Tensor]:
    """A `compute_loss_func` for logits that predict the next token, and labels of `EntropyCollator`.

    Raises:
        ValueError: if the objective needs the labels' mean, in nats, and neither that nor its own number is given.
    """
    own = {"mask": settings.threshold, "flood-mean": settings.level}.get(settings.objective, 0.0)
    if own is None and mean_entropy is None:
        raise ValueError(f"{settings.objective} needs mean_entropy, the mean of the dataset's labels")
    objective = objective_function(settings, mean_entropy or 0.0)

    def loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean over the targets of all that is accumulated to one step.

        Raises:
            ValueError: if the objective compares the tokens of a step, and these are not all of them.
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
        return total / targets.sum().clamp(min=1)  # DataParallel has one number for each GPU, and adds up as many means

    return loss


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy [B, T] of each target, 0 elsewhere: `preprocess_logits_for_metrics` for `mean_cross_entropy`."""
    ids_BT, _ = unpacked_labels(labels.to(logits.device))
    predicted = logits[:, :-1].transpose(1, 2).float()
    losses_BT = cross_entropy(predicted, ids_BT[:, 1:], ignore_index=IGNORED, reduction="none")
    return pad(losses_BT, (1, 0))


def mean_cross_entropy(evaluated: Any) -> dict[str, float]:
    """`compute_metrics` that shows `eval_cross_entropy`, nats a target, alongside the objective's `eval_loss`."""
    targets = evaluated.label_ids != IGNORED
    targets[:, 0] = False
    return {"cross_entropy": float(evaluated.predictions[targets].mean(dtype=np.float64))}


def _documents(losses: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Losses and labels [B, T] with a row for each packed document, which begins where a single row has no target."""
    if len(labels) > 1:
        return losses, labels
    starts = (labels[0] == IGNORED).nonzero().flatten()[1:].tolist()
    losses_BT, labels_BT = (list(torch.tensor_split(values[0], starts)) for values in (losses, labels))
    return pad_sequence(losses_BT, batch_first=True), pad_sequence(labels_BT, batch_first=True, padding_value=IGNORED)


def _require_columns(row: Mapping[str, Any], column: str) -> None:
    if column not in row or INPUT_IDS not in row:
        raise ValueError(
            f"a row has {', '.join(row)}, and `{INPUT_IDS}` and `{column}` are needed: annotate the dataset, and"
            " set remove_unused_columns=False"
        )


def _require_one_a_token(tokens: int, labels: int) -> None:
    if tokens != labels:
        raise ValueError(f"a row has {labels} labels for {tokens} tokens")


def _require_whole_step(settings: ObjectiveSettings, targets: int, of_step: int) -> None:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if targets != of_step or (distributed and torch.distributed.get_world_size() > 1):
        raise ValueError(
            f"{settings.objective} compares all tokens of a step, and a trainer hands out parts of it: set"
            " gradient_accumulation_steps=1 and one process, or train with jobs.train_language_model"
        )
