"""Every fault of a dataset is found, and nothing else is reported."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.ledger import Ledger
from pipeline.data.shards import write_shard
from pipeline.engine.output import locked
from schemas.annotations import PROVENANCE_KEY, Provenance
from schemas.layout import Subset, shard_name
from schemas.receipts import Quarantined, Receipt
from tests.annotated import write_annotated
from tests.conftest import RunCommand
from tests.verify.datasets import DATA, RECEIPTS, SHARDS, SUBSET, made, verified

SHARD = shard_name(2, SHARDS)
FILE = f"{DATA}/{SHARD}"
RECEIPT = f"{RECEIPTS}/00000002.json"
PLAN = f"_ledger/{SUBSET}/plan.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "set")


def test_a_sound_dataset_has_no_faults(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = verified(dataset, capsys)
    tokens = sum(json.loads(file.read_text())["counts"]["tokens"] for file in (dataset / RECEIPTS).iterdir())
    assert (code, lines) == (0, [f"exact: 6 shards, 12 documents, {tokens:,} tokens: all match their receipts"])


def rewritten(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    """Return a function that changes the rows of a shard and makes its receipt match the new bytes."""

    def plant(dataset: Path) -> None:
        table = change(pq.read_table(dataset / FILE))
        digest = write_shard(dataset / FILE, [table], table.schema)
        receipt = Receipt.from_json((dataset / RECEIPT).read_text(encoding="utf-8"))
        size = (dataset / FILE).stat().st_size
        Ledger(Subset(SUBSET, dataset)).record(replace(receipt, sha256=digest, size=size))

    return plant


def column(name: str, change: Callable[[list[object]], object]) -> Callable[[Path], None]:
    """Return a function that changes a column in the first row that has a value.

    `change` gets the value as a list. A number becomes a list of one number.
    """

    def changed(table: pa.Table) -> pa.Table:
        values = table.column(name).to_pylist()
        at = next(row for row, value in enumerate(values) if value)
        values[at] = change(values[at] if isinstance(values[at], list) else [values[at]])
        place = table.schema.get_field_index(name)
        return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))

    return rewritten(changed)


def other_provenance(table: pa.Table) -> pa.Table:
    own = Provenance.from_json(table.schema.metadata[PROVENANCE_KEY].decode())
    return table.replace_schema_metadata({PROVENANCE_KEY: replace(own, window=own.window + 1).to_json()})


def edited(file: str, **changes: object) -> Callable[[Path], None]:
    """Return a function that sets values in a JSON file of a dataset, by key.

    A key that the file's object `counts` contains is set in that object. Any other key is set at the top level.
    """

    def plant(dataset: Path) -> None:
        values = json.loads((dataset / file).read_text(encoding="utf-8"))
        for name, value in changes.items():
            inside = values.get("counts", {})
            (inside if name in inside else values)[name] = value
        (dataset / file).write_text(json.dumps(values), encoding="utf-8")

    return plant


def histogram(dataset: Path) -> list[int]:
    counts: list[int] = json.loads((dataset / RECEIPT).read_text(encoding="utf-8"))["counts"]["histogram"]
    return counts


def fewer_labels(dataset: Path) -> None:
    """Make a receipt count one label less, both in its histogram and in its number of labelled tokens."""
    bins = histogram(dataset)
    bins[bins.index(max(bins))] -= 1
    edited(RECEIPT, histogram=bins, labelled_tokens=sum(bins))(dataset)


def other_bins(dataset: Path) -> None:
    edited(RECEIPT, histogram=histogram(dataset)[::-1])(dataset)


def flipped(dataset: Path) -> None:
    content = bytearray((dataset / FILE).read_bytes())
    content[len(content) // 2] ^= 1
    (dataset / FILE).write_bytes(content)


def linked(file: str) -> Callable[[Path], None]:
    def plant(dataset: Path) -> None:
        elsewhere = dataset.parent / "elsewhere"
        (dataset / file).rename(elsewhere)
        (dataset / file).symlink_to(elsewhere)

    return plant


def given_up_too(dataset: Path) -> None:
    note = Quarantined(unit=2, shard=SHARD, file="in.parquet", start=4, stop=6, reason="wrong")
    Ledger(Subset(SUBSET, dataset)).quarantine(note)


def both_gone(dataset: Path) -> None:
    for name in (FILE, RECEIPT):
        (dataset / name).unlink()


def grown(dataset: Path) -> None:
    (dataset / "_ledger" / SUBSET / "growing").touch()


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (flipped, f"{FILE}: is not what was written: its sha256 is"),
    "cut short": (lambda at: os.truncate(at / FILE, 99), f"{FILE}: has 99 bytes, its receipt says"),
    "a shard is gone": (lambda at: (at / FILE).unlink(), f"{FILE}: is missing"),
    "a receipt is gone": (lambda at: (at / RECEIPT).unlink(), f"{FILE}: has no receipt"),
    "both are gone": (both_gone, f"{FILE}: is missing"),
    "another file": (lambda at: (at / DATA / "notes.txt").touch(), f"{DATA}/notes.txt: is not a shard of this run"),
    "another shard": (
        lambda at: shutil.copy(at / FILE, at / DATA / "train-00009-of-00010.parquet"),
        f"{DATA}/train-00009-of-00010.parquet: is not a shard of this run",
    ),
    "another run's shard": (rewritten(other_provenance), f"{FILE}: its provenance differs from that of the plan"),
    "no provenance": (
        rewritten(lambda table: table.replace_schema_metadata(None)),
        f"{FILE}: its provenance cannot be read",
    ),
    "no mean": (rewritten(lambda table: table.drop_columns("mean_entropy")), f"{FILE}: has columns"),
    "wide tokens": (
        rewritten(lambda table: table.set_column(*_wide(table))),
        f"{FILE}: column `input_ids` holds list<element: int64>",
    ),
    "a label too few": (column("entropy", lambda labels: labels[1:]), "row 0: `entropy` does not have one label"),
    "no label is finite": (column("entropy", lambda labels: [np.inf] * len(labels)), "row 0: a label in `entropy` is"),
    "another label": (column("entropy", lambda labels: [9.0, *labels[1:]]), "is not the mean of its labels"),
    "another mean": (column("mean_entropy", lambda mean: 77.0), "`mean_entropy` is not the mean"),
    "another length": (column("num_tokens", lambda length: 77), "`num_tokens` is not the number"),
    "a large id": (column("input_ids", lambda ids: [100, *ids[1:]]), "row 0: a token id is null or outside"),
    "a negative id": (column("input_ids", lambda ids: [-1, *ids[1:]]), "row 0: a token id is null or outside"),
    "no id": (column("input_ids", lambda ids: [None, *ids[1:]]), "row 0: a token id is null or outside"),
    "no list": (column("input_ids", lambda ids: None), "row 0: has no list of tokens"),
    "rows of a receipt": (edited(RECEIPT, rows=3), f"{FILE}: its receipt says unit 2 and 3 rows"),
    "tokens of a receipt": (edited(RECEIPT, tokens=999), f"{FILE}: its receipt says 999 tokens, but it has"),
    "labels of a receipt": (fewer_labels, "labelled tokens, but it has"),
    "nats of a receipt": (edited(RECEIPT, nats=3.5), "its receipt says 3.5 nats"),
    "histogram of a receipt": (other_bins, "its receipt says ("),
    "size of a receipt": (edited(RECEIPT, size=3), "its receipt says 3"),
    "digest of a receipt": (edited(RECEIPT, sha256="0" * 64), f"{FILE}: is not what was written"),
    "unit of a receipt": (edited(RECEIPT, unit=3), f"{RECEIPT}: cannot be read (shard is '{SHARD}', which"),
    "no receipt": (lambda at: (at / RECEIPT).write_text("{}"), f"{RECEIPT}: cannot be read"),
    "a link to a shard": (linked(FILE), f"{FILE}: is a link"),
    "a link to a receipt": (linked(RECEIPT), f"{RECEIPT}: is a link"),
    "given up, and labelled": (given_up_too, f"{FILE}: the note on its quarantine contradicts"),
    "a growth that did not end": (grown, f"_ledger/{SUBSET}/growing: a run with a larger --limit was not completed"),
    "no card": (lambda at: (at / "README.md").unlink(), "README.md: is missing"),
    "a card of other files": (
        lambda at: _replaced(at / "README.md", "data/exact/**", "data/other/**"),
        "README.md: lists other files for exact",
    ),
    "a card of other shards": (
        lambda at: _replaced(at / "README.md", "labels, shards ", f"labels, shards {'0' * 64}\n  x: "),
        "README.md: has the digest of other shards of exact",
    ),
    "a card of another subset": (
        lambda at: _replaced(at / "README.md", "config_name: exact", "config_name: other"),
        "README.md: has no readable entry for exact",
    ),
}


def _replaced(file: Path, old: str, new: str) -> None:
    content = file.read_text(encoding="utf-8")
    assert old in content
    file.write_text(content.replace(old, new), encoding="utf-8")


def _wide(table: pa.Table) -> tuple[int, pa.Field, pa.ChunkedArray]:
    kind = pa.list_(pa.int64())
    return table.schema.get_field_index("input_ids"), pa.field("input_ids", kind), table.column("input_ids").cast(kind)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_is_the_only_one(name: str, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant, told = FAULTS[name]
    plant(dataset)
    code, (fault, last) = verified(dataset, capsys)
    assert code == 1 and told in fault, fault
    assert last in (
        "exact: 1 of 6 shards is bad",
        "exact: 1 of 6 shards is missing",
        "exact: 1 of 7 shards is bad",
        "exact: 0 of 6 shards are bad, 1 other fault",
    )


def test_a_damaged_plan_is_a_fault_and_shards_are_still_checked(
    dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (dataset / PLAN).write_text('{"run": ', encoding="utf-8")
    flipped(dataset)
    code, lines = verified(dataset, capsys)
    assert code == 1
    assert [line.partition(":")[0] for line in lines] == [PLAN, FILE, "exact"]


def test_quarantined_units_are_reported_and_are_not_faults(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both_gone(dataset)
    given_up_too(dataset)
    card = (dataset / "README.md").read_text(encoding="utf-8")
    (dataset / "README.md").write_text(re.sub(", shards [0-9a-f]{64}", "", card), encoding="utf-8")
    code, (given_up, last) = verified(dataset, capsys)
    assert code == 0
    assert given_up == f"{FILE}: was quarantined and has no shard: unit 2, rows 4 to 6 of in.parquet: wrong"
    assert re.fullmatch(r"exact: 5 shards and 1 quarantined, 10 documents, \d+ tokens: all match their receipts", last)


def test_labels_without_a_ledger_are_checked_as_far_as_possible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = [[3, 1, 4], [], [1, 5, 9, 2], [6]]
    write_annotated(tmp_path, tokens, [[0.5] * len(ids) for ids in tokens], shards=2, tokenizer_sha256=None)
    code, lines = verified(tmp_path, capsys)
    assert code == 0
    assert lines == [
        "exact: there is no ledger, so the bytes of its shards cannot be checked",
        "exact: 2 shards, 4 documents, 8 tokens: all are valid, as far as can be told without receipts",
    ]
    file = tmp_path / DATA / shard_name(1, 2)
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    code, (_, fault, last) = verified(tmp_path, capsys)
    assert code == 1 and fault.startswith(f"{DATA}/{shard_name(1, 2)}: is not a readable Parquet file")
    assert last == "exact: 1 of 2 shards is bad"


def test_nothing_is_verified_while_a_run_is_at_work(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(dataset):
        for repair in (False, True):
            with pytest.raises(ValueError, match=r"another run is writing to .*; wait for it"):
                verified(dataset, capsys, repair=repair)
    assert verified(dataset, capsys)[0] == 0
    assert {file.name for file in (dataset / "_ledger").iterdir()} == {"exact", "lock"}


def test_verifying_writes_nothing(dataset: Path, capsys: pytest.CaptureFixture[str], run_command: RunCommand) -> None:
    before = {file: file.stat().st_mtime_ns for file in dataset.rglob("*")}
    assert run_command("pipeline.verify", dataset, "--sample", 0) == 0
    assert {file: file.stat().st_mtime_ns for file in dataset.rglob("*")} == before


def test_a_fault_is_one_line_whatever_the_name(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dataset / DATA / "a\n\x1b[2J.parquet").touch()
    code, (fault, _) = verified(dataset, capsys)
    assert code == 1 and fault.startswith(f"{DATA}/a\\n\\x1b[2J.parquet: is not a shard of this run")
