"""A small annotated dataset in several shards and row groups, of documents whose tokens are all different."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.packing import BestFit, CutAtEnd, CutWithOverlap
from tests.annotated import write_annotated

LENGTHS = [3, 0, 17, 1, 6, 9, 0, 2, 30, 4, 4, 1, 12, 5, 8, 2, 7, 3, 0, 11, 2, 6, 5]
STARTS = np.cumsum([1, *LENGTHS])
TOKENS = [[*range(start, start + length)] for start, length in zip(STARTS.tolist(), LENGTHS, strict=False)]
LABELS = [[math.nan if token % 3 == 0 else -token / 8 for token in document] for document in TOKENS]
PACKINGS = [
    CutAtEnd(length=8, separator=0),
    BestFit(length=8, separator=0, buffer=2),
    BestFit(length=11),
    CutWithOverlap(length=7, separator=0),
]


def write_labelled(folder: Path) -> AnnotatedDataset:
    """Write the documents into three shards with row groups of three rows."""
    for shard in find_annotations(str(write_annotated(folder, TOKENS, LABELS, shards=3))).shards:
        pq.write_table(pq.read_table(shard.url), shard.url, row_group_size=3)
    return find_annotations(str(folder))


def assert_same(found: Any, expected: Any) -> None:
    """Assert that rows or windows have the same arrays, with NaN at the same places."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for value, wanted in zip(
            *(each.values() if isinstance(each, dict) else each for each in (one, other)), strict=True
        ):
            assert value.dtype == wanted.dtype
            np.testing.assert_array_equal(value, wanted)
