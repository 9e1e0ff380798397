"""Protocol of a comparison: equal trials on development documents, then the chosen settings once on the test documents.

Each method is tried with the same number of settings. Its settings with the lowest development loss at any evaluation
are trained again with new seeds. The choices are recorded before the test documents are read, and these documents are
never read with other choices.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from pipeline.comparison.methods import Method, Trial
from pipeline.comparison.student import Student
from pipeline.comparison.teachers import DEVELOPMENT
from pipeline.data.atomic import write_text
from pipeline.experiments.parallel import side_by_side
from pipeline.training.metrics import Metrics

OPENED_FILE = "opened.json"
Curves = Mapping[Trial, list[Metrics]]


def search(student: Student, trials: Sequence[Trial], processes: int | None) -> Curves:
    """Train all trials, and return the evaluations of each."""
    return side_by_side(partial(_searched, student=student), trials, processes, progress="trials")


def choose(curves: Curves) -> dict[Method, Trial]:
    """For each method, return the trial that reached the lowest development loss at any of its evaluations."""
    best: dict[Method, Trial] = {}
    for trial, curve in curves.items():
        if trial.method not in best or lowest(curve) < lowest(curves[best[trial.method]]):
            best[trial.method] = trial
    return best


def lowest(curve: Sequence[Metrics]) -> float:
    """Return the lowest development loss of a training."""
    return min(record[DEVELOPMENT] for record in curve)


def record_choices(chosen: Mapping[Method, Trial], folder: Path) -> None:
    """Record the chosen settings before the test documents are read.

    Raises:
        ValueError: if the test documents were read with other settings before.
    """
    choices = {method.name: dict(trial.settings) for method, trial in chosen.items()}
    file = folder / OPENED_FILE
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8")) != choices:
            raise ValueError(
                f"the test documents were opened with other choices, which {file} names; choose another `output` and"
                " other test documents"
            )
        return
    write_text(file, json.dumps(choices, indent=1) + "\n")


def open_test(
    student: Student, chosen: Mapping[Method, Trial], seeds: int, processes: int | None, folder: Path
) -> Curves:
    """Train models with the chosen settings, evaluate the models on the test documents, and return their curves.

    A curve has the evaluations during a training. The seeds differ from the seeds of all earlier trials. All methods
    are trained with the first seed before any method is trained with the second seed. The chosen settings are recorded
    in `folder` before the first training.

    Raises:
        ValueError: if the test documents were already read for other chosen settings.
    """
    record_choices(chosen, folder)
    trials = [replace(trial, seed=seed) for seed in range(1, seeds + 1) for trial in chosen.values()]
    return side_by_side(partial(_tested, student=student), trials, processes, progress="seeds")


def _searched(trial: Trial, student: Student) -> list[Metrics]:
    return student.search(trial)


def _tested(trial: Trial, student: Student) -> list[Metrics]:
    return student.test(trial)
