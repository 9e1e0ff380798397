"""The objectives in other people's trainers: a collator and a loss for `transformers.Trainer` and what is built on it.

Such a loss is handed logits and `labels` alone. So `labels` carry both: the lower half of an int64 is the token's id,
the upper half the bits of its entropy as float32. -100, which trainers count and skip, stays a position without a
target.

B rows, T tokens of the longest row, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from pipeline.training.config import ObjectiveSettings
from pipeline.training.objectives import objective_function

IGNORED = -100
LOWER = 2**32 - 1


def packed_labels(input_ids: Tensor, entropies: Tensor) -> Tensor:
    """Ids and entropies in nats (NaN: none) of any shape as one int64 tensor of it."""
    return entropies.float().view(torch.int32).long() << 32 | input_ids.long()


def unpacked_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ids, IGNORED where there is no target, and entropies."""
    ignored = labels == IGNORED
    entropies = (labels >> 32).to(torch.int32).view(torch.float32)
    return (labels & LOWER).masked_fill(ignored, IGNORED), entropies.masked_fill(ignored, torch.nan)


@dataclass(frozen=True)
class EntropyCollator:
    """Rows of an annotated dataset as a batch: `input_ids`, `attention_mask`, and `labels` that hold both columns."""

    pad_token_id: int
    context: int
    """Tokens of a row at the most; what is beyond is cut off."""
    column: str = "entropy"

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch; values are lists of numbers, null in `column` where a token has no label.

        Raises:
            ValueError: if a row lacks a column, or has not one label a token.
        """
        cut = [self._cut(row) for row in rows]
        ids, labels = [ids_T for ids_T, _ in cut], [labels_T for _, labels_T in cut]
        return {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }

    def _cut(self, row: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        if self.column not in row or "input_ids" not in row:
            raise ValueError(
                f"a row has {', '.join(row)}, and `input_ids` and `{self.column}` are needed: annotate the dataset, and"
                " set remove_unused_columns=False"
            )
        if len(row["input_ids"]) != len(row[self.column]):
            raise ValueError(f"a row has {len(row[self.column])} labels for {len(row['input_ids'])} tokens")
        ids_T = torch.as_tensor(row["input_ids"])[: self.context].long()
        nats = [torch.nan if value is None else value for value in row[self.column][: self.context]]
        return ids_T, packed_labels(ids_T, torch.tensor(nats, dtype=torch.float32))


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
        """Mean over the targets of all that is accumulated to one step."""
        logits_BTV = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        ids_BT, entropies_BT = unpacked_labels(labels[:, 1:].to(logits_BTV.device))
        losses_BT = cross_entropy(
            logits_BTV[:, :-1].transpose(1, 2).float(), ids_BT, ignore_index=IGNORED, reduction="none"
        )
        real_BT = ids_BT != IGNORED
        total = objective(losses_BT, entropies_BT, real_BT)[real_BT].sum()
        return total / (real_BT.sum() if num_items_in_batch is None else num_items_in_batch)

    return loss
