"""Runs with the output below the input folder: the output is not read as input when a run is resumed."""

from pathlib import Path

import pytest

from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.engine.fakes import shards


def test_a_run_with_its_output_below_its_input_is_resumed(
    tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "a.parquet", sample_texts(12, 200))
    arguments = ("pipeline.annotate", "--input", ".", "--workers", "0", "--rows-per-unit", "4")
    assert run_command(*arguments) == 0
    written = shards(tmp_path / "annotated")
    assert len(written) == 3 and "left out" not in capsys.readouterr().err
    for file in [*(tmp_path / "annotated" / "_ledger").glob("*/receipts/*.json")][1:]:
        file.unlink()
    assert run_command(*arguments) == 0
    assert shards(tmp_path / "annotated") == written
    assert "left out 5 files (of annotated datasets): annotated/data/second-order/" in capsys.readouterr().err
    assert run_command(*arguments, "--output", "another") == 0  # next to the output of another run
    assert [*shards(tmp_path / "another").values()] == [*written.values()]
    assert run_command(*arguments) == 0


def test_a_glob_that_matches_the_output_is_resumed(tmp_path: Path, run_command: RunCommand) -> None:
    write_documents(tmp_path / "a.parquet", sample_texts(8, 200))
    arguments = ("--input", f"{tmp_path}/**/*.parquet", "--output", str(tmp_path / "out"), "--workers", "0")
    for _ in range(2):
        assert run_command("pipeline.annotate", *arguments) == 0
