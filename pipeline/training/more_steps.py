"""More steps for a finished training: what a finished output keeps, and the way back to an unfinished one.

Only the decay trapezoid can be continued: with other decays, every step depends on the number of all steps. A finished
output keeps the run's settings, and the state of its `TrainingConfig.lasting_step`, in a folder of their own, which is
no part of the checkpoint and its digest. A command with the same settings and more steps continues from this state, to
the same bits as if the training had had this number of steps from the beginning. The finished model stays in the output
until the next one replaces it.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.data.atomic import write_text
from pipeline.training.config import TrainingConfig

CONTINUED = "continue"
FOLDS = "fold-*-of-*"


def set_aside(output: Path, *files: Path) -> None:
    """Move files of a finished training, its settings or its lasting state, into the folder that keeps them.

    Files that do not exist are skipped. If the training has folds, the states are in the folders of the folds, and the
    settings are in the folder above.
    """
    for file in files:
        if file.is_file():
            (output / CONTINUED).mkdir(exist_ok=True)
            file.replace(output / CONTINUED / file.name)


def reopen(settings: Path, requested: Mapping[str, Any], training: TrainingConfig, state: str) -> None:
    """Make a finished training unfinished again, with more steps.

    Args:
        settings: file in the output that holds the settings of an unfinished training. This function writes it.
        requested: all settings that the model depends on, by name. The entry `training` has those in `training`.
        training: settings of the requested training.
        state: format string for the name of a state's file, with the field `step`.

    Raises:
        ValueError: if the finished training had other settings or at least as many steps, if its state is gone, or if
            its state holds an average of the weights that began too early for the requested training.
    """
    output = settings.parent
    before = _read(output / CONTINUED / settings.name)
    steps = before["training"]["steps"]
    differing = sorted(
        name
        for name in {**before, **requested}
        if _without_steps(name, before.get(name)) != _without_steps(name, requested.get(name))
    )
    if differing:
        raise ValueError(
            f"`output` {output} holds a finished training with other settings ({', '.join(differing)}); choose another"
            " folder"
        )
    if training.steps <= steps:
        raise ValueError(
            f"`output` {output} holds this training, finished with {steps:,} steps; give more steps to continue it, or"
            " choose another folder"
        )
    last = replace(training, steps=steps)
    _require_average(training, last)
    for folder in sorted(output.glob(FOLDS)) or [output]:
        _reopen_state(folder, state.format(step=last.lasting_step))
    write_text(settings, json.dumps(requested, indent=2))
    (output / CONTINUED / settings.name).unlink()


def _reopen_state(folder: Path, name: str) -> None:
    kept = folder / CONTINUED / name
    if kept.is_file():
        kept.replace(folder / name)
    if not (folder / name).is_file():  # it is there already if an earlier call was interrupted
        raise ValueError(f"{kept} is gone, from which this training would continue; choose another folder")


def _read(file: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        int(settings["training"]["steps"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error!r}); choose another folder") from error
    return settings


def _without_steps(name: str, value: Any) -> Any:
    return {**value, "steps": None} if name == "training" and isinstance(value, dict) else value


def _require_average(training: TrainingConfig, last: TrainingConfig) -> None:
    """Raise if the kept state holds an average of the weights that the requested training would not have at its step.

    Raises:
        ValueError: if the requested average begins later than the average of the finished training, but no later than
            the step of the state.
    """
    state, begins = last.lasting_step or 0, training.first_averaged
    if training.average == "none" or begins == last.first_averaged or begins > state:
        return
    raise ValueError(
        f"the average of {last.steps:,} steps began at step {last.first_averaged:,}, and of {training.steps:,} steps it"
        f" begins at step {begins:,}, which is done; give at least"
        f" {math.ceil(state / training.average_from):,} steps"
    )
