"""Comparison of methods, just large enough to show that it searches, stops, resumes, tests and reports."""

import csv
import json
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
from pipeline.comparison.text_study import text_study
from pipeline.data.annotated import find_annotations
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.annotated import write_annotated
from tests.conftest import RunCommand
from tests.tiny_models import tiny_language_model

JOB = "jobs.compare_objectives"
CONTEST = {
    "steps": 3,
    "second-order-steps": 3,
    "labelled-documents": 64,
    "fresh-documents": 20,
    "layers": 1,
    "width": 16,
}
TRAINING = {"steps": 4, "evaluate-every": 2, "tokens-per-batch": 512}
MODEL = {"context": 64, "width": 16, "layers": 1, "heads": 2}
SIZES = {"documents": 12, "development": 4, "test": 4, "trials": 1, "seeds": 1, "folds": 2}
DISTILLED = "distillation, all ids"


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[object, ...]:
    file = tmp_path / "tiny.yaml"
    sizes = {"contest": CONTEST, "training": TRAINING, "model": MODEL, **SIZES}
    file.write_text(yaml.safe_dump(sizes), encoding="utf-8")
    return (JOB, "--config", file, "--processes", 2)


def methods(*names: str) -> tuple[str, ...]:
    return tuple(word for name in names for word in ("--methods", name))


def lines(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_one_training_flag_keeps_the_other_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training settings without a flag must keep the defaults of this job.

    The defaults of large trainings would make batches four times as large.
    """
    received: list[Config] = []

    def command(config: Config) -> None:
        received.append(config)

    monkeypatch.setattr(sys, "argv", ["command", "--output", "out", "--training.steps", "4"])
    with pytest.raises(SystemExit) as stopped:
        run(command, JOB)
    assert stopped.value.code is None
    assert received[0].training == StudyTraining(steps=4) and received[0].training.tokens_per_batch == 1024


def test_an_interrupted_comparison_on_a_known_source_resumes(
    run_command: RunCommand,
    tiny: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, interrupted = tmp_path / "out", "pipeline.comparison.standings.write_plot"
    chosen = methods("flood, truth", "flood, second-order", DISTILLED)

    def fail(*_: object) -> None:
        raise ValueError("the power is off")

    with monkeypatch.context() as patched:
        patched.setattr(interrupted, fail)
        assert run_command(*tiny, *chosen, "--trials", 2, "--output", output) == 1
    trained = {file: file.stat().st_mtime_ns for file in (output / "trials").rglob("*") if file.is_file()}
    labelled = {file: file.stat().st_mtime_ns for file in (output / "labels").rglob("*") if file.is_file()}
    capsys.readouterr()
    assert run_command(*tiny, *chosen, "--trials", 2, "--output", output) == 0
    for before in (trained, labelled):
        assert {file: file.stat().st_mtime_ns for file in before} == before
    printed = capsys.readouterr().out
    assert "The true distribution's test loss is 2." in printed and "| flood, truth | learning rate " in printed
    results = lines(output / "results.csv")
    assert {row["method"] for row in results} == {
        "cross-entropy",
        "flood, truth",
        "flood, second-order",
        DISTILLED,
        "the teacher itself, truth",
        "the teacher itself, causal",
    }
    assert len(lines(output / "trials.csv")) == 8 and len(lines(output / "curves.csv")) == 2 * 4
    assert len(json.loads((output / "opened.json").read_text(encoding="utf-8"))) == 4
    assert (output / "curves.png").stat().st_size > 10_000
    assert run_command(*tiny, *chosen, "--trials", 2, "--output", output) == 1
    assert "is there already" in capsys.readouterr().err


def test_cross_fitted_labels_come_from_the_training_documents(
    run_command: RunCommand, tiny: tuple[object, ...], tmp_path: Path
) -> None:
    chosen = methods("flood, cross-fitted", "flood, cross-fitted certain", "student from the teacher")
    flags = ("--cross-fitted", "--teachers-per-fold", 2)
    assert run_command(*tiny, *chosen, *flags, "--output", tmp_path / "out") == 0
    results = {row["method"]: row for row in lines(tmp_path / "out" / "results.csv")}
    assert "the teacher itself, cross-fitted" in results and len(results) == 5
    assert len([*(tmp_path / "out" / "labels").glob("fold-*/teacher-*/best")]) == 4
    costs = {name: float(row["labelling_tflop"]) for name, row in results.items()}
    assert costs["flood, cross-fitted"] == costs["student from the teacher"] > 0
    assert results["cross-entropy"]["labelling_tflop"] == "nan"
    assert not (tmp_path / "out" / "labels" / "causal").exists()


@pytest.mark.long
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
    """Write two datasets of the same twenty documents, each with its own random labels."""
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
    tiny_language_model(vocabulary=8192, context=128).save_pretrained(tmp_path / "teacher")
    labels = ("--labels.pupil", datasets[0], "--labels.causal", datasets[1], "--teacher", tmp_path / "teacher")
    chosen = methods("flood, pupil", "flood, causal", "flood, teacher expected", DISTILLED)
    arguments = (*labels, *chosen, "--out-of-distribution", tmp_path / "other.jsonl")
    assert run_command(*tiny, *arguments, "--output", tmp_path / "out") == 0
    results = {row["method"]: row for row in lines(tmp_path / "out" / "results.csv")}
    teachers = {f"the teacher itself, {name}" for name in ("pupil", "causal", "teacher")}
    assert {*results} == {"cross-entropy", *chosen[1::2], *teachers}
    assert all(float(results[name]["elsewhere"]) > 0 for name in ("cross-entropy", *chosen[1::2]))


def test_documents_are_those_after_the_skipped_ones(datasets: tuple[Path, Path]) -> None:
    study = text_study({"exact": str(datasets[0])}, None, (5, 2, 3), skip=4)
    corpora = (study.seen, study.development, study.test)
    found = [tokens_N.tolist() for corpus in corpora for tokens_N in corpus.by_document(corpus.tokens_N)]
    corpus = find_annotations(str(datasets[0])).corpus()
    assert found == [tokens_N.tolist() for tokens_N in corpus.by_document(corpus.tokens_N)[4:14]]


def test_labels_move_to_another_tokenizer(
    run_command: RunCommand, tiny: tuple[object, ...], datasets: tuple[Path, Path], tmp_path: Path
) -> None:
    words = tmp_path / "words.jsonl"
    words.write_text(json.dumps({"text": "the sea was calm and the wind was cold " * 40}) + "\n", encoding="utf-8")
    tokens = tmp_path / "tokens"
    assert run_command("jobs.train_tokenizer", "--input", words, "--output", tokens, "--vocabulary", 260) == 0
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "the sea was cold and the wind was calm"}) + "\n" * 1, encoding="utf-8")
    documents = [json.dumps({"text": f"the sea was cold {number} times"}) for number in range(20)]
    text.write_text("\n".join(documents), encoding="utf-8")
    assert run_command("pipeline.annotate", "--input", text, "--workers", 0, "--output", tmp_path / "labels") == 0
    arguments = ("--labels.shipped", tmp_path / "labels", "--tokenizer", tokens, *methods("flood, shipped"))
    assert run_command(*tiny, *arguments, "--output", tmp_path / "out") == 0
    assert len(lines(tmp_path / "out" / "results.csv")) == 3


def test_a_dry_run_tells_the_cost_and_writes_nothing(
    run_command: RunCommand,
    tiny: tuple[object, ...],
    datasets: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for more in ((), ("--cross-fitted",), ("--labels.pupil", datasets[0])):
        assert run_command(*tiny, *more, "--trials", 3, "--dry-run", "--output", tmp_path / "out") == 0
        printed = capsys.readouterr().out
        count = int(printed.split("methods")[1].split(":")[0])
        assert f"trainings      {4 * count}: 3 trials and 1 seeds of each method" in printed
        assert ("distillation" in printed) == (more[:1] != ("--labels.pupil",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--test", 5), "has 20 documents; --documents, --development and --test ask for 21: ask for fewer"),
        (("--skip", 9), "ask for 20 after the 9 that --skip leaves out: ask for fewer"),
        (("--skip", -1), "--skip must be 0 or more, not -1"),
        (("--teachers-per-fold", 2), "--teachers-per-fold needs --cross-fitted; give both or neither"),
        (("--chosen", "exact"), "--chosen exact is not among the labels pupil, causal"),
        (("--methods", "magic"), "--methods magic is not known here; choose from cross-entropy; EMA"),
        (("--seeds", 0), "--seeds must be at least 1, not 0"),
        (("--teacher", "nowhere", "--cross-fitted"), "has read other text, which --cross-fitted excludes"),
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
    labels = ("--labels.pupil", datasets[0], "--labels.causal", datasets[1])
    assert run_command(*tiny, *labels, *arguments, "--output", tmp_path / "out") == 1
    assert message in capsys.readouterr().err


def test_a_teacher_of_other_tokens_is_refused(
    run_command: RunCommand,
    tiny: tuple[object, ...],
    datasets: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny_language_model(vocabulary=50).save_pretrained(tmp_path / "teacher")
    arguments = ("--labels.pupil", datasets[0], "--teacher", tmp_path / "teacher", "--output", tmp_path / "out")
    assert run_command(*tiny, *arguments) == 1
    assert "has 50 token ids, and the documents 8,192; give its own --tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "documents"), [("gpu", "14000"), ("laptop", "186 after the 45 that --skip")])
def test_recipes_are_understood(
    run_command: RunCommand,
    datasets: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    size: str,
    documents: str,
) -> None:
    recipe = Path(__file__).parent.parent.parent / "jobs" / f"compare_objectives_{size}.yaml"
    labels = ("--labels.pupil", datasets[0])
    assert run_command(JOB, "--config", recipe, *labels, "--output", tmp_path / "out") == 1
    assert f"has 20 documents; --documents, --development and --test ask for {documents}" in capsys.readouterr().err


def test_datasets_of_other_documents_are_refused(
    run_command: RunCommand,
    tiny: tuple[object, ...],
    datasets: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_annotated(tmp_path / "three", [[1, 2]] * 20, [[1.0, 2.0]] * 20)
    labels = ("--labels.pupil", datasets[0], "--labels.causal", tmp_path / "three")
    assert run_command(*tiny, *labels, "--output", tmp_path / "out") == 1
    assert "has other documents, or tokens, than" in capsys.readouterr().err
