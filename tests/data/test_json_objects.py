"""Objects of a JSON file, which has either one object per line or a single array of objects.

The objects are the same in any layout of white space. A file with other content is refused, and the error names the
line of this content.
"""

import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import json_objects
from pipeline.data.json_objects import objects, parsed
from pipeline.data.streams import MalformedError

MARK = b"\xef\xbb\xbf"
TEXT = st.text(st.characters(categories=["L", "N", "P", "Cc", "Cs", "So"]), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ROWS = st.lists(st.dictionaries(TEXT, VALUES, max_size=3), max_size=6)
SPACE = st.text(" \t\r\n", max_size=5)
ROW = b'{"text": "a"}'


def rows_of(content: bytes, start: int = 0, stop: int | None = None) -> list[dict[str, Any]]:
    return [found.row for found in objects(io.BytesIO(content), start, stop)]


def one_by_one(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Parse each object by itself. This is the simple implementation with which the fast one is compared."""
    return [parsed(json.dumps(row).encode()) for row in rows]


def spread(value: Any, space: Iterator[str]) -> str:
    """Write a value as JSON with white space wherever it is allowed."""
    if isinstance(value, dict):
        pairs = [f"{next(space)}{json.dumps(key)}{next(space)}:{spread(part, space)}" for key, part in value.items()]
        return f"{next(space)}{{{','.join(pairs)}{next(space)}}}{next(space)}"
    if isinstance(value, list):
        return f"{next(space)}[{','.join(spread(part, space) for part in value)}{next(space)}]{next(space)}"
    return f"{next(space)}{json.dumps(value)}{next(space)}"


@settings(max_examples=150, deadline=None)
@given(
    ROWS,
    st.lists(SPACE, min_size=1, max_size=7),
    st.booleans(),
    st.integers(5, 40),
    st.integers(0, 7),
    st.integers(0, 7),
)
@example([{"a": "\ud83d\ude00" * 9}, {"b": 1.5e300}], [""], True, 4, 0, 7)
def test_any_layout_of_an_array_gives_the_objects_of_lines(
    rows: list[dict[str, Any]], spaces: list[str], marked: bool, piece: int, start: int, stop: int
) -> None:
    space = iter(spaces * 999)
    content = (MARK if marked else b"") + spread(rows, space).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_objects, "PIECE", piece)
        assert rows_of(content) == one_by_one(rows)
        assert rows_of(content, start, stop) == one_by_one(rows)[start:stop]


@settings(max_examples=150, deadline=None)
@given(ROWS, SPACE, st.sampled_from(["\n", "\r\n", "\n\n \t\n"]), st.booleans(), st.integers(0, 7), st.integers(0, 7))
def test_any_layout_of_lines_gives_each_object(
    rows: list[dict[str, Any]], before: str, end: str, ends: bool, start: int, stop: int
) -> None:
    lines = end.join(json.dumps(row) for row in rows)
    content = f"{before}{lines}{end if ends else ''}".encode()
    assert rows_of(content) == one_by_one(rows)
    assert rows_of(MARK + content, start, stop) == one_by_one(rows)[start:stop]


@settings(max_examples=300, deadline=None)
@given(ROWS, st.booleans(), st.data())
def test_damaged_content_is_refused_or_read_as_python_reads_it(
    rows: list[dict[str, Any]], array: bool, data: st.DataObject
) -> None:
    """If a changed file is read, its objects must be those that Python's parser reads from the file or its lines."""
    content = bytearray(
        ("[\n%s\n]" if array else "%s\n").encode()
        % (b",\n" if array else b"\n").join(json.dumps(row, ensure_ascii=True).encode() for row in rows)
    )
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b",", b"]", b"[", b"{", b"\n", b"\xe4"])
        )
    try:
        read = rows_of(bytes(content))
    except MalformedError:
        return
    text = content.decode()
    whole = (
        json.loads(text)
        if text.lstrip().startswith("[")
        else [json.loads(x) for x in text.split("\n") if x.strip(" \t\r\x0b\x0c")]
    )
    assert read == one_by_one(whole)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            ROW + b",\n" + ROW,
            "is not JSON at line 1, column 14 (Extra data); write each object",
        ),
        (b"\n" + ROW + b"\n" + ROW + ROW, "is not JSON at line 3, column 14 (Extra data)"),
        (b'{\n"text": "a"\n}', "is not JSON at line 1, column 3"),
        (ROW + b'\n{"text": "b', "is not JSON at line 2, column 10 (Unterminated string starting at)"),
        (ROW + b"\nnull\n", "holds no JSON object in line 2, but `null`"),
        (ROW + b"\n[1]\n", "holds no JSON object in line 2, but `[1]`"),
        (b'"' + b"text" * 9 + b'"', 'holds no JSON object in line 1, but `"texttexttexttexttex…`'),
        (b"[[1]]", "has `[` in line 1 where an object must begin"),
        (b"[1,\n" + ROW + b"]", "has `1` in line 1 where an object must begin"),
        (b"[" + ROW + b",\n]", "has `]` in line 2 where an object must begin"),
        (b"[" + ROW + b"\n" + ROW + b"]", "has `{` in line 2 where `,` or `]` must be"),
        (b"[\n" + ROW + b",\n" + ROW, "has the end of the file in line 3 where `,` or `]` must be"),
        (b"[\n", "has the end of the file in line 2 where an object must begin"),
        (b"[" + ROW + b"]\n\n" + ROW, "has `{` in line 3 after the end of its array"),
        (b'[{"a":\n1,\n"b" 2}]', "is not JSON at line 3 (Expecting ':' delimiter)"),
        (b'[\n{"a": "b\n"}' + b" " * 99 + b"]", "is not JSON at line 2 (Invalid control character at)"),
        (
            b'[\n{"a": "\xe4"}]',
            "is not UTF-8 in line 2; convert it, for example with `iconv -f latin1",
        ),
        (
            ROW + b'\n{"a": "\xe4"}',
            "is not UTF-8 in line 2; convert it, for example with `iconv -f latin1",
        ),
        (b'{"n": ' + b"9" * 5000 + b"}", "is not JSON at line 1 (Exceeds the limit"),
        (b'[{"n": ' + b"9" * 5000 + b"}]", "is not JSON at line 1 (Exceeds the limit"),
        (b'{"n": ' + b"[" * 100_000, "is nested too deeply at line 1"),
        (b'[\n{"n": ' + b"[" * 100_000, "is nested too deeply at line 2"),
        ("[{}]".encode("utf-16"), "is UTF-16, not UTF-8; convert it, for example with `iconv -f utf-16 -t utf-8`"),
        ("{}\n".encode("utf-16-le"), "is UTF-16LE, not UTF-8; convert it, for example with `iconv -f utf-16le -t utf"),
    ],
)
@pytest.mark.parametrize("piece", [4, 7, 2**20])
def test_anything_else_is_refused(content: bytes, told: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_objects, "PIECE", piece)
    with pytest.raises(MalformedError) as refusal:
        rows_of(content)
    assert str(refusal.value).startswith(told)


@pytest.mark.parametrize("content", [b"", b"\n", MARK, MARK + b" \n\n", b"[]", b" \n[\n] \n", MARK + b"[]"])
def test_a_file_may_be_empty(content: bytes) -> None:
    assert rows_of(content) == []


@pytest.mark.parametrize(
    ("line", "row"),
    [
        (rb'{"text": "\ud800"}', {"text": "\ufffd"}),
        (rb'{"text": "\uDFFF!", "\ud83d": ["\ud83d"]}', {"text": "\ufffd!", "\ufffd": ["\ufffd"]}),
        (rb'{"text": "\ud83d\ude00 \\ud800"}', {"text": "\U0001f600 \\ud800"}),
        (rb'{"text": "a\u0000b"}', {"text": "a\0b"}),
        (MARK + ROW, {"text": "a"}),
    ],
)
def test_unusual_objects(line: bytes, row: dict[str, Any]) -> None:
    assert rows_of(line) == rows_of(b"[" + line.removeprefix(MARK) + b"]") == [row]


def test_files_with_marks_may_be_joined() -> None:
    assert rows_of(MARK + ROW + b"\n" + MARK + ROW + b"\n") == [{"text": "a"}] * 2


@pytest.mark.parametrize("between", [b",", b",\n\t"])
def test_an_array_is_read_in_the_memory_of_its_largest_object(between: bytes) -> None:
    long = json.dumps({"text": "word " * 500_000}).encode()
    content = b"[" + between.join([long, *[json.dumps({"text": "word " * 200}).encode()] * 40_000, long]) + b"]"
    assert len(content) > 40_000_000
    stream = io.BytesIO(content)
    tracemalloc.start()
    try:
        assert sum(1 for _ in objects(stream)) == 40_002
        assert tracemalloc.get_traced_memory()[1] < 25_000_000
    finally:
        tracemalloc.stop()
