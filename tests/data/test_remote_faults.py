"""Stores that fail: readers raise a ConnectionError that names the file, and never report an intact file as damaged."""

import gzip
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import aiohttp
import fsspec.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.documents import Column, inspect_file, read_rows
from pipeline.data.files import find_files
from tests.file_server import Faults, FileHandler, file_server, serving

TEXT, SCHEMA = Column(), pa.schema([("text", pa.string())])
TEXTS = [
    f"{row} " * 400 for row in range(4000)
]  # 8 MB, which no reader has read completely when it yields the first rows


def parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": TEXTS}), sink, row_group_size=500, compression="none", use_dictionary=False)
    return bytes(sink.getvalue())


LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
CONTENT = {"/a.parquet": parquet(), "/b.jsonl": LINES, "/c.jsonl.gz": gzip.compress(LINES, compresslevel=0)}


@dataclass
class Store:
    """A server of the files in CONTENT: the server's address, its faults, and the function that stops the server."""

    address: str
    faults: Faults
    close: Callable[[], None]


@pytest.fixture
def store() -> Iterator[Store]:
    with ExitStack() as server:
        faults = Faults()
        yield Store(server.enter_context(file_server({**CONTENT}, faults)), faults, server.close)


def drop(store: Store) -> None:
    store.faults.bytes_sent = 1000


def cut_short(store: Store) -> None:
    store.faults.bytes_sent, store.faults.tells_length = 0, False


def refuse(store: Store) -> None:
    store.faults.status = 503


def go_away(store: Store) -> None:
    store.close()


@pytest.mark.parametrize("path", CONTENT)
@pytest.mark.parametrize(
    ("fail", "reason"),
    [
        (drop, "Response payload is not completed: .*received 1000 of"),
        (cut_short, r"the connection ended \d+ bytes early"),
        (refuse, "503, message='Service Unavailable'"),
        (go_away, "Cannot connect to host 127.0.0.1"),
    ],
)
def test_a_store_that_fails_between_rows_is_distinguished_from_damage(
    store: Store, path: str, fail: Callable[[Store], None], reason: str
) -> None:
    (file,) = find_files([store.address + path])
    rows = read_rows(file, 0, len(TEXTS), SCHEMA, TEXT)
    first = next(rows).column("text").to_pylist()
    assert first == TEXTS[: len(first)]
    fail(store)
    with pytest.raises(ConnectionError, match=rf"^cannot reach {file.url}: {reason}.*$") as failure:
        list(rows)
    assert failure.value.__cause__ is None and failure.value.__suppress_context__


@pytest.mark.parametrize(("fail", "reason"), [(refuse, "503"), (go_away, "Cannot connect")])
@pytest.mark.parametrize("path", CONTENT)
def test_a_store_that_cannot_be_reached_is_named(
    store: Store, path: str, fail: Callable[[Store], None], reason: str
) -> None:
    url = store.address + path
    (file,) = find_files([url])
    fail(store)
    for look in (
        lambda: find_files([url]),
        lambda: inspect_file(file, TEXT),
        lambda: next(read_rows(file, 0, 1, SCHEMA, TEXT)),
    ):
        with pytest.raises(ConnectionError, match=f"^cannot reach {url}: {reason}.*$"):
            look()
    with pytest.raises(ConnectionError, match=rf"^cannot reach {store.address}/\*.parquet: {reason}.*$"):
        find_files([f"{store.address}/*.parquet"])


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_missing_file_in_a_store_is_not_a_failure_of_the_store(store: Store, status: int) -> None:
    (file,) = find_files([f"{store.address}/a.parquet"])
    store.faults.status = status
    with pytest.raises(ValueError, match=f"no documents at {file.url}: {status}"):
        find_files([file.url])
    with pytest.raises(FileNotFoundError, match=f"{file.url} has disappeared since it was found; put it back"):
        inspect_file(file, TEXT)


@pytest.mark.parametrize("status", [408, 429, 500])
def test_a_store_that_may_answer_later_is_a_failure(store: Store, status: int) -> None:
    store.faults.status = status
    with pytest.raises(ConnectionError, match=f"cannot reach {store.address}/a.parquet: {status}"):
        find_files([f"{store.address}/a.parquet"])


class Signed(FileHandler):
    """Handler that redirects every request to a URL with a credential."""

    files, faults = CONTENT, Faults()

    def do_GET(self) -> None:
        if "?" in self.path:
            super().do_GET()
        else:
            self.answer(302, b"", {"Location": f"{self.path}?X-Amz-Signature=abc123"})


@pytest.mark.parametrize("path", CONTENT)
def test_no_credential_is_shown(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Signed) as address:
        (file,) = find_files([address + path])
        rows = read_rows(file, 0, len(TEXTS), SCHEMA, TEXT)
        next(rows)
        monkeypatch.setattr(Signed, "faults", Faults(status=503))
        for look in (lambda: list(rows), lambda: find_files([file.url]), lambda: inspect_file(file, TEXT)):
            with pytest.raises(ConnectionError, match=r"\?X-Amz-Signature=\*\*\*") as failure:
                look()
            assert "abc123" not in str(failure.value)


class Slow(FileHandler):
    """Handler that answers after the client's timeout."""

    def do_GET(self) -> None:
        time.sleep(1)


def test_a_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    soon = {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=0.1)}}
    monkeypatch.setitem(fsspec.config.conf, "http", soon)
    with serving(Slow) as address, pytest.raises(ConnectionError, match=f"cannot reach {address}/a.jsonl: Timeout"):
        find_files([f"{address}/a.jsonl"])


class Whole(FileHandler):
    """Handler that serves only whole files."""

    files = CONTENT

    def answer_content(self, content: bytes, headers: dict[str, str]) -> None:
        self.answer(200, content, {**headers, "Accept-Ranges": "none"})


def test_only_lines_are_read_from_a_store_that_serves_no_parts_of_files() -> None:
    with serving(Whole) as address:
        table, lines = find_files([f"{address}/a.parquet", f"{address}/c.jsonl.gz"])
        read = [text for rows in read_rows(lines, 0, 9999, SCHEMA, TEXT) for text in rows.column("text").to_pylist()]
        assert read == TEXTS
        with pytest.raises(ValueError, match=rf"{table.url} cannot be read \(Cannot seek .*\); name a copy on a disk"):
            inspect_file(table, TEXT)
