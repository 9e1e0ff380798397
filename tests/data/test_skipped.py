"""Rows with an empty or too long document, in every format: they are kept and counted, and one warning is logged."""

import gzip
import io
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import json_objects, jsonl
from pipeline.data.documents import Column, inspect_file, iterate_rows, read_rows, unified
from pipeline.data.files import find_files
from pipeline.data.skipped import LOG, empty_rows, replaced_rows, too_long_rows, without_long
from pipeline.models.checkpoint import SHIPPED
from schemas.rows import NO_BOUND
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand

TEXT_KINDS = st.sampled_from([pa.string(), pa.large_string()])


@settings(deadline=None)
@given(
    st.lists(st.none() | st.text(max_size=3) | st.sampled_from(["a\ufffd", "\ufffd"])), TEXT_KINDS, st.integers(0, 3)
)
def test_texts_are_counted_as_if_one_by_one(texts: list[str | None], kind: pa.DataType, start: int) -> None:
    column = pa.array(texts, kind)[start:]
    assert empty_rows(column) == sum(not text for text in texts[start:])
    assert replaced_rows(column) == sum("\ufffd" in (text or "") for text in texts[start:])


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(st.integers(0, 9), max_size=3)))
def test_lists_of_tokens_are_counted_as_if_one_by_one(ids: list[list[int] | None]) -> None:
    column = pa.array(ids, pa.list_(pa.int32()))
    assert (empty_rows(column), replaced_rows(column)) == (sum(not each for each in ids), 0)


def test_a_warning_is_given_once_however_often_the_rows_are_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": ""}, {"text": "\ud800"}, {"n": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    raw = pa.array([b"\xff", None]).view(pa.string())
    pq.write_table(pa.table({"text": raw}), tmp_path / "b.parquet")
    files = find_files([str(tmp_path)])
    for _ in range(3):
        assert sum(map(len, iterate_rows(files, Column()))) == 7
        next(iterate_rows(files, Column()))
    place = f"{tmp_path}/a.jsonl and 1 more"
    assert caplog.messages == [
        f"4 of 7 documents are empty: {place}",
        f"2 of 7 documents hold U+FFFD, where text was not valid Unicode: {place}",
    ]
    assert sum(map(len, iterate_rows(files, Column(), limit=1))) == 1 and len(caplog.messages) == 2


SIZES = ("--model.context", 16, "--model.encoder-width", 16, "--model.decoder-width", 24, "--model.decoder-heads", 2)
STEPS = ("--training.steps", 1, "--training.evaluate-every", 1, "--training.tokens-per-batch", 64)
TOKENIZER = SHIPPED / "tokenizer"
COMMANDS = {
    "jobs.train_tokenizer": ("--vocabulary", 270, "--output", "out"),
    "jobs.train_estimator": ("--tokenizer", TOKENIZER, *SIZES, *STEPS, "--output", "out"),
    "jobs.train_autoencoder": ("--tokenizer", TOKENIZER, *SIZES, *STEPS, "--output", "out"),
    "jobs.measure_compression": ("--held-out", 2, "--window", 16),
}


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize("rank", ["0", "1"])
def test_every_command_warns_of_empty_documents(
    module: str,
    rank: str,
    run_command: RunCommand,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    request.addfinalizer(lambda: LOG.setLevel(logging.NOTSET))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", rank)
    file = write_documents(tmp_path / "in.parquet", [*sample_texts(8, 200), None, "", *sample_texts(2, 200)])
    assert run_command(module, "--input", file, *COMMANDS[module]) == 0
    told = [message for message in caplog.messages if "documents are empty" in message]
    assert told == ([f"2 of 12 documents are empty: {file}"] if rank == "0" else [])


TEXTS = st.lists(st.none() | st.text(max_size=9), max_size=12)
TOKENS = st.lists(st.none() | st.lists(st.integers(0, 9), max_size=5), max_size=12)
TOKEN_KINDS = st.sampled_from([pa.list_(pa.int32()), pa.large_list(pa.int64())])


def rows_of(file: Path, column: Column) -> tuple[list[dict[str, object]], int]:
    """Return all rows of a file, and the number of rows whose document is too long."""
    (found,) = find_files([str(file)])
    schema = unified([inspect_file(found, column)], [found], column)
    batches = list(read_rows(found, 0, 10**6, schema, column))
    return [row for batch in batches for row in batch.to_pylist()], sum(map(too_long_rows, batches))


@settings(deadline=None)
@given(TEXTS, st.sampled_from([pa.string(), pa.large_string()]), st.integers(0, 20), st.integers(0, 3))
def test_long_texts_are_null_and_counted(texts: list[str | None], kind: pa.DataType, longest: int, start: int) -> None:
    rows = pa.record_batch({"n": range(len(texts)), "text": pa.array(texts, kind)})[start:]
    bounded = without_long(rows, "text", longest)
    long = [text is not None and len(text.encode()) > longest for text in texts[start:]]
    kept = [None if beyond else text for text, beyond in zip(texts[start:], long, strict=True)]
    assert bounded.to_pydict() == {"n": list(range(len(texts)))[start:], "text": kept}
    assert bounded.schema == rows.schema and too_long_rows(bounded) == sum(long)


@settings(deadline=None)
@given(TOKENS, TOKEN_KINDS, st.integers(0, 20))
def test_long_lists_of_tokens_are_null_and_counted(
    ids: list[list[int] | None], kind: pa.DataType, longest: int
) -> None:
    bounded = without_long(pa.record_batch({"input_ids": pa.array(ids, kind)}), "input_ids", longest)
    kept = [None if each is None or 4 * len(each) > longest else each for each in ids]
    assert bounded.column(0).to_pylist() == kept
    assert too_long_rows(bounded) == len([each for each in ids if 4 * len(each or []) > longest])


def test_a_column_without_a_bound_may_have_any_type() -> None:
    rows = pa.record_batch({"n": [1, 2]})
    assert without_long(rows, "n", NO_BOUND) is rows


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "array.json"])
def test_rows_keep_their_place_and_their_other_columns(tmp_path: Path, name: str) -> None:
    rows = [{"text": "short", "n": 1}, {"text": "é" * 3, "n": 2}, {"text": "short", "n": 3}]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        content = json.dumps(rows).encode() if name.startswith("array") else lines
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert rows_of(tmp_path / name, Column(longest=5)) == ([rows[0], {"text": None, "n": 2}, rows[2]], 1)
    assert rows_of(tmp_path / name, Column(longest=6)) == (rows, 0)


def objects_up_to(size: int, monkeypatch: pytest.MonkeyPatch) -> Column:
    """Return a column whose JSON objects may have at most `size` bytes."""
    monkeypatch.setattr("pipeline.data.documents.LONGEST_OBJECT", size)
    monkeypatch.setattr(json_objects, "PIECE", 64)
    return Column(longest=5)


@pytest.mark.parametrize("end", [b"\n", b""])
@pytest.mark.parametrize("others", [b"", b'{"text": "a", "n": 1}\n'])
def test_a_line_that_is_too_long_is_a_row_of_nulls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: bytes, end: bytes
) -> None:
    column = objects_up_to(200, monkeypatch)
    long = b'{"text": "b", "html": "' + b"x" * 5000 + b'"}'
    (tmp_path / "a.jsonl").write_bytes(others + long + b"\n" + b'{"text": "c", "n": 3}\n' + long + end)
    rows, too_long = rows_of(tmp_path / "a.jsonl", column)
    nulls = {"text": None, "n": None}
    assert rows == [*([{"text": "a", "n": 1}] if others else []), nulls, {"text": "c", "n": 3}, nulls]
    assert too_long == 2


def test_a_line_with_too_many_values_is_a_row_of_nulls_but_commas_in_text_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = objects_up_to(800, monkeypatch)
    lines = [{"text": "a", "n": list(range(100))}, {"text": ',"[{:\\' * 30}, {"text": "b", "n": []}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    rows, too_long = rows_of(tmp_path / "a.jsonl", column)
    assert [row["text"] for row in rows] == [
        None,
        None,
        "b",
    ] and too_long == 2  # the second text is too long, but not truncated
    assert rows_of(tmp_path / "a.jsonl", Column(longest=2000)) == (
        [{"text": "a", "n": list(range(100))}, {"text": ',"[{:\\' * 30, "n": None}, {"text": "b", "n": []}],
        0,
    )


def test_a_long_line_that_is_not_an_object_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = objects_up_to(200, monkeypatch)
    for beginning in (b"\0", b" ", b"a", b'"'):
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + beginning * 500)
        with pytest.raises(ValueError, match=r"a.jsonl holds no JSON object in line 2, but"):
            rows_of(tmp_path / "a.jsonl", column)


def test_a_file_of_only_long_lines_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = objects_up_to(200, monkeypatch)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "' + b"\0" * 5000)
    with pytest.raises(ValueError, match=r"has only lines that are too long; .*`longest_document`"):
        rows_of(tmp_path / "a.jsonl", column)


@pytest.mark.parametrize("values", ["[" + "1," * 5000 + "1]", '"' + "x" * 9000 + '"'])
def test_an_array_with_an_object_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: str
) -> None:
    column = objects_up_to(200, monkeypatch)
    (tmp_path / "a.json").write_text(f'[{{"text": "a"}},\n{{"text": "b", "x": {values}}}]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.json has an object in line 2 that is too long .*`jq -c .\[\]`"):
        rows_of(tmp_path / "a.json", column)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 60), max_size=8), st.integers(20, 60), st.integers(1, 30), st.booleans())
def test_lines_are_skipped_as_by_a_simple_implementation(
    sizes: list[int], longest: int, piece: int, ended: bool
) -> None:
    lines = [json.dumps({"text": "x" * size}).encode() for size in sizes]
    content = b"\n".join(lines) + (b"\n" if ended else b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_objects, "PIECE", piece)
        patch.setattr(json_objects, "BYTES_PER_VALUE", 1)
        found = [(each.row, each.too_long) for each in json_objects.objects(io.BytesIO(content), longest=longest)]
    given = [line + b"\n" for line in lines[:-1]] + [line + b"\n" * ended for line in lines[-1:]]
    assert found == [({}, True) if len(line) > longest else (json.loads(line), False) for line in given]


def test_too_many_columns_are_refused_and_few_of_them_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MOST_FIELDS", 20)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "a", "k{n}": {n}}}\n' for n in range(40)), encoding="utf-8")
    (file,) = find_files([str(tmp_path / "a.jsonl")])
    with pytest.raises(ValueError, match=r"a.jsonl has more than 20 columns.*name those to pass on with `columns`"):
        inspect_file(file, Column())
    schema = unified([inspect_file(file, Column(), ["k7"])], [file], Column(), ["k7"])
    assert schema == pa.schema([("text", pa.string()), ("k7", pa.int64())])
    nested = json.dumps({"text": "a", "x": {f"k{n}": n for n in range(30)}})
    (tmp_path / "b.jsonl").write_text(nested, encoding="utf-8")
    with pytest.raises(ValueError, match="has more than 20 columns, including those in nested objects"):
        inspect_file(find_files([str(tmp_path / "b.jsonl")])[0], Column())


def test_an_object_with_very_many_keys_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl, "MOST_KEYS", 3)
    values = [{"text": "a", "x": {"a": 1, "b": 2, "c": 3, "d": 4}}]
    (tmp_path / "a.jsonl").write_text(json.dumps(values[0]), encoding="utf-8")
    (row,), _ = rows_of(tmp_path / "a.jsonl", Column())
    assert json.loads(str(row["x"])) == values[0]["x"]


def test_short_rows_with_many_columns_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.data.iterators.BATCH_BYTES", 3000)
    wide = json.dumps({"text": "a", **{f"k{n}": n for n in range(300)}})
    (tmp_path / "a.jsonl").write_text(wide + "\n" + '{"text": "a"}\n' * 50, encoding="utf-8")
    (file,) = find_files([str(tmp_path / "a.jsonl")])
    schema = inspect_file(file, Column()).schema
    sizes = [len(batch) for batch in read_rows(file, 0, 99, schema, Column())]
    assert sum(sizes) == 51 and max(sizes) <= 3000 // 301


def test_long_documents_are_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pq.write_table(pa.table({"text": ["short", "x" * 50, ""]}), tmp_path / "told.parquet")
    files = find_files([str(tmp_path / "told.parquet")])
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert [len(rows) for rows in iterate_rows(files, Column(longest=9))] == [3]
    told = [record.message for record in caplog.records]
    assert told == [
        f"1 of 3 documents are empty: {files[0].url}",
        f"1 of 3 documents are longer than `longest_document` and left out: {files[0].url}",
    ]
