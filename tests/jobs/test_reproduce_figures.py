"""All five figures in miniature, on the built-in text."""

import csv
from pathlib import Path

import pytest

from pipeline.experiments.figures import FIGURES
from tests.conftest import RunCommand

JOB = "jobs.reproduce_figures"
LOOK = ("--time", 0.0004, "--documents", 20, "--held-out", 1, "--processes", 1)


@pytest.mark.long
def test_every_figure_is_drawn(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FINEWEB", raising=False)
    assert run_command(JOB, "--output", tmp_path / "out", *LOOK) == 0
    printed = capsys.readouterr().out
    for number, figure in FIGURES.items():
        rows = list(csv.DictReader((tmp_path / "out" / f"figure-{number}.csv").open(encoding="utf-8")))
        assert {row["trial"] for row in rows} == {trial.name for trial in figure.trials}
        values = [float(row["loss_change" if figure.by_layer else figure.shown]) for row in rows]
        assert len(set(values)) > len(values) / 2
        assert (tmp_path / "out" / f"figure-{number}.png").stat().st_size > 10_000
        assert (tmp_path / "out" / f"figure-{number}.md").read_text(encoding="utf-8") in printed
    assert not list((tmp_path / "out").glob("unfinished*"))
    layers = list(csv.DictReader((tmp_path / "out" / "figure-5.csv").open(encoding="utf-8")))
    assert {row["what"] for row in layers} == {"embedding", "weights", "activations"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("--figure", 6), "choose from 1, 2, 3, 4, 5"), (("--time", 0), "above 0, not 0")],
)
def test_mistakes_are_one_line(
    run_command: RunCommand,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    assert run_command(JOB, "--output", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
