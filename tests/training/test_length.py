"""Lengths of trainings in steps, epochs and tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.corpus import Corpus
from pipeline.training.batches import Windowing
from pipeline.training.config import TrainingConfig
from pipeline.training.epoch import Epoch
from pipeline.training.length import TrainingSettings
from tests.annotated import write_annotated
from tests.conftest import RunCommand


def epoch_of(windows: int, size: int = 8) -> Epoch:
    return Epoch.of_corpus(Corpus.of([np.arange(windows * size, dtype=np.int32)]), Windowing(size, size))


def never() -> Epoch:
    raise AssertionError("the windows of an epoch are not needed")


def test_steps_need_no_epoch_and_the_settings_are_those_of_before() -> None:
    assert TrainingSettings().resolved(never) == TrainingConfig(steps=2000)
    settings = TrainingSettings(steps=7, tokens_per_batch=96, average="ema", seed=3)
    resolved = settings.resolved(never)
    assert resolved == TrainingConfig(steps=7, tokens_per_batch=96, average="ema", seed=3)
    assert not {"epochs", "tokens"} & resolved.fingerprint.keys()


@given(windows=st.integers(1, 200), epochs=st.integers(1, 20), accumulate=st.integers(1, 9))
def test_whole_epochs_are_read_to_the_end(windows: int, epochs: int, accumulate: int) -> None:
    """A batch is one window here. The last step may read beyond the last epoch."""
    settings = TrainingSettings(epochs=epochs, tokens_per_batch=8, accumulate=accumulate)
    steps = settings.resolved(lambda: epoch_of(windows)).steps
    assert (steps - 1) * accumulate < windows * epochs <= steps * accumulate


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ({"epochs": 0.7}, 7),
        ({"epochs": 0.71}, 8),
        ({"epochs": 1e-9}, 1),
        ({"tokens": 80}, 10),
        ({"tokens": 81}, 11),
        ({"tokens": 1e3}, 125),
    ],
)
def test_steps_are_rounded_up(length: dict[str, Any], steps: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert TrainingSettings(**length, tokens_per_batch=8).resolved(lambda: epoch_of(10)).steps == steps
    assert f" are {steps} steps of 8 tokens on average" in capsys.readouterr().err


def test_the_tokens_of_padding_do_not_count() -> None:
    """A batch has room for one window of 8 tokens or two windows of 4. One batch of the epoch is half empty."""
    corpus = Corpus.of([np.arange(12, dtype=np.int32)] * 5)
    found = TrainingSettings(tokens=600, tokens_per_batch=8).resolved(lambda: Epoch.of_corpus(corpus, Windowing(8, 8)))
    assert found.steps == 600 * 8 // 60  # an epoch of 60 tokens has 5 batches of 8 tokens, 2 of 4 + 4, 1 of 4


@pytest.mark.parametrize(
    "lengths", [{"steps": 5, "epochs": 1}, {"epochs": 1, "tokens": 9}, {"steps": 2000, "tokens": 9}]
)
def test_two_lengths_are_refused(lengths: dict[str, Any]) -> None:
    one, other = (f"`training.{name}`" for name in lengths)
    with pytest.raises(ValueError, match=f"{one} and {other} are lengths of the same training; give one of them"):
        TrainingSettings(**lengths)


@pytest.mark.parametrize("name", ["epochs", "tokens", "steps"])
@pytest.mark.parametrize("value", [0, -1, float("inf"), float("nan")])
def test_impossible_lengths_are_refused(name: str, value: float) -> None:
    settings: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"`training.{name}` must be above 0"):
        TrainingSettings(**settings)


@pytest.fixture
def command(tmp_path: Path) -> tuple[object, ...]:
    """Return a command that trains a tiny language model on windows of 16 tokens. A batch has room for 4 windows."""
    random = np.random.default_rng(0)
    tokens = [random.integers(90, size=40).tolist() for _ in range(20)]
    labels = write_annotated(tmp_path / "labels", tokens, [[1.0] * 40] * 20, vocabulary=97, tokenizer_sha256=None)
    model = ("--model.context", 16, "--model.width", 16, "--model.layers", 1, "--model.heads", 2, "--held-out", 4)
    return "jobs.train_language_model", "--labels", labels, *model, "--training.tokens-per-batch", 68


def test_a_training_of_epochs_reads_them_and_records_its_steps(
    run_command: RunCommand, command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An epoch is 16 documents of 41 tokens. They fill 41 windows of 16 new tokens, and 11 batches of 4 windows."""
    assert run_command(*command, "--training.epochs", 2, "--output", tmp_path / "out") == 0
    assert "2 epochs are 22 steps" in capsys.readouterr().err
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last["step"] == 22 and last["tokens"] == 2 * (16 * 41 + 40)
    assert run_command(*command, "--training.epochs", 2, "--output", tmp_path / "no", "--dry-run") == 0
    assert "training       22 steps, 1,310 tokens, 2.00 epochs\n" in capsys.readouterr().out


@pytest.mark.parametrize("tokens", ["1e3", "1_000", "1000"])
def test_tokens_are_written_in_any_form(
    run_command: RunCommand,
    command: tuple[object, ...],
    tmp_path: Path,
    tokens: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(*command, "--training.tokens", tokens, "--output", tmp_path / "no", "--dry-run") == 0
    assert "training       17 steps" in capsys.readouterr().out


def test_epochs_and_their_steps_resume_each_other(
    run_command: RunCommand, command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = (*command, "--training.learning-rate", 1e30, "--output", tmp_path / "out")
    for length in (("--training.epochs", 1), ("--training.steps", 11)):
        assert run_command(*broken, *length) == 1
        assert "not-finite" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "unfinished.json").read_text("utf-8"))["training"]["steps"] == 11
    assert run_command(*broken, "--training.steps", 12) == 1
    assert "holds another unfinished training" in capsys.readouterr().err
