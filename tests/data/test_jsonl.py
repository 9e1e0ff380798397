"""JSON files as rows: objects with any values become rows, and a range of rows equals that range of the whole file."""

import hashlib
import io
import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data import iterators
from pipeline.data.columns import plain_field
from pipeline.data.jsonl import TOKENS, merged, rows_between, scan
from pipeline.data.streams import MalformedError

TEXT = pa.field("text", pa.string())
IDS = pa.field("ids", TOKENS)
ANY_TEXT = st.text(st.characters(categories=["L", "N", "Cs", "Cc", "So"]), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | ANY_TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3))
ROWS = st.lists(st.dictionaries(st.sampled_from(["text", "a", "b", "é"]), VALUES, max_size=4), max_size=8)
BLANK_LINES = st.sampled_from([b"\n", b" \t\r\n"])


def written(rows: list[dict[str, Any]], *, escaped: bool = True) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=escaped).encode() + b"\n" for row in rows)


def plain(types: dict[str, pa.DataType]) -> pa.Schema:
    return pa.schema([plain_field(pa.field(name, kind)) for name, kind in types.items()])


def table(content: bytes, start: int = 0, stop: int = 10**9, required: pa.Field = TEXT) -> pa.Table:
    schema = plain({**scan(io.BytesIO(content), required).types, required.name: required.type})
    return pa.Table.from_batches(rows_between(io.BytesIO(content), start, stop, schema, required.name), schema)


def whole(value: Any) -> Any:
    """Replace every surrogate pair in a value by the character that it encodes, and every lone surrogate by U+FFFD."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [whole(part) for part in value]
    return {whole(key): whole(part) for key, part in value.items()} if isinstance(value, dict) else value


def kind_of(values: list[Any], depth: int = 0) -> pa.DataType:
    """Return the type of a column of these values, determined from all values at once."""
    values = [value for value in values if value is not None]
    kinds = {type(value) for value in values}
    if not values:
        return pa.null()
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {str}:
        return pa.string()
    if kinds <= {int, float}:
        whole_numbers = {value for value in values if isinstance(value, int)}
        large = {value for value in whole_numbers if not -(2**63) <= value < 2**63}
        if any(0 <= value < 2**64 for value in large):
            return pa.json_()
        return pa.int64() if kinds == {int} and not large else pa.float64()
    if kinds == {list} and depth < 32:
        return pa.list_(kind_of([item for value in values for item in value], depth + 1))
    if kinds == {dict} and depth < 32 and len({frozenset(value) for value in values}) == 1 and values[0]:
        return pa.struct([(key, kind_of([value[key] for value in values], depth + 1)) for key in values[0]])
    return pa.json_()


def expected(value: Any, kind: pa.DataType) -> Any:
    """Return a value as it is read back from a column of this type."""
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.dumps(value, ensure_ascii=False)
    if pa.types.is_struct(kind):
        return {field.name: expected(value[field.name], field.type) for field in kind.fields}
    if pa.types.is_list(kind):
        return [expected(item, kind.value_type) for item in value]
    return float(value) if pa.types.is_floating(kind) else value


@settings(max_examples=300, deadline=None)
@given(ROWS, st.booleans())
@example([{"a": "\ud800\udc00"}], True)
@example([{"a": [{"b": 1}, {"b": None}]}, {"a": [{"b": 0.5}]}], True)
def test_any_values_are_read(rows: list[dict[str, Any]], escaped: bool) -> None:
    rows = [*rows, {"text": "there"}]
    clean = [whole(row) for row in rows]
    content = written(rows) if escaped else written(clean, escaped=False)
    names = dict.fromkeys(name for row in clean for name in row if name != "text")
    kinds = {name: kind_of([row.get(name) for row in clean]) for name in names}
    assert {name: kind for name, kind in scan(io.BytesIO(content), TEXT).types.items() if name != "text"} == kinds
    read = table(content)
    read.validate(full=True)
    texts = [row.get("text") if isinstance(row.get("text"), str) else None for row in clean]
    wanted = [{name: expected(row.get(name), kind) for name, kind in kinds.items()} for row in clean]
    assert read.column("text").to_pylist() == texts
    assert repr(read.select([*names]).to_pylist()) == repr(wanted)  # NaN is not equal to itself


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(0, 8))
def test_types_of_several_files_are_those_of_one(rows: list[dict[str, Any]], cut: int) -> None:
    with_text = [[*part, {"text": "there"}] for part in (rows, rows[:cut], rows[cut:])]
    parts = [scan(io.BytesIO(written(part)), TEXT).types for part in with_text]
    for name in parts[0].keys() - {"text"}:
        assert parts[0][name] == merged(parts[1].get(name, pa.null()), parts[2].get(name, pa.null()))


@settings(max_examples=100, deadline=None)
@given(ROWS, st.lists(BLANK_LINES, max_size=4), st.integers(0, 12), st.integers(0, 12), st.integers(1, 5), st.data())
def test_any_range_equals_that_range_of_the_whole(
    rows: list[dict[str, Any]], blank: list[bytes], start: int, stop: int, batch: int, data: st.DataObject
) -> None:
    rows = [*rows, {"text": "there"}]
    lines = data.draw(st.permutations([*written(rows).splitlines(keepends=True), *blank]))
    content = b"".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterators, "ROWS_PER_BATCH", batch)
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
        ([1, 2**63], pa.json_()),
        ([1, 2**64], pa.float64()),
        ([1, 2.5, None], pa.float64()),
        (["a", None], pa.string()),
        ([1, True], pa.json_()),
        (["a", 1], pa.json_()),
        ([[1], None, []], pa.list_(pa.int64())),
        ([[1], ["a"]], pa.list_(pa.json_())),
        ([{"b": 1}, {"b": None}, None], pa.struct([("b", pa.int64())])),
        ([{"a": 1, "b": "c"}, {"b": "d", "a": 0.5}], pa.struct([("a", pa.float64()), ("b", pa.string())])),
        ([{"b": 1}, {"c": 1}], pa.json_()),
        ([{}], pa.json_()),
        (["2026-01-01", "2026-01-02T00:00:00Z"], pa.string()),
        ([None, None], pa.null()),
    ],
)
def test_a_type_holds_all_values(values: list[Any], kind: pa.DataType) -> None:
    rows = [{"x": value, "text": ""} for value in values]
    assert scan(io.BytesIO(written(rows)), TEXT).types == {"x": kind, "text": pa.string()}


def test_values_of_several_types_become_json() -> None:
    values = ["a", 1, 2**70, None, [1, "é"], {"b": None}, True, 0.5]
    read = table(written([{"text": "t", "x": value} for value in values]))
    assert read.column("x").to_pylist() == ['"a"', "1", str(2**70), None, '[1, "é"]', '{"b": null}', "true", "0.5"]


def test_a_value_that_does_not_fit_is_refused_with_its_object_number() -> None:
    schema = plain({"text": pa.string(), "x": pa.struct([("a", pa.list_(pa.int64()))])})
    for value, said in ((1, "a number"), ({"a": [1, "b"]}, "text"), ({"b": 1}, "an object"), ({"a": True}, "true or")):
        content = written([{"x": {"a": [1]}}, {"text": 5}]) + b"\n" + written([{"x": value}])
        with pytest.raises(MalformedError, match=f"^has {said}.* in column `x` of object 3;"):
            list(rows_between(io.BytesIO(content), 0, 9, schema, "text"))


def test_columns_are_in_the_order_of_first_occurrence() -> None:
    content = written([{"b": 1}, {"text": "t", "a": 1}, {"c": 1, "b": 2}])
    assert list(scan(io.BytesIO(content), TEXT).types) == ["b", "text", "a", "c"]


def test_the_digest_is_of_the_content() -> None:
    content = b"\n [" + written([{"text": "t"}]) + b"]\n \n"
    assert scan(io.BytesIO(content), TEXT).sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("value", "told"), [(1, "a number"), (["a"], "a list"), ({"a": "b"}, "an object"), (True, "true or false")]
)
def test_other_values_in_the_text_column_become_null(value: Any, told: str) -> None:
    with pytest.raises(MalformedError, match=f"^holds {told} in column `text`, not text; name a column that does"):
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
def test_the_text_column_exists_if_any_row_has_the_key(
    rows: list[dict[str, Any]], types: dict[str, pa.DataType]
) -> None:
    assert scan(io.BytesIO(written(rows)), TEXT).types == types


def test_values_other_than_lists_of_integers_become_null_tokens() -> None:
    values = [[1, 2**40], [], None, "a", [1, None], [1.0], [True], [2**63], [[1]], 5]
    read = table(written([{"ids": value} for value in values]), required=IDS).column("ids").to_pylist()
    assert read == [[1, 2**40], [], *[None] * 8]


def test_batches_are_bounded_in_bytes_unless_a_row_is_larger() -> None:
    lengths = [10_000_000, 1, 1_500_000, 1_500_000, 1, 3_000_000, *[5] * 5000]
    content = written([{"text": "a" * length} for length in lengths])
    read = list(rows_between(io.BytesIO(content), 0, len(lengths), pa.schema([TEXT]), "text"))
    assert [len(rows) for rows in read] == [1, 2, 2, 1, 4096, 904]
    assert [len(text) for rows in read for text in rows.column(0).to_pylist()] == lengths
