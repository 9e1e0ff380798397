"""Training of a language model on entropy labels from disk or the Hub, in one or more processes, killed and resumed."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.annotated import write_annotated
from tests.builders import sample_texts
from tests.conftest import RunCommand
from tests.forkserver import Forked, group
from tests.hub import Hub

JOB = "jobs.train_language_model"


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Write an annotated dataset of sixty documents in three shards; some labels are missing."""
    random = np.random.default_rng(0)
    tokens = [random.integers(97, size=random.integers(5, 60)).tolist() for _ in range(60)]
    nats = [np.where(random.random(len(ids)) < 0.1, np.nan, random.gamma(2, 1.5, len(ids))) for ids in tokens]
    return write_annotated(
        tmp_path / "labels", tokens, [row.tolist() for row in nats], shards=3, vocabulary=97, tokenizer_sha256=None
    )


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """Write settings of a tiny model with dropout, which a resumed training must repeat exactly."""
    training = {"steps": 12, "evaluate-every": 4, "tokens-per-batch": 256, "learning-rate": 0.003}
    model = {"context": 24, "width": 32, "layers": 2, "heads": 2}
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump({"training": training, "model": model, "held-out": 6}), encoding="utf-8")
    return file


def curve(output: Path) -> list[dict[str, float]]:
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def assert_near(found: list[dict[str, float]], wanted: list[dict[str, float]], near: float = 1e-4) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, abs=near)


def test_two_processes_and_one_give_the_same_loss_curve(
    run_command: RunCommand, labels: Path, settings: Path, tmp_path: Path
) -> None:
    arguments = ("--config", settings, "--labels", labels)
    assert run_command(JOB, *arguments, "--output", tmp_path / "one") == 0
    assert [one.wait() for one in group(2, JOB, *arguments, "--output", tmp_path / "two")] == [0, 0]
    assert len(curve(tmp_path / "one")) == 3
    assert_near(curve(tmp_path / "two"), curve(tmp_path / "one"))


def test_a_killed_training_resumes_as_if_nothing_had_happened(
    run_command: RunCommand, labels: Path, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--config", settings, "--labels", labels, "--dropout", 0.1, "--stream", 300, "--training.steps", 200)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    process = Forked(JOB, *arguments, "--output", killed)
    while not list(killed.glob("unfinished-*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "config.json").exists()
    monkeypatch.chdir(tmp_path)  # the same folder by another name
    assert run_command(JOB, *arguments, "--output", "killed") == 0
    assert run_command(JOB, *arguments, "--output", undisturbed) == 0
    assert curve(killed) == curve(undisturbed) and len(curve(killed)) == 50
    one, other = (load_file(output / "model.safetensors") for output in (killed, undisturbed))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not list(killed.glob("unfinished*"))


def test_only_the_same_command_resumes_an_interrupted_training(
    run_command: RunCommand, labels: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "unfinished.json").write_text(json.dumps({"dropout": 0.3}), encoding="utf-8")
    (output / "metrics.jsonl").write_text("", encoding="utf-8")
    assert run_command(JOB, "--config", settings, "--labels", labels, "--output", output) == 1
    error = capsys.readouterr().err
    assert "holds another unfinished training (" in error and "dropout 0.3 there, 0.0 now" in error
    (output / "unfinished.json").unlink()
    (output / "config.json").write_text("{}", encoding="utf-8")
    assert run_command(JOB, "--config", settings, "--labels", labels, "--output", output) == 1
    assert "is there already; delete it or choose another folder" in capsys.readouterr().err


def test_a_hub_dataset_read_piece_by_piece_equals_the_one_on_disk(
    run_command: RunCommand, hub: Hub, labels: Path, settings: Path, tmp_path: Path
) -> None:
    copy_tokenizer(SHIPPED / "tokenizer", labels / "tokenizer" / "exact")
    files = {str(path.relative_to(labels)): path.read_bytes() for path in labels.rglob("*") if path.is_file()}
    hub.add("user/name", files)
    arguments = ("--config", settings, "--objective", "floor", "--stream", 500, "--shuffle-labels")
    assert run_command(JOB, *arguments, "--labels", labels, "--output", tmp_path / "disk") == 0
    assert run_command(JOB, *arguments, "--labels", "hf://datasets/user/name", "--output", tmp_path / "hub") == 0
    assert curve(tmp_path / "hub") == curve(tmp_path / "disk")
    assert (tmp_path / "hub" / "tokenizer.json").is_file()


@pytest.mark.slow  # README's command is trained by a worker of a cluster too
@pytest.mark.usefixtures("ray_cluster")
def test_workers_of_a_cluster_train_the_same_model(
    run_command: RunCommand, labels: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments: tuple[Any, ...] = ("--config", settings, "--workers", 2)
    assert run_command(JOB, *arguments, "--labels", labels, "--output", tmp_path / "ray") == 0
    assert run_command(JOB, "--config", settings, "--labels", labels, "--output", tmp_path / "one") == 0
    assert_near(curve(tmp_path / "ray"), curve(tmp_path / "one"))
    for name, said in (("ray", "--workers 2"), ("one", f"--output {tmp_path / 'one'}")):
        assert said in (tmp_path / name / "README.md").read_text(encoding="utf-8")


def test_other_text_is_evaluated_as_well(
    run_command: RunCommand, labels: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.jsonl").write_text('{"text": "The sea was calm."}\n' * 3, encoding="utf-8")
    arguments = ("--config", settings, "--labels", labels, "--out-of-distribution", tmp_path / "other.jsonl")
    assert run_command(JOB, *arguments, "--output", tmp_path / "out") == 1
    assert "needs a tokenizer, but these documents came as tokens" in capsys.readouterr().err
    copy_tokenizer(SHIPPED / "tokenizer", labels / "tokenizer" / "exact")
    assert run_command(JOB, *arguments, "--output", tmp_path / "out") == 0
    figures = curve(tmp_path / "out")[-1]
    assert figures["out_of_distribution_loss"] > 0 and figures["out_of_distribution_loss"] != figures["held_out_loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--labels", "nowhere"), "is not an annotated dataset"),
        (("--dropout", 1), "--dropout must be at least 0 and below 1, not 1"),
        (("--objective.share", 0), "Unknown option"),
        (("--share", 0), "--share must be above 0 and at most 1, not 0"),
        (("--tokenizer", SHIPPED / "tokenizer"), "--tokenizer needs labels of text; these documents came as tokens"),
        (("--held-out", 60), "cannot hold out 60 of 60 documents"),
    ],
)
def test_a_mistake_is_one_line(
    run_command: RunCommand,
    labels: Path,
    settings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    given = () if "--labels" in arguments else ("--labels", labels)
    assert run_command(JOB, "--config", settings, *given, *arguments, "--output", tmp_path / "out") == 1
    error = capsys.readouterr().err.strip()
    assert message in error and error.startswith("error: ") and "\n" not in error


def test_missing_or_non_numeric_labels_are_refused(
    run_command: RunCommand, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, nats, message in (
        ("none", [[np.nan] * 3] * 9, "has no labels for --objective flood; annotate it"),
        (
            "infinite",
            [[1.0, np.inf, 2.0]] * 9,
            "has a label in `entropy` that is not finite; annotate its source again",
        ),
    ):
        labels = write_annotated(tmp_path / name, [[1, 2, 3]] * 9, nats, tokenizer_sha256=None)
        assert run_command(JOB, "--config", settings, "--labels", labels, "--output", tmp_path / "out") == 1
        assert message in capsys.readouterr().err


def moving_labels(folder: Path, documents: list[list[int]]) -> Path:
    """Write an annotated dataset of these token ids, together with the shipped tokenizer.

    With the dataset's tokenizer, training can transfer the labels to the tokens of another tokenizer.
    """
    write_annotated(folder, documents, [[1.0] * len(ids) for ids in documents])
    copy_tokenizer(SHIPPED / "tokenizer", folder / "tokenizer" / "exact")
    return folder


@pytest.mark.parametrize("stream", [(), ("--stream", 300)])
def test_documents_whose_labels_cannot_move_are_left_out_counted_and_reported_once(
    run_command: RunCommand,
    settings: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    stream: tuple[object, ...],
) -> None:
    tokenizer = load_tokenizer(SHIPPED / "tokenizer")
    texts = [ids.tolist() for ids in encode(tokenizer, sample_texts(40, 200))]
    letters = [int(token) for ids in encode(tokenizer, ["t", "h", "e"]) for token in ids]  # no text has them
    arguments = ("--config", settings, "--tokenizer", SHIPPED / "tokenizer", "--training.steps", 24, *stream)
    whole, without = tmp_path / "whole", tmp_path / "without"
    labels = moving_labels(tmp_path / "labels", [*texts[:5], letters, *texts[5:9], letters, *texts[9:]])
    assert run_command(JOB, *arguments, "--labels", labels, "--output", whole) == 0
    assert [record["documents_left_out"] for record in curve(whole)][-1] == 2
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 1 and "their tokens do not match their text" in said[0]
    assert "2 documents whose labels cannot move" in (whole / "README.md").read_text(encoding="utf-8")
    if not stream:
        assert (
            run_command(JOB, *arguments, "--labels", moving_labels(tmp_path / "good", texts), "--output", without) == 0
        )
        weights, wanted = (load_file(folder / "model.safetensors") for folder in (whole, without))
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
        assert [record["documents_left_out"] for record in curve(without)] == [0] * len(curve(without))


def test_a_dataset_is_refused_if_no_label_can_move(
    run_command: RunCommand, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(SHIPPED / "tokenizer")
    letters = [int(token) for ids in encode(tokenizer, ["t", "h", "e"]) for token in ids]
    for held_out in ([letters], [[int(ids) for ids in encode(tokenizer, ["the end"])[0]]]):
        shutil.rmtree(tmp_path / "labels", ignore_errors=True)
        labels = moving_labels(tmp_path / "labels", [letters] * 5 + held_out)
        arguments = ("--config", settings, "--labels", labels, "--held-out", 1, "--tokenizer", SHIPPED / "tokenizer")
        assert run_command(JOB, *arguments, "--output", tmp_path / "out") == 1
        assert "no label of " in (error := capsys.readouterr().err) and "annotate with --tokenizer" in error
