"""Files of results, read back."""

import csv
from pathlib import Path

import pytest

from pipeline.experiments.results import markdown_table, write_csv, write_report


def test_a_csv_file_has_all_digits(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"source": "coin", "bias": 1 / 3}, {"source": "die", "bias": None}]
    write_csv(tmp_path / "results.csv", rows)
    with (tmp_path / "results.csv").open(encoding="utf-8") as stream:
        first, second = csv.DictReader(stream)
    assert (first["source"], float(first["bias"])) == ("coin", 1 / 3)
    assert (second["source"], second["bias"]) == ("die", "")


def test_a_markdown_table_has_a_line_for_each_row() -> None:
    table = markdown_table(["method", "error"], [["causal", "0.1"], ["exact", ""]])
    assert table == "| method | error |\n|---|---|\n| causal | 0.1 |\n| exact |  |\n"


def test_a_report_is_printed_and_written_to_the_folder_if_there_is_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = write_report(tmp_path, "A table\n", "a command")
    assert report == "A table\n\nMade by `a command`.\n"
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == report
    assert write_report(None, "Another", "a command") in capsys.readouterr().out
