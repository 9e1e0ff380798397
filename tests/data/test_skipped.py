"""Rows without text are counted and told once, in every command that reads them."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.documents import Column, iterate_rows
from pipeline.data.files import find_files
from pipeline.data.skipped import LOG, empty_rows, replaced_rows
from pipeline.models.checkpoint import SHIPPED
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand

KINDS = st.sampled_from([pa.string(), pa.large_string()])


@settings(deadline=None)
@given(st.lists(st.none() | st.text(max_size=3) | st.sampled_from(["a\ufffd", "\ufffd"])), KINDS, st.integers(0, 3))
def test_texts_are_counted_as_one_by_one(texts: list[str | None], kind: pa.DataType, start: int) -> None:
    column = pa.array(texts, kind)[start:]
    assert empty_rows(column) == sum(not text for text in texts[start:])
    assert replaced_rows(column) == sum("\ufffd" in (text or "") for text in texts[start:])


@settings(deadline=None)
@given(st.lists(st.none() | st.lists(st.integers(0, 9), max_size=3)))
def test_lists_of_tokens_are_counted_as_one_by_one(ids: list[list[int] | None]) -> None:
    column = pa.array(ids, pa.list_(pa.int32()))
    assert (empty_rows(column), replaced_rows(column)) == (sum(not each for each in ids), 0)


def test_it_is_told_once_however_often_the_rows_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
def test_every_command_tells_of_empty_documents(
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
