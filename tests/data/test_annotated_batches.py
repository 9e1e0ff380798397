"""An untrusted dataset is either read or refused with a message of one line that names the file."""

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.annotated import as_rows, find_annotations
from pipeline.data.loader import Reading, labelled_windows
from pipeline.data.packing import CutAtEnd
from schemas.annotations import PROVENANCE_KEY
from tests.annotated import write_annotated
from tests.builders import PROVENANCE

INTS, FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())


def changed(folder: Path, ids: Any, labels: Any, kinds: tuple[pa.DataType, pa.DataType] = (INTS, FLOATS)) -> str:
    """Write a dataset of one shard with these columns and return its folder."""
    write_annotated(folder, [[1]], [[1.0]], vocabulary=100)
    (shard,) = folder.rglob("*.parquet")
    table = pa.table({"input_ids": pa.array(ids, kinds[0]), "entropy": pa.array(labels, kinds[1])})
    pq.write_table(table.replace_schema_metadata(pq.read_schema(shard).metadata), shard)
    return str(folder)


@pytest.mark.parametrize(
    ("ids", "labels", "told"),
    [
        ([[1, 10**6]], [[1.0, 1.0]], "has token ids from 1 to 1000000, beyond its vocabulary of 100"),
        ([[1, -2]], [[1.0, 1.0]], "has token ids from -2 to 1, beyond"),
        ([[1, None]], [[1.0, 1.0]], "has a null in `input_ids`"),
        ([[1], None], [[1.0], None], "has a null in `input_ids`"),
        ([[1]], [[math.inf]], "has a label in `entropy` that is not finite"),
        ([[1]], [[-1e38]], "has a label of -1e+38 nats in `entropy`, more than a token can have"),
        ([[1]], [[1.0, 2.0]], "has 2 labels in `entropy` for 1 tokens"),
    ],
)
def test_rows_that_no_run_writes_are_refused(tmp_path: Path, ids: Any, labels: Any, told: str) -> None:
    dataset = find_annotations(changed(tmp_path, ids, labels))
    for read in (
        lambda: dataset.corpus(),
        lambda: list(labelled_windows(dataset, CutAtEnd(length=4), Reading(epochs=1))),
    ):
        with pytest.raises(ValueError) as refused:
            read()
        assert told in str(refused.value) and ".parquet" in str(refused.value)


@pytest.mark.parametrize(
    ("kinds", "values"),
    [
        ((INTS, pa.list_(pa.string())), ([[1]], [["a"]])),
        ((INTS, pa.float32()), ([[1]], [1.0])),
        ((FLOATS,) * 2, ([[1]],) * 2),
    ],
)
def test_columns_of_other_types_are_refused(tmp_path: Path, kinds: Any, values: Any) -> None:
    with pytest.raises(ValueError, match=r"column `(entropy|input_ids)` of .*\.parquet holds .*, not lists of"):
        find_annotations(changed(tmp_path, values[0], values[1], kinds))


@pytest.mark.parametrize("kinds", [(pa.large_list(pa.int64()), pa.large_list(pa.float64())), (INTS, FLOATS)])
def test_lists_and_numbers_of_other_widths_are_read(tmp_path: Path, kinds: Any) -> None:
    corpus = find_annotations(changed(tmp_path, [[1, 2]], [[1.0, None]], kinds)).corpus()
    assert corpus.tokens_N.tolist() == [1, 2] and corpus.given_labels.tolist() == [1.0]


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", PROVENANCE.to_json().replace("100", '"x"').encode()])
def test_unreadable_provenance_is_reported_with_the_dataset(tmp_path: Path, text: bytes) -> None:
    changed(tmp_path, [[1]], [[1.0]])
    (shard,) = tmp_path.rglob("*.parquet")
    pq.write_table(pq.read_table(shard).replace_schema_metadata({PROVENANCE_KEY: text}), shard)
    with pytest.raises(ValueError, match=rf"^the provenance in {tmp_path}/.* cannot be read \("):
        find_annotations(str(tmp_path))


@pytest.mark.parametrize("note", ["[]", "{", '{"unit": "x"}', "[" * 10**5])
def test_an_unreadable_note_is_named(tmp_path: Path, note: str) -> None:
    place = tmp_path / "_ledger/exact/quarantine/00000001.json"
    place.parent.mkdir(parents=True)
    place.write_text(note, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"^{place} is damaged \(.*\); delete it"):
        find_annotations(changed(tmp_path, [[1]], [[1.0]]))


def test_text_that_is_not_utf8_is_shown_with_replacements() -> None:
    column = pa.array([b"a\xff", None, "é".encode()], pa.binary()).view(pa.string())
    rows = as_rows(pa.RecordBatch.from_arrays([column], ["dump"]))
    assert [row["dump"] for row in rows] == ["a\ufffd", None, "é"]
