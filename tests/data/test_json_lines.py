"""JSON as rows: any objects become rows, whatever they hold, and any range of them reads the same."""

import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import batches
from pipeline.data.json_lines import TOKENS, converter, merged, rows_between, scan
from pipeline.data.json_objects import parsed
from pipeline.data.utf8 import MalformedError

TEXT = pa.field("text", pa.string())
IDS = pa.field("ids", TOKENS)
ANY_TEXT = st.text(st.characters(categories=["L", "N", "Cs", "Cc", "So"]), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | ANY_TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3))
ROWS = st.lists(st.dictionaries(st.sampled_from(["text", "a", "b", "é"]), VALUES, max_size=4), max_size=8)
BLANK_LINES = st.sampled_from([b"\n", b" \t\r\n"])


def written(rows: list[dict[str, Any]], *, escaped: bool = True) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=escaped).encode() + b"\n" for row in rows)


def table(content: bytes, start: int = 0, stop: int = 10**9, required: pa.Field = TEXT) -> pa.Table:
    found = scan(io.BytesIO(content), required)
    types = {name: merged([kind]) for name, kind in found.types.items()}
    schema = pa.schema([*{**types, required.name: required.type}.items()])
    return pa.Table.from_batches(rows_between(io.BytesIO(content), start, stop, schema, required.name), schema)


def whole(value: Any) -> Any:
    """The value with U+FFFD in place of every lone surrogate; two that are a pair are the character they stand for."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [whole(part) for part in value]
    return {whole(key): whole(part) for key, part in value.items()} if isinstance(value, dict) else value


def expected(value: Any, kind: pa.DataType, name: str) -> Any:
    """What a value becomes in a column, told apart case by case."""
    if isinstance(value, str):
        return value if pa.types.is_string(kind) else None
    if value is None or name == "text":
        return None
    if pa.types.is_string(kind):
        return json.dumps(value, ensure_ascii=False)
    return float(value) if pa.types.is_floating(kind) else value


@settings(max_examples=150, deadline=None)
@given(ROWS, st.booleans())
@example([{"a": "\ud800\udc00"}], True)
def test_any_values_are_read(rows: list[dict[str, Any]], escaped: bool) -> None:
    rows = [*rows, {"text": "there"}]
    clean = [whole(row) for row in rows]
    read = table(written(rows) if escaped else written(clean, escaped=False))
    read.validate(full=True)
    kinds = {field.name: field.type for field in read.schema}
    wanted = [{name: expected(row.get(name), kind, name) for name, kind in kinds.items()} for row in clean]
    assert repr(read.to_pylist()) == repr(wanted)  # NaN is not equal to itself


@settings(max_examples=100, deadline=None)
@given(ROWS, st.lists(BLANK_LINES, max_size=4), st.integers(0, 12), st.integers(0, 12), st.integers(1, 5), st.data())
def test_any_range_is_that_of_the_whole(
    rows: list[dict[str, Any]], blank: list[bytes], start: int, stop: int, batch: int, data: st.DataObject
) -> None:
    rows = [*rows, {"text": "there"}]
    lines = data.draw(st.permutations([*written(rows).splitlines(keepends=True), *blank]))
    content = b"".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "ROWS_PER_BATCH", batch)
        part = table(content, start, stop)
    kept = len(rows)
    assert scan(io.BytesIO(content), TEXT).rows == kept
    assert part.num_rows == max(0, min(stop, kept) - start)
    assert repr(part.to_pylist()) == repr(table(content).slice(start, max(0, stop - start)).to_pylist())
    assert all(len(rows) <= batch for rows in part.to_batches())


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, True], pa.bool_()),
        ([1, -(2**63), 2**63 - 1], pa.int64()),
        ([1, 2**63], pa.string()),
        ([1, 2.5, None], pa.float64()),
        (["a", None], pa.string()),
        ([1, True], pa.string()),
        (["a", 1], pa.string()),
        ([[1]], pa.string()),
        ([{"b": 1}], pa.string()),
        (["2026-01-01", "2026-01-02T00:00:00Z"], pa.string()),
        ([None, None], pa.null()),
    ],
)
def test_types_are_those_of_all_values(values: list[Any], kind: pa.DataType) -> None:
    rows = [{"x": value, "text": ""} for value in values]
    assert scan(io.BytesIO(written(rows)), TEXT).types == {"x": kind, "text": pa.string()}


def test_text_stays_and_other_values_become_json() -> None:
    values = ["a", 1, 2**70, None, [1, "é"], {"b": None}, True, 0.5]
    read = table(written([{"text": "t", "x": value} for value in values]))
    assert read.column("x").to_pylist() == ["a", "1", str(2**70), None, '[1, "é"]', '{"b": null}', "true", "0.5"]


def test_columns_stand_in_the_order_of_first_sight() -> None:
    content = written([{"b": 1}, {"text": "t", "a": 1}, {"c": 1, "b": 2}])
    assert list(scan(io.BytesIO(content), TEXT).types) == ["b", "text", "a", "c"]


def test_the_digest_is_of_the_content() -> None:
    content = b"\n [" + written([{"text": "t"}]) + b"]\n \n"
    assert scan(io.BytesIO(content), TEXT).sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("value", "told"),
    [(1, "numbers"), (["a"], "objects or lists"), ({"a": "b"}, "objects or lists"), (True, "true or false")],
)
def test_only_text_is_text(value: Any, told: str) -> None:
    with pytest.raises(MalformedError, match=f"^holds {told} in column `text`, not text; name one that does"):
        scan(io.BytesIO(written([{"text": value}, {"text": None}, {}])), TEXT)
    assert table(written([{"text": value}, {"text": "a"}])).column("text").to_pylist() == [None, "a"]


@pytest.mark.parametrize(
    ("rows", "types"),
    [
        ([{"text": None}, {"a": 1}], {"text": pa.string(), "a": pa.int64()}),
        ([{"a": 1}], {"a": pa.int64()}),
        ([{}], {}),
        ([], {"text": pa.string()}),
    ],
)
def test_nulls_are_text_where_the_key_is_there(rows: list[dict[str, Any]], types: dict[str, pa.DataType]) -> None:
    assert scan(io.BytesIO(written(rows)), TEXT).types == types


def test_only_lists_of_integers_are_tokens() -> None:
    values = [[1, 2**40], [], None, "a", [1, None], [1.0], [True], [2**63], [[1]], 5]
    read = table(written([{"ids": value} for value in values]), required=IDS).column("ids").to_pylist()
    assert read == [[1, 2**40], [], *[None] * 8]


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [
        ([pa.null()], pa.string()),
        ([pa.null(), pa.int64()], pa.int64()),
        ([pa.int64(), pa.float64(), pa.int64()], pa.float64()),
        ([pa.bool_(), pa.int64()], pa.string()),
        ([pa.float64(), pa.string()], pa.string()),
        ([TOKENS, TOKENS], TOKENS),
    ],
)
def test_types_of_several_files_are_merged(kinds: list[pa.DataType], kind: pa.DataType) -> None:
    assert merged(kinds) == kind


@settings(max_examples=200, deadline=None)
@given(VALUES, st.sampled_from([pa.bool_(), pa.int64(), pa.float64(), pa.string(), TOKENS]), st.booleans())
def test_a_value_fits_its_column_or_is_null(value: Any, kind: pa.DataType, exactly: bool) -> None:
    whole_value = parsed(written([{"x": value}])).get("x")
    pa.array([converter(kind, exactly=exactly)(whole_value)], kind).validate(full=True)


def test_a_batch_has_so_many_bytes_as_far_as_single_rows_allow() -> None:
    lengths = [10_000_000, 1, 1_500_000, 1_500_000, 1, 3_000_000, *[5] * 5000]
    content = written([{"text": "a" * length} for length in lengths])
    read = list(rows_between(io.BytesIO(content), 0, len(lengths), pa.schema([TEXT]), "text"))
    assert [len(rows) for rows in read] == [1, 2, 2, 1, 4096, 904]
    assert [len(text) for rows in read for text in rows.column(0).to_pylist()] == lengths
