"""A unit from its rows to its shard: any kind of row, the counts, and bounded memory."""

import json
import math
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.atomic import UNFINISHED
from pipeline.data.counts import histogram
from pipeline.data.documents import Column
from pipeline.data.files import find_files
from pipeline.data.ledger import Ledger
from pipeline.data.tokenizer import load_tokenizer
from pipeline.engine.annotator import Annotator, OutputError, SourceError
from pipeline.engine.plan import Run, Unit, inspect, plan_units
from pipeline.models.checkpoint import SHIPPED
from schemas.annotations import annotated_schema
from schemas.layout import Subset
from schemas.receipts import BIN_NATS, BINS, Counts, Receipt
from tests.builders import PROVENANCE, write_documents
from tests.engine.fakes import changed, load_fake, planned_run, token_rows

TOKENIZER = SHIPPED / "tokenizer"
TEXTS = st.text(max_size=40) | st.sampled_from(["", "a\0b", "\ud800 lone \udfff", "🙂" * 9, "<|endoftext|>"])
BAD = st.none() | st.integers() | st.booleans() | st.lists(st.text(max_size=3), max_size=3) | st.floats(allow_nan=False)


def text_run(folder: Path, file: Path, rows_per_unit: int = 4) -> tuple[Run, list[Unit]]:
    """Plan a run over text documents, with the shipped tokenizer and made-up labels."""
    source = inspect(find_files([str(file)]), Column())
    units = plan_units(source, rows_per_unit=rows_per_unit, limit=None)
    provenance = replace(PROVENANCE, vocabulary=8192, window=16, overlap=8, keep_text=True)
    schema = annotated_schema(source.schema, provenance)
    subset = Subset("exact", folder / "out")
    return Run(subset, (), TOKENIZER, (None,), provenance, source.schema, schema, len(units)), units


def annotated(run: Run, units: Sequence[Unit]) -> list[dict[str, Any]]:
    annotator = load_fake(run)
    for unit in units:
        annotator.annotate(unit)
    shards = sorted(run.subset.data.iterdir())
    return [row for shard in shards for row in pq.read_table(shard).to_pylist()]


def repaired(text: object) -> str | None:
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text) if isinstance(text, str) else None


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(TEXTS | BAD, min_size=1, max_size=12))
def test_any_row_of_json_lines_becomes_a_row(tmp_path_factory: pytest.TempPathFactory, rows: list[object]) -> None:
    folder = tmp_path_factory.mktemp("run")
    lines = [json.dumps({"text": "x", "id": -1}), *(json.dumps({"text": row, "id": n}) for n, row in enumerate(rows))]
    (folder / "in.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run, units = text_run(folder, folder / "in.jsonl")
    found = annotated(run, units)
    tokenizer = load_tokenizer(TOKENIZER)
    assert [row["id"] for row in found] == [-1, *range(len(rows))]
    assert [row["text"] for row in found] == ["x", *map(repaired, rows)]
    for row in found:
        assert row["input_ids"] == tokenizer.encode(row["text"] or "", add_special_tokens=False).ids
        assert len(row["entropy"]) == len(row["input_ids"]) == row["num_tokens"]
    without = sum(receipt.counts.rows_without_text for receipt in Ledger(run.subset).receipts())
    assert without == sum(not row["text"] for row in found)


@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.none() | TEXTS, min_size=1, max_size=12))
def test_any_row_of_parquet_becomes_a_row(tmp_path_factory: pytest.TempPathFactory, rows: list[str | None]) -> None:
    """A string column of Parquet may hold any bytes, including lone surrogates."""
    folder = tmp_path_factory.mktemp("run")
    stored = pa.array([None if row is None else row.encode(errors="surrogatepass") for row in rows], pa.binary())
    unchecked = pa.StringArray.from_buffers(len(stored), *stored.buffers()[1:], stored.buffers()[0])
    pq.write_table(pa.table({"text": unchecked}), folder / "in.parquet")
    run, units = text_run(folder, folder / "in.parquet")
    found = annotated(run, units)
    assert len(found) == len(rows)
    for row, text in zip(found, rows, strict=True):
        assert (row["text"] is None) == (text is None)
        assert len(row["entropy"]) == len(row["input_ids"])
        assert "\ud800" not in (row["text"] or "") or "\ufffd" in row["text"]


@pytest.mark.long
def test_four_megabytes_of_one_character_and_thirty_thousand_words(tmp_path: Path) -> None:
    texts = ["a" * 4_000_000, *(f"word{row}" for row in range(30_000)), "end"]
    run, units = text_run(tmp_path, write_documents(tmp_path / "in.parquet", texts), rows_per_unit=12_000)
    annotator = load_fake(changed(run, window=256, overlap=128, keep_text=False))
    receipts = [annotator.annotate(unit)[0] for unit in units]
    assert [receipt.counts.rows for receipt in receipts] == [12_000, 12_000, 6_002]
    longest = pq.read_table(run.subset.data / receipts[0].shard).slice(0, 1).to_pylist()[0]
    assert longest["num_tokens"] == len(longest["entropy"]) > 100_000
    assert load_tokenizer(TOKENIZER).decode(longest["input_ids"]) == texts[0]


def test_the_columns_that_were_named_are_read_and_passed_on(tmp_path: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", ["one", "two"], url=["a", "b"], id=[1, 2])
    run, units = text_run(tmp_path, file)
    named = changed(run, columns=("id",), keep_text=False)
    assert [set(row) - {"entropy", "mean_entropy", "num_tokens", "input_ids"} for row in annotated(named, units)] == [
        {"id"},
        {"id"},
    ]


def test_counts_are_those_of_the_shard(tmp_path: Path) -> None:
    file = write_documents(tmp_path / "in.parquet", ["The sea", None, "", "wide \ufffd"])
    run, units = text_run(tmp_path, file)
    receipt, stages, _ = load_fake(run).annotate(units[0])
    assert sum(receipt.counts.histogram) == receipt.counts.labelled_tokens and len(receipt.counts.histogram) == BINS
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert receipt.size == (run.subset.data / receipt.shard).stat().st_size
    rows = pq.read_table(run.subset.data / receipt.shard).to_pylist()
    assert Ledger(run.subset).receipts() == [receipt]
    assert (receipt.counts.rows, receipt.counts.rows_without_text, receipt.counts.text_bytes) == (4, 2, 15)
    assert receipt.counts.rows_with_replacements == 1
    before = json.loads(receipt.to_json())
    del before["counts"]["rows_with_replacements"]  # older receipts lack it
    assert Receipt.from_json(json.dumps(before)) == replace(
        receipt, counts=replace(receipt.counts, rows_with_replacements=0)
    )
    assert receipt.counts.tokens == receipt.counts.labelled_tokens == sum(len(row["input_ids"]) for row in rows)
    assert receipt.counts.nats == pytest.approx(sum(sum(row["entropy"]) for row in rows))
    assert 0 < stages.batch_fill <= 1 and 0 <= stages.device_wait < 1 and all(s >= 0 for s in stages.seconds.values())


class Broken(Annotator):
    """Annotator that fails whenever it labels."""

    def label(self, chunk: Any, stages: Any, progress: Any) -> Any:
        raise RuntimeError("the device is gone")


@pytest.mark.parametrize("stage", ["read", "label", "write"])
def test_a_stage_that_fails_ends_the_unit_and_leaves_nothing(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_documents(tmp_path / "in.parquet", ["text"] * 8, input_ids=token_rows(8))
    run, units = planned_run(tmp_path / "out", [file], rows_per_unit=8)
    annotator = load_fake(run)
    if stage == "label":
        annotator = Broken(run, annotator.labellers, None)

    def fail(*_: object, **__: object) -> None:
        raise ConnectionError("no answer from https://host/file?X-Amz-Signature=abc123")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.engine.annotator.read_rows", fail) if stage == "read" else None
    monkeypatch.setattr("pipeline.data.atomic.os.fsync", full) if stage == "write" else None
    expected = {"read": SourceError, "label": RuntimeError, "write": OutputError}[stage]
    with pytest.raises(expected) as failure:
        annotator.annotate(units[0])
    assert "abc123" not in str(failure.value)
    assert not list(run.subset.root.rglob(f"*{UNFINISHED}")) and not list(run.subset.root.rglob("*.parquet"))
    assert annotator.device_lock.acquire(blocking=False), "the device is still held"


@pytest.mark.long
def test_memory_does_not_grow_with_the_unit(tmp_path: Path) -> None:
    """Units of 2,000 and of 3,500 rows take about the same memory.

    A worker holds at most seven chunks of rows at once. Seven chunks hold about 1,800 rows of the size in this test, so
    both units have more rows than a worker holds.
    """
    few, many = (peak_of_a_unit(tmp_path / str(rows), rows) for rows in (2000, 3500))
    assert many - few < 120 * 2**20, f"{few / 2**20:.0f} and {many / 2**20:.0f} MiB"


def peak_of_a_unit(folder: Path, rows: int) -> int:
    random = np.random.default_rng(0)
    texts = [random.bytes(2700).hex(" ") for _ in range(rows)]
    write_documents(folder / "in.parquet", texts)
    command = [sys.executable, "-m", "tests.engine.test_annotator", str(folder), str(rows)]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    there = Path(sys.argv[1])
    whole, (unit,) = text_run(there, there / "in.parquet", rows_per_unit=int(sys.argv[2]))
    load_fake(changed(whole, keep_text=False, window=1024)).annotate(unit)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@given(st.lists(st.floats(-5, 30, width=32)))
def test_a_histogram_counts_every_label_in_its_bin(nats: list[float]) -> None:
    ends = [-math.inf, *(BIN_NATS * place for place in range(BINS - 1)), math.inf]
    slow = tuple(sum(low <= value < high for value in nats) for low, high in pairwise(ends))
    assert histogram(np.array(nats, dtype=np.float32)) == slow


@given(st.lists(st.integers(0, 9)), st.lists(st.integers(0, 9)))
def test_histograms_add_up_whatever_their_lengths(one: list[int], other: list[int]) -> None:
    added = (Counts(histogram=tuple(one)) + Counts(histogram=tuple(other))).histogram
    assert added == tuple(map(sum, zip_longest(one, other, fillvalue=0)))
