"""Damage to a shard never changes a label. It raises an error that names the file and the command that repairs it."""

import pickle
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.annotated import find_annotations
from pipeline.data.files import File, local_file
from pipeline.data.ledger import Ledger
from pipeline.data.loader import Reading, labelled_rows
from pipeline.data.shards import mending, open_shard
from pipeline.data.streams import DamagedError
from pipeline.report.sampling import LabelledSource
from schemas.layout import Subset, shard_name
from schemas.receipts import Counts, Receipt
from tests.annotated import write_annotated
from tests.labelled import LABELS, TOKENS

COLUMNS = ("input_ids", "entropy")


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_annotated(tmp_path, TOKENS, LABELS)
    return tmp_path / "data" / "exact" / shard_name(0, 1)


def read(folder: Path) -> list[bytes]:
    rows = labelled_rows(find_annotations(str(folder)), COLUMNS, Reading(epochs=1))
    return [row[name].tobytes() for row in rows for name in COLUMNS]


@pytest.mark.parametrize("count", [300, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_changed_byte_anywhere_in_a_shard_never_changes_a_label(shard: Path, tmp_path: Path, count: int) -> None:
    """Pages have checksums. Headers of pages and the footer must agree with the content that they describe."""
    sound, expected, random_byte = shard.read_bytes(), read(tmp_path), random.Random(0)
    found = 0
    for _ in range(count):
        at, added = random_byte.randrange(len(sound)), random_byte.randrange(1, 256)
        shard.write_bytes(sound[:at] + bytes([(sound[at] + added) % 256]) + sound[at + 1 :])
        try:
            assert read(tmp_path) == expected, (at, added)
        except ValueError as error:
            assert "\n" not in str(error), (at, added)
            found += 1
    assert found > count / 4


@pytest.mark.parametrize("column", COLUMNS)
def test_every_reader_names_the_shard_and_the_command_that_repairs_it(shard: Path, tmp_path: Path, column: str) -> None:
    group = pq.read_metadata(shard).row_group(0)
    chunk = next(each for each in map(group.column, range(group.num_columns)) if each.path_in_schema.startswith(column))
    content = bytearray(shard.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start + chunk.total_compressed_size - 20] ^= 1
    shard.write_bytes(content)
    dataset = find_annotations(str(tmp_path))
    told = rf"{shard} is not a readable Parquet file: .*`python -m pipeline\.verify {tmp_path} --repair` sets damaged"
    with pytest.raises(ValueError, match=told):
        dataset.corpus()
    with pytest.raises(ValueError, match=told):
        list(labelled_rows(dataset, COLUMNS, Reading(epochs=1)))
    with pytest.raises(ValueError, match=told):
        list(LabelledSource(dataset).documents(range(5)))
    with pytest.raises(ValueError, match=told), open_shard(local_file(shard)) as parquet:
        parquet.read()


def test_a_page_with_a_damaged_type_is_noticed(shard: Path, tmp_path: Path) -> None:
    """Arrow skips pages of an unknown type, including their rows."""
    group = pq.read_metadata(shard).row_group(0)
    labels = next(each for each in map(group.column, range(group.num_columns)) if "entropy.list" in each.path_in_schema)
    content = bytearray(shard.read_bytes())
    assert content[labels.data_page_offset : labels.data_page_offset + 2] == b"\x15\x00"  # the field of the type: data
    content[labels.data_page_offset + 1] = 0x20
    shard.write_bytes(content)
    with pytest.raises(DamagedError, match="row group 0 ends after 0 of 23 rows"):
        read(tmp_path)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("values", [["a"], [1.0], [["a"]], [{"list": [1.0]}]])
def test_columns_of_other_types_are_refused(shard: Path, tmp_path: Path, column: str, values: list[object]) -> None:
    table = pq.read_table(shard)
    other = pa.array(values * len(table))
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, other), shard)
    with pytest.raises(DamagedError, match=rf"column `{column}` of {shard} holds .*, not lists of numbers"):
        find_annotations(str(tmp_path))


@pytest.mark.parametrize(("size", "rows"), [(1, 0), (0, 1)])
def test_a_shard_is_compared_with_its_receipt(shard: Path, tmp_path: Path, size: int, rows: int) -> None:
    counts = Counts(rows=len(TOKENS) + rows)
    receipt = Receipt(unit=0, shard=shard.name, sha256="a" * 64, size=shard.stat().st_size + size, counts=counts)
    Ledger(Subset("exact", tmp_path)).record(receipt)
    with pytest.raises(DamagedError, match=rf"{shard} has .* bytes and 23 rows, but its receipt says"):
        find_annotations(str(tmp_path))


def test_an_unreadable_receipt_is_named(shard: Path, tmp_path: Path) -> None:
    file = tmp_path / "_ledger" / "exact" / "receipts" / "00000000.json"
    for text in ("{", "{}", "[]", "1", '{"counts": 1}', '{"counts": {"histogram": [], "colour": 1}}'):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        with pytest.raises(DamagedError, match=rf"{file} cannot be read \(.*pipeline\.verify {tmp_path} --repair"):
            find_annotations(str(tmp_path))


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b'{"schema_version": 3}'])
def test_unreadable_provenance_is_reported_with_its_shard(shard: Path, tmp_path: Path, text: bytes) -> None:
    table = pq.read_table(shard)
    pq.write_table(table.replace_schema_metadata({b"token_entropy.provenance": text}), shard)
    with pytest.raises(DamagedError, match=f"the provenance in {shard} cannot be read"):
        find_annotations(str(tmp_path))


def test_repair_advice_depends_on_the_location() -> None:
    def of(url: str) -> str:
        return mending(File(url, 1, "1"))

    assert of("/a b/data/exact/train-00000-of-00001.parquet").startswith("`python -m pipeline.verify '/a b' --repair`")
    assert of("hf://datasets/u/n@c/data/x/train-00000-of-00001.parquet") == (
        "`python -m pipeline.verify hf://datasets/u/n@c` lists the damaged shards"
    )
    assert of("/a/labels.parquet") == "annotate its source again"


def test_an_error_is_the_same_in_another_process() -> None:
    error = DamagedError("a.parquet is damaged", "fetch it again")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (
        (type(again), str(again)) == (DamagedError, "a.parquet is damaged; fetch it again") == (type(error), str(error))
    )
