"""Files of documents: sound and damaged files of every format, and random bytes under every file name."""

import bz2
import gzip
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st

from pipeline.data.documents import Column, inspect_file, read_rows, unified
from pipeline.data.files import find_files
from tests.fuzz.kind import Kind

TEXT = Column(longest=64)  # so that some documents are too long
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=100)
    | st.sampled_from(["\ud800", "\0", "\u2028", "\ufeff", "\ufffd"])
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
SOUND = st.fixed_dictionaries(
    {"text": st.none() | st.text(max_size=100)}, optional=dict.fromkeys(["n", "", "x.y", "é"], VALUES)
)
ANY = st.dictionaries(st.sampled_from(["text", "n"]), VALUES, max_size=4)
ROWS = st.lists(SOUND, max_size=8) | st.lists(SOUND | ANY, max_size=4)
MARKS = st.sampled_from(
    [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"[", b"]", b",", b"{", b'"', b"\0", b"1e999", b"NaN"]
)
PARTS = st.lists(MARKS | st.binary(max_size=12) | ROWS.map(lambda rows: json.dumps(rows).encode()), max_size=6)

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": lambda content: gzip.compress(content, 1),
    ".zst": zstandard.ZstdCompressor(level=1).compress,
    ".bz2": bz2.compress,
    ".xz": lambda content: lzma.compress(content, preset=0),
}


def lines_of(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Draw a sound file or a damaged file. `whole` draws the sound files.

    A damaged file has a few bytes changed, removed or inserted, and may be cut short.
    """
    content = bytearray(draw(whole))
    changes = draw(st.sampled_from([0, 0, 1, 1, 2, 3]))
    if not changes:
        return bytes(content)
    for _ in range(changes):
        at, size = draw(st.integers(0, len(content))), draw(st.integers(0, 8))
        content[at : at + size] = draw(st.binary(max_size=8))
    return bytes(content[: draw(st.none() | st.integers(0, len(content)))])


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    """Draw a Parquet file with a column of texts and, in some draws, a column of nested values.

    The type of the texts, the compression, the size of row groups, the use of dictionaries and the version of data
    pages are drawn too.
    """
    texts = draw(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=100), max_size=12))
    columns = {"text": pa.array(texts, draw(st.sampled_from([pa.string(), pa.large_string()])))}
    if draw(st.booleans()):
        columns["n"] = pa.array([[{"a": row}] * (row % 3) for row in range(len(texts))])
    stream = io.BytesIO()
    pq.write_table(
        pa.table(columns),
        stream,
        compression=draw(st.sampled_from(["none", "zstd", "gzip", "snappy"])),
        row_group_size=draw(st.integers(1, 5)),
        use_dictionary=draw(st.booleans()),
        data_page_version=draw(st.sampled_from(["1.0", "2.0"])),
    )
    return stream.getvalue()


def use_file(name: str) -> Callable[[Path, bytes], str]:
    """Return a function that plans and reads a file of this name as annotation does.

    The number of rows that are read must equal the planned number of rows.
    """

    def use(folder: Path, content: bytes) -> str:
        (folder / name).write_bytes(content)
        (file,) = find_files([str(folder / name)])
        layout = inspect_file(file, TEXT)
        schema = unified([layout], [file], TEXT)
        # A damaged footer may state any number of rows, with or without values.
        batches = list(read_rows(file, 0, min(layout.rows, 10**6), schema, TEXT))
        for batch in batches:
            batch.validate(full=True)
            assert all(len((text or "").encode()) <= TEXT.longest for text in batch.column("text").to_pylist())
        assert sum(map(len, batches)) == layout.rows, "rows were lost"
        return "read" if layout.rows else "empty"

    return use


def _kinds() -> tuple[Kind, ...]:
    kinds = [Kind("parquet", damaged(tables()), use_file("a.parquet"))]
    kinds.append(
        Kind("parquet bytes", st.binary(max_size=200).map(lambda some: b"PAR1" + some + b"PAR1"), use_file("a"))
    )
    for end, pack in PACK.items():
        named = end.lstrip(".") or "plain"
        lines = st.one_of(ROWS.map(lines_of), ROWS.map(lines_of), PARTS.map(b"".join))
        arrays = ROWS.map(lambda rows: json.dumps(rows).encode()) | PARTS.map(lambda parts: b"[" + b"".join(parts))
        for what, stored, name in (
            ("lines", lines, f"a.jsonl{end}"),
            ("array", arrays, f"a.json{end}"),
            ("text", st.text().map(str.encode) | st.binary(), f"a.txt{end}"),
        ):
            kinds.append(Kind(f"{what} {named}", damaged(stored.map(pack)) | damaged(stored).map(pack), use_file(name)))
    return tuple(kinds)


FORMATS = _kinds()
