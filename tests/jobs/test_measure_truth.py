"""Truth measurement in miniature, in real processes and with all output files.

There are three comparisons, each on two sources: of all label methods, of all ways in which an estimator's embedding
enters the decoder, and of ensembles with single models.
"""

import csv
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.experiments.contest import RECIPES
from pipeline.training.resume import begin
from tests.conftest import RunCommand

TINY = {
    "width": 16,
    "layers": 2,
    "heads": 2,
    "document-tokens": 40,
    "steps": 3,
    "second-order-steps": 2,
    "batch": 8,
    "labelled-documents": 10,
    "labelled-share": 0.5,
    "fresh-documents": 4,
}


@pytest.mark.long
def test_every_method_is_measured_on_every_source(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = tmp_path / "tiny.yaml", tmp_path / "truth"
    config.write_text(yaml.safe_dump({"contest": TINY}), encoding="utf-8")
    sources = ("--sources", "markov-1", "noisy-copy", "--processes", 1)
    assert run_command("jobs.measure_truth", "--config", config, "--output", output, *sources) == 0
    rows = list(csv.DictReader((output / "results.csv").open(encoding="utf-8")))
    assert {row["source"] for row in rows} == {"markov-1", "noisy-copy"}
    methods = {row["method"] for row in rows if row["source"] == "noisy-copy"}
    assert {"causal", "exact", "occlusion-l1", "gradient-input", "second-order, residual, joint"} <= methods
    assert all(-100 < float(row["r_squared"]) <= 1 for row in rows)
    printed = capsys.readouterr().out
    report = (output / "results.md").read_text(encoding="utf-8")
    assert "is nearest to the truth" in printed and "Made by `python -m jobs.measure_truth" in report
    assert len(list(output.glob("scatter-*.png"))) == len({(row["method"], row["target"]) for row in rows})
    assert len(list(output.glob("training/*/*/metrics.jsonl"))) == 2 * (2 + len(RECIPES))


def test_every_introduction_of_the_embedding_is_measured(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump({"contest": TINY}), encoding="utf-8")
    arguments = ("--config", config, "--output", output, "--sources", "markov-1", "topic-mixture", "--widths", 1, 2)
    assert run_command("jobs.measure_truth", "--introduction", "--processes", 1, *arguments) == 0
    rows = list(csv.DictReader((output / "results.csv").open(encoding="utf-8")))
    assert len(rows) == 2 * (1 + 2 * 4)
    assert len({row["held_out_loss"] for row in rows}) == len(rows)
    by_variant = {row["variant"]: float(row["passes"]) for row in rows if row["source"] == "markov-1"}
    assert by_variant["projection above 2, 1 wide"] < by_variant["projection above 0, 1 wide"] / 2
    report = (output / "results.md").read_text(encoding="utf-8")
    assert "projection above 2, 2 wide | " in report and report in capsys.readouterr().out


def test_ensembles_are_measured_and_an_interrupted_comparison_is_resumed(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, output = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump({"contest": TINY}), encoding="utf-8")
    arguments = ("--config", config, "--output", output, "--sources", "markov-1", "topic-mixture", "--processes", 1)
    begin(output, {"sources": ["markov-1"]})
    (output / "training").mkdir()
    assert run_command("jobs.measure_truth", "--ensemble", 2, *arguments) == 1
    assert "holds another unfinished training" in capsys.readouterr().err
    shutil.rmtree(output)
    assert run_command("jobs.measure_truth", "--ensemble", 2, *arguments) == 0
    rows = list(csv.DictReader((output / "results.csv").open(encoding="utf-8")))
    assert [(row["source"], row["models"]) for row in rows] == [
        (source, models) for source in ("markov-1", "topic-mixture") for models in "12"
    ]
    report = (output / "results.md").read_text(encoding="utf-8")
    assert "2 models are nearer to the truth than one on" in report and report in capsys.readouterr().out
    assert len(list(output.glob("training/*/member-*/causal/model.safetensors"))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sources", "coin"), "choose from markov-1"),
        (("--processes", 0), "at least 1, not 0"),
        (("--widths", 0), "at least 1, not 0"),
    ],
)
def test_mistakes_are_one_line(
    run_command: RunCommand,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    assert run_command("jobs.measure_truth", "--output", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "out").exists()
