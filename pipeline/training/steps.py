"""The batches of a step, each a part of all of them together.

A loss divides what it sums by counts of `batch.whole`, so that losses and gradients of the parts add up to those of
one big batch, without weights: a batch counts by its tokens, or labels, as it would in the big one.

B rows, T tokens of the longest row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn.functional import pad

from pipeline.training.batches import Batch


def steps_of(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """So many batches at a time; fewer in the end, where batches end."""
    while step := list(islice(batches, size)):
        if len(step) > 1:
            whole = joined(step)
            step = [replace(batch, others=whole) for batch in step]
        yield step


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of all, padded to the longest."""
    longest = max(batch.input_ids_BT.shape[1] for batch in batches)
    lengths_B = torch.cat([batch.lengths_B for batch in batches])
    input_ids_BT = torch.cat([_padded(batch.input_ids_BT, longest, 0) for batch in batches])
    labels = [_padded(batch.labels_BT, longest, torch.nan) for batch in batches if batch.labels_BT is not None]
    return Batch(input_ids_BT, lengths_B, torch.cat(labels) if labels else None)


def _padded(rows_BT: Tensor, length: int, value: float) -> Tensor:
    return pad(rows_BT, (0, length - rows_BT.shape[1]), value=value)
