"""Matched experiment, just large enough to show that it runs, stops, resumes and reports."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from jobs.compare_objectives import Config, StudyTraining
from pipeline.cli import run
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.annotated import write_annotated
from tests.conftest import RunCommand

JOB = "jobs.compare_objectives"
CONTEST = {
    "steps": 3,
    "second-order-steps": 3,
    "labelled-documents": 64,
    "fresh-documents": 20,
    "layers": 1,
    "width": 16,
}
TRAINING = {"steps": 4, "evaluate-every": 2, "tokens-per-batch": 512, "learning-rate": 0.01}
MODEL = {"context": 64, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[object, ...]:
    file = tmp_path / "tiny.yaml"
    sizes = {"contest": CONTEST, "training": TRAINING, "model": MODEL, "documents": 16, "dropouts": [0.0]}
    file.write_text(yaml.safe_dump(sizes), encoding="utf-8")
    return (JOB, "--config", file, "--processes", 2)


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_one_training_flag_keeps_the_other_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag once restored the defaults of large trainings: batches four times too large."""
    received: list[Config] = []

    def command(config: Config) -> None:
        received.append(config)

    monkeypatch.setattr(sys, "argv", ["command", "--output", "out", "--training.steps", "4"])
    with pytest.raises(SystemExit) as stopped:
        run(command, JOB)
    assert stopped.value.code is None
    assert received[0].training == StudyTraining(steps=4) and received[0].training.tokens_per_batch == 2048


def test_an_interrupted_comparison_on_a_known_source_resumes(
    run_command: RunCommand,
    tiny: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, interrupted = tmp_path / "out", "pipeline.experiments.study.write_plot"

    def fail(*_: object) -> None:
        raise ValueError("the power is off")

    with monkeypatch.context() as patched:
        patched.setattr(interrupted, fail)
        assert run_command(*tiny, "--seeds", 1, "--output", output) == 1
    trained = {file: file.stat().st_mtime_ns for file in (output / "trials").rglob("*")}
    capsys.readouterr()
    assert run_command(*tiny, "--seeds", 1, "--output", output) == 0
    assert {file: file.stat().st_mtime_ns for file in (output / "trials").rglob("*")} == trained
    printed = capsys.readouterr().out
    assert "The true distribution's held-out loss is 2." in printed and "| flood | truth | 0 |" in printed
    results = lines(output / "results.csv")
    assert {row["labels"] for row in results} == {
        "none",
        "truth",
        "causal",
        "exact",
        "second-order",
        "shuffled second-order",
    }
    assert len(lines(output / "curves.csv")) == 2 * len(results) == 2 * len(list((output / "trials").iterdir()))
    assert (output / "curves.png").stat().st_size > 10_000
    assert run_command(*tiny, "--seeds", 1, "--output", output) == 1
    assert "is there already" in capsys.readouterr().err


def test_trials_end_when_the_command_is_killed(tiny: tuple[object, ...], tmp_path: Path) -> None:
    endless = (*tiny, "--training.steps", 1_000_000, "--output", tmp_path / "out")
    command = psutil.Popen([sys.executable, "-m", *map(str, endless)], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("out/trials/*/metrics.jsonl")):
        assert command.poll() is None
        time.sleep(0.1)
    trained = command.children(recursive=True)
    assert trained
    command.kill()
    assert psutil.wait_procs(trained, timeout=30)[1] == []


@pytest.fixture
def datasets(tmp_path: Path) -> tuple[Path, Path]:
    """The same twenty documents, labelled twice."""
    random = np.random.default_rng(0)
    tokens = [random.integers(200, size=70).tolist() for _ in range(20)]
    folders = tmp_path / "one", tmp_path / "two"
    for folder in folders:
        nats = [random.gamma(2, size=70).tolist() for _ in tokens]
        write_annotated(folder, tokens, nats, vocabulary=8192)
        copy_tokenizer(SHIPPED / "tokenizer", folder / "tokenizer" / "exact")
    return folders


def test_datasets_of_the_same_documents_are_compared(
    run_command: RunCommand, tiny: tuple[object, ...], datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "other.jsonl").write_text('{"text": "The sea was calm."}\n' * 3, encoding="utf-8")
    labels = ("--labels.second-order", datasets[0], "--labels.causal", datasets[1])
    chosen = ("--objectives", "cross-entropy", "--objectives", "flood", "--scales", 1, "--scales", 1.5)
    arguments = (*labels, *chosen, "--held-out", 4, "--seeds", 1, "--out-of-distribution", tmp_path / "other.jsonl")
    assert run_command(*tiny, *arguments, "--output", tmp_path / "out") == 0
    results = lines(tmp_path / "out" / "results.csv")
    given = {"causal", "second-order", "shuffled second-order"}
    assert {row["labels"] for row in results} == {"none", *given, *(f"{name} x 1.5" for name in given)}
    assert {row["objective"] for row in results} == {"cross-entropy", "flood"}
    assert all(float(row["elsewhere"]) > 0 for row in results)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--held-out", 5), "has 20 documents; --documents and --held-out ask for 21"),
        (("--chosen", "exact"), "--chosen exact is not among the labels second-order, causal"),
        (("--seeds", 0), "must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(
    run_command: RunCommand,
    tiny: tuple[object, ...],
    datasets: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    labels = ("--labels.second-order", datasets[0], "--labels.causal", datasets[1])
    assert run_command(*tiny, *labels, *arguments, "--output", tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_the_recipe_for_a_gpu_is_understood(
    run_command: RunCommand, datasets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parent.parent.parent / "jobs" / "compare_objectives_gpu.yaml"
    labels = ("--labels.second-order", datasets[0])
    assert run_command(JOB, "--config", recipe, *labels, "--output", tmp_path / "out") == 1
    assert "has 20 documents; --documents and --held-out ask for 12000" in capsys.readouterr().err


def test_datasets_of_other_documents_are_refused(
    run_command: RunCommand,
    tiny: tuple[object, ...],
    datasets: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_annotated(tmp_path / "three", [[1, 2]] * 20, [[1.0, 2.0]] * 20)
    labels = ("--labels.second-order", datasets[0], "--labels.causal", tmp_path / "three", "--held-out", 4)
    assert run_command(*tiny, *labels, "--output", tmp_path / "out") == 1
    assert "has other documents, or tokens, than" in capsys.readouterr().err
