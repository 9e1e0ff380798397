"""The index of a sidecar and its stored labels, compared with a search through all documents."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.annotated import find_shards
from pipeline.data.label_index import CHANGED, UNKNOWN, LabelIndex, StoredLabels
from pipeline.data.sidecar_keys import digests
from tests.sidecars import KeyedDocument, labelled, write_sidecar

IDS = st.sampled_from([None, "", "a", "b", "c"])
TOKENS = st.one_of(st.none(), st.lists(st.integers(0, 3), max_size=3).map(tuple))
KEYED = st.tuples(IDS, TOKENS)
WITH_IDS = pa.schema([("id", pa.string())])


def found(index: LabelIndex, documents: Sequence[tuple[str | None, tuple[int, ...] | None]]) -> list[int]:
    lists = pa.array([tokens for _, tokens in documents], pa.list_(pa.int32()))
    return list(index.rows(digests(lists), pa.array([id for id, _ in documents], pa.string())))


def searched(stored: Sequence[KeyedDocument], id: str | None, tokens: tuple[int, ...] | None, *, ids: bool) -> int:
    for row, document in enumerate(stored):
        if document.tokens == tokens and (not ids or (document.id or "") == (id or "")):
            return row
    return CHANGED if ids and (id or "") in {document.id or "" for document in stored} else UNKNOWN


@settings(max_examples=30)
@given(st.lists(KEYED, max_size=9), st.lists(KEYED, min_size=1, max_size=9), st.integers(1, 3), st.booleans())
def test_every_document_is_found_as_by_a_search_through_all(stored, sought, shards, ids) -> None:  # type: ignore[no-untyped-def]
    documents = labelled(stored)
    with TemporaryDirectory() as folder:
        sidecar = find_shards(str(write_sidecar(Path(folder), documents, shards=shards, ids=ids)))
        index = LabelIndex.of(sidecar, WITH_IDS)
        assert index.has_ids == ids
        assert found(index, sought) == [searched(documents, *each, ids=ids) for each in sought]


def test_ids_that_the_source_lacks_are_not_asked_for(tmp_path: Path) -> None:
    sidecar = find_shards(str(write_sidecar(tmp_path, labelled([("a", (1,)), ("b", (2,))]))))
    index = LabelIndex.of(sidecar, pa.schema([]))
    assert index.rows(digests(pa.array([[2], [1], [3]], pa.list_(pa.int32()))), None).tolist() == [1, 0, UNKNOWN]


def test_documents_with_one_key_are_told_apart_by_their_digests() -> None:
    same = np.array([[7, 1], [7, 2], [7, 3]], np.uint64)
    index = LabelIndex(False, same[:, 0], np.arange(3), same, np.empty(0, np.uint64))
    wanted = pa.array([np.array([7, second], "<u8").tobytes() for second in (3, 1, 4, 2)], pa.binary(16))
    assert index.rows(wanted, None).tolist() == [2, 0, UNKNOWN, 1]


@pytest.mark.parametrize("memory", [1, 300, 10**9])
def test_labels_are_taken_in_any_order_within_any_memory(tmp_path: Path, memory: int) -> None:
    documents = labelled([(str(number), (number,) * (number % 5)) for number in range(40)])
    stored = StoredLabels(find_shards(str(write_sidecar(tmp_path, documents, shards=4))), memory)
    rows_B = np.random.default_rng(1).permutation(np.arange(-2, 40).repeat(2))
    taken = stored.take(rows_B).column("entropy").to_pylist()
    assert taken == [None if row < 0 else [*documents[row].labels] for row in rows_B]
    stored.take(np.arange(40))
    assert stored.reads == (4 if memory == 10**9 else stored.reads) and stored.reads >= 4
    assert sum(table.nbytes for table in stored._held.values()) <= max(memory, 400)
