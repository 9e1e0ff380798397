"""Bounded memory for untrusted files: small files that expand to hundreds of megabytes, each in its own process."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.annotated import write_annotated
from tests.peak import peak_of

DRIVER, WORKER = 2**30, 2**31  # bounds that docs/cluster.md states
MB = 10**6


def write_zst(file: Path, parts: Iterator[bytes]) -> Path:
    with file.open("wb") as stored, zstandard.ZstdCompressor(level=3).stream_writer(stored) as stream:
        for part in parts:
            stream.write(part)
    return file


def one_document(megabytes: int) -> Iterator[bytes]:
    yield b'{"text": "'
    yield from (b"x " * (MB // 2) for _ in range(megabytes))
    yield b'"}\n'


def write_bomb(folder: Path, name: str) -> Path:
    file = folder / name
    if name == "zeros.jsonl.zst":
        return write_zst(file, (bytes(MB) for _ in range(400)))
    if name == "document.jsonl.zst":
        return write_zst(file, one_document(400))
    if name == "lists.jsonl.zst":
        return write_zst(file, iter([b'{"text": "a", "x": [', *[b"[]," * (MB // 3)] * 30, b"[]]}\n"]))
    if name == "keys.jsonl.zst":
        keys = b",".join(b'"k%d":1' % number for number in range(MB))
        return write_zst(file, iter([b'{"text": "a",', keys, b"}\n"]))
    if name == "array.json.gz":
        with gzip.open(file, "wb", compresslevel=1) as stream:
            stream.write(b"[")
            for part in one_document(200):
                stream.write(part)
    if name == "text.txt.zst":
        return write_zst(file, (b"x " * (MB // 2) for _ in range(400)))
    return file


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("zeros.jsonl.zst", "holds no JSON object in line 1"),
        ("document.jsonl.zst", "has only lines that are too long"),
        ("lists.jsonl.zst", "has only lines that are too long"),
        ("keys.jsonl.zst", "has more than 10,000 columns"),
        ("array.json.gz", "has an object in line 1 that is too long to be read from an array"),
        ("text.txt.zst", "1 rows"),
    ],
)
def test_a_driver_stays_below_a_gibibyte(tmp_path: Path, name: str, outcome: str) -> None:
    file = write_bomb(tmp_path, name)
    assert file.stat().st_size < 2 * MB
    peak = peak_of("plan", file)
    assert outcome in peak.outcome and peak.size < DRIVER, peak


@pytest.mark.long
def test_a_worker_stays_below_two_gibibytes(tmp_path: Path) -> None:
    """The file has a document that is too long, a document of a single word, and a long value repeated in many rows."""
    texts = ["the cat sat " * 2_500_000, "~" * 4000, *["y" * 10_000_000] * 50, "a"]
    pq.write_table(pa.table({"text": texts, "html": texts}), tmp_path / "a.parquet", compression="zstd")
    peak = peak_of("annotate", tmp_path / "a.parquet", timeout=300)
    assert peak.outcome == f"exit 0, {len(texts)} rows, 51 too long" and peak.size < WORKER, peak


@pytest.mark.slow
def test_ten_gigabytes_of_zeros_are_refused_as_soon_as_a_few(tmp_path: Path) -> None:
    for name, beginning in (("zeros.jsonl.zst", b""), ("zeros.txt.zst", b""), ("object.jsonl.zst", b'{"text": "a')):
        file = write_zst(tmp_path / name, (part for part in (beginning, *[bytes(10 * MB)] * 1000) if part))
        peak = peak_of("plan", file, timeout=300)
        assert peak.size < DRIVER, peak


@pytest.mark.slow
def test_the_longest_document_fits_a_worker(tmp_path: Path) -> None:
    """The document has one token per byte, and takes a minute or two."""
    texts = ["~^|`" * 2**20]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", compression="zstd")
    peak = peak_of("annotate_fast", tmp_path / "a.parquet", timeout=900)
    assert peak.outcome == "exit 0, 1 rows, 0 too long" and peak.size < WORKER, peak


def test_a_report_follows_no_column(tmp_path: Path) -> None:
    rows = 300
    folder = write_annotated(tmp_path / "set", [[1, 2, 3]] * rows, [[1.0, 1.0, 1.0]] * rows)
    (shard,) = (folder / "data" / "exact").glob("*.parquet")
    table = pq.read_table(shard)
    html = pa.array([f"{row}" + "x" * MB for row in range(rows)])
    pq.write_table(
        table.append_column("html", html).replace_schema_metadata(table.schema.metadata), shard, row_group_size=10
    )
    peak = peak_of("report", folder)
    assert "bytes" in peak.outcome and peak.size < 2**29, peak
