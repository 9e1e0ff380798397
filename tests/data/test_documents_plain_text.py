"""Plain text: each file is one document, local or remote, with any compression."""

import bz2
import gzip
import hashlib
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.documents import PLAIN_TEXT, Column, inspect_file, iterate_rows, read_rows, unified
from pipeline.data.files import find_files
from pipeline.data.skipped import too_long_rows
from tests.file_server import file_server

TEXT = Column()
STORED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
    ".zstd": lambda content: pa.compress(content, "zstd", asbytes=True),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def put(folder: Path, content: bytes, name: str = "a.txt") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def documents(named: str) -> list[str]:
    """Return the texts of a file, read as rows of a planned range and as a stream. Both ways must agree."""
    (file,) = find_files([named])
    layout = inspect_file(file, TEXT)
    assert (layout.rows, layout.groups, layout.schema) == (1, (1,), PLAIN_TEXT)
    (planned,) = read_rows(file, 0, 1, unified([layout], [file], TEXT), TEXT)
    (streamed,) = iterate_rows([file], TEXT)
    assert planned.select(["text"]) == streamed
    assert planned.column("id").to_pylist() == planned.column("file").to_pylist() == [file.name]
    planned.validate(full=True)
    texts: list[str] = planned.column("text").to_pylist()
    return texts


def is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@settings(max_examples=80, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=60), st.sampled_from(sorted(STORED)))
@example("", "")
@example("one\r\ntwo\n\n\0\ufeffthree\u2028", ".gz")
@example("\ufeff", ".zst")
def test_any_text_is_one_document(tmp_path_factory: pytest.TempPathFactory, text: str, end: str) -> None:
    named = put(tmp_path_factory.mktemp("text"), STORED[end](text.encode()), f"a.txt{end}")
    assert documents(named) == [text.removeprefix("\ufeff")]


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=30), st.sampled_from(sorted(STORED)))
@example(b"caf\xe9", "")
@example(b"\xff\xfea\0", ".gz")
@example(b"a\xed\xa0\x80", "")
def test_bytes_that_are_not_text_are_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, end: str
) -> None:
    named = put(tmp_path_factory.mktemp("bytes"), STORED[end](content), f"a.md{end}")
    if is_text(content):
        assert documents(named) == [content.decode().removeprefix("\ufeff")]
        return
    with pytest.raises(ValueError, match=rf"{named} is (not UTF-8 in line|UTF-\d\d[BL]?E?, not UTF-8; convert)"):
        documents(named)
    with pytest.raises(ValueError, match="not UTF-8"):
        list(iterate_rows(find_files([named]), TEXT))


@pytest.mark.parametrize("name", ["a.txt", "A.TXT", "a.md", "a.text", "a.txt.gz", "a.Text.zst"])
def test_text_is_recognized_by_its_name(tmp_path: Path, name: str) -> None:
    content = STORED[Path(name).suffix if Path(name).suffix in STORED else ""](b"# A title\n")
    assert documents(put(tmp_path, content, name)) == ["# A title\n"]


def test_text_on_the_web_is_read(tmp_path: Path) -> None:
    files = {"/a.txt": "héllo".encode(), "/b.md.gz": gzip.compress(b"two"), "/c.txt": b"12\xff", "/empty.txt": b""}
    with file_server(files) as address:
        assert [documents(f"{address}{path}") for path in ("/a.txt", "/b.md.gz", "/empty.txt")] == [
            ["héllo"],
            ["two"],
            [""],
        ]
        with pytest.raises(ValueError, match=rf"{address}/c.txt is not UTF-8 in line 1"):
            documents(f"{address}/c.txt")


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    content = "\ufefftext".encode()
    named = [put(tmp_path, content), put(tmp_path, gzip.compress(content), "b.txt.gz")]
    digests = {inspect_file(file, TEXT).sha256 for file in find_files(named)}
    assert digests == {hashlib.sha256(content).hexdigest()}


def test_text_together_with_tables_has_no_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "b"}\n', encoding="utf-8")
    files = find_files([put(tmp_path, b"a"), str(tmp_path / "b.jsonl")])
    schema = unified([inspect_file(file, TEXT) for file in files], files, TEXT)
    assert schema == pa.schema([("text", pa.string())])
    assert [row for file in files for part in read_rows(file, 0, 1, schema, TEXT) for row in part.to_pylist()] == [
        {"text": "a"},
        {"text": "b"},
    ]


def test_only_the_first_row_exists(tmp_path: Path) -> None:
    (file,) = find_files([put(tmp_path, b"text")])
    assert [list(read_rows(file, *rows, PLAIN_TEXT, TEXT)) for rows in ((1, 2), (0, 0))] == [[], []]


@pytest.mark.parametrize("column", [Column("body"), Column("input_ids", tokenized=True)])
def test_text_has_no_other_column(tmp_path: Path, column: Column) -> None:
    (file,) = find_files([put(tmp_path, b"text")])
    for look in (lambda: inspect_file(file, column), lambda: next(iterate_rows([file], column))):
        with pytest.raises(ValueError, match=rf"a.txt has no column `{column.name}`; it has text, id, file"):
            look()


def test_text_that_is_too_long_is_a_row_without_text(tmp_path: Path) -> None:
    column = Column(longest=4)
    for content, expected in ((b"text", ("text", 0)), (b"texts", (None, 1)), ("t\u00e9xt".encode(), (None, 1))):
        (file,) = find_files([put(tmp_path, content)])
        assert inspect_file(file, column).sha256 == hashlib.sha256(content).hexdigest()
        (rows,) = read_rows(file, 0, 1, PLAIN_TEXT, column)
        assert (rows.to_pylist()[0]["text"], too_long_rows(rows)) == expected
        assert rows.to_pylist()[0]["id"] == "a.txt"


@pytest.mark.parametrize("end", [".gz", ".zst", ".bz2", ".xz"])
def test_a_truncated_file_is_refused(tmp_path: Path, end: str) -> None:
    named = put(tmp_path, STORED[end](bytes(range(97, 123)) * 9)[:-9], f"a.txt{end}")
    with pytest.raises(ValueError, match=rf"a.txt{end} is not a readable text file: .*[Tt]runcated"):
        documents(named)
