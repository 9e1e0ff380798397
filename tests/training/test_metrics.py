"""Metrics in named trackers, on the progress bar and, always, in metrics.jsonl."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from pipeline.training.config import TrainingConfig, installed_trackers
from pipeline.training.trainer import train
from tests.training.test_trainer import CONFIG, Bigrams, circle, evaluate, loss, metrics


class Notebook(GeneralTracker):  # type: ignore[misc]
    """Tracker that records its calls."""

    name = "notebook"
    requires_logging_directory = False
    pages: list["Notebook"]

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, float]]] = []
        self.finished = 0
        Notebook.pages.append(self)

    @property
    def tracker(self) -> "Notebook":
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def log(self, values: dict[str, float], step: int | None = None, **other: object) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def notebook() -> Iterator[type[Notebook]]:
    Notebook.pages = []
    LOGGER_TYPE_TO_CLASS["notebook"] = Notebook
    yield Notebook
    del LOGGER_TYPE_TO_CLASS["notebook"]


def test_a_tracker_gets_settings_and_figures_alongside_the_file(tmp_path: Path, notebook: type[Notebook]) -> None:
    config = replace(CONFIG, trackers=("notebook",), decay="linear")
    train(Bigrams(), circle(), loss, evaluate, config, tmp_path)
    (page,) = notebook.pages
    assert page.settings["steps"] == 25 and page.settings["decay"] == "linear" and page.finished == 1
    assert [step for step, _ in page.logged] == [10, 20, 25]
    for (_, values), line in zip(page.logged, metrics(tmp_path), strict=True):
        speed, rate = values.pop("tokens_per_second"), values.pop("learning_rate")
        assert values == line and {"loss", "training_loss"} < values.keys()
        assert speed > 0
        assert rate == pytest.approx(0.1 * (1 - (line["step"] / 26 - 0.05) / 0.95))


def test_a_tracker_is_closed_when_a_training_fails(tmp_path: Path, notebook: type[Notebook]) -> None:
    config = replace(CONFIG, trackers=("notebook",))
    with pytest.raises(ValueError, match="at step 1 "):
        train(Bigrams(), circle(), lambda m, b: loss(m, b) * torch.nan, evaluate, config, tmp_path)
    assert notebook.pages[0].finished == 1


def test_a_missing_tracker_is_refused_and_installed_ones_are_named(notebook: type[Notebook]) -> None:
    assert "notebook" in installed_trackers()
    for name in {"aim", "nonsense", "all"} - set(installed_trackers()):
        with pytest.raises(ValueError, match=rf"`training.trackers` {name} is not installed .*choose from .*notebook"):
            TrainingConfig(trackers=("notebook", name))


def test_the_refusal_says_if_no_tracker_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.config.installed_trackers", list)
    with pytest.raises(ValueError, match="not known to accelerate; no tracker is installed"):
        TrainingConfig(trackers=("tensorboard",))


def test_the_progress_bar_shows_loss_speed_and_held_out_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train(Bigrams(), circle(), loss, lambda model: {"held_out_loss": 1.25}, CONFIG, tmp_path)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "25/25" in last and "loss 0." in last and "tokens/s " in last and "held_out_loss 1.250" in last


def test_lines_replace_the_bar_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is printed at each evaluation, here at steps 10, 20 and 25, and whenever LINE_SECONDS have passed.

    With LINE_SECONDS = 0, a line is also printed after every step.
    """
    train(Bigrams(), circle(), loss, lambda model: {"held_out_loss": 1.25}, CONFIG, tmp_path / "a")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"step {step} of 25" for step in (10, 20, 25)]
    assert all(re.search(r": loss \d\.\d+, tokens/s [\d,.]+, held_out_loss 1\.250$", line) for line in lines), lines
    monkeypatch.setattr("pipeline.training.metrics.LINE_SECONDS", 0.0)
    train(Bigrams(), circle(), loss, lambda model: {"held_out_loss": 1.25}, CONFIG, tmp_path / "b")
    assert len(capsys.readouterr().err.splitlines()) == 25 + 3
