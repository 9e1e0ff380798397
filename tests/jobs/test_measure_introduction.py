"""The study of late introduction in miniature."""

import csv
from pathlib import Path

import pytest
import yaml

from tests.conftest import RunCommand
from tests.jobs.test_measure_truth import TINY


def test_every_place_of_entry_is_measured(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump({"contest": TINY}), encoding="utf-8")
    arguments = ("--config", config, "--output", output, "--sources", "markov-1", "topic-mixture", "--widths", 1, 2)
    assert run_command("jobs.measure_introduction", *arguments) == 0
    rows = list(csv.DictReader((output / "results.csv").open(encoding="utf-8")))
    assert len(rows) == 2 * (1 + 2 * 4)
    assert len({row["held_out_loss"] for row in rows}) == len(rows)
    by_variant = {row["variant"]: float(row["passes"]) for row in rows if row["source"] == "markov-1"}
    assert by_variant["projection above 2, 1 wide"] < by_variant["projection above 0, 1 wide"] / 2
    report = (output / "results.md").read_text(encoding="utf-8")
    assert "projection above 2, 2 wide | " in report and report in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"), [(("--sources", "coin"), "choose from markov-1"), (("--widths", 0), "at least 1, not 0")]
)
def test_mistakes_are_one_line(
    run_command: RunCommand,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    assert run_command("jobs.measure_introduction", "--output", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
