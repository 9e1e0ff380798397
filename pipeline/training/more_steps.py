"""More steps for a finished training: files that its output keeps, and the function that makes it unfinished again.

Only a training with the decay trapezoid can be continued. With other decays, every step depends on the number of all
steps. A finished output keeps the run's settings and the state of `TrainingConfig.lasting_step` in the folder
`continue`, which does not belong to the checkpoint and its digest. A command with the same settings and more steps
continues from this state. The result is bit-identical to a training that had this number of steps from the beginning.
The finished model stays in the output until the new model replaces it.
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
    """Move the settings and a saved state of a finished training into the folder `continue` of its output.

    Files that do not exist are skipped. If the training has cross-validation folds, the output of each fold has only a
    state, and the folder above has only the settings.
    """
    for file in files:
        if file.is_file():
            (output / CONTINUED).mkdir(exist_ok=True)
            file.replace(output / CONTINUED / file.name)


def reopen(settings: Path, requested: Mapping[str, Any], training: TrainingConfig, state: str) -> None:
    """Turn a finished training into an unfinished one, so that training can resume and do more steps.

    Args:
        settings: path of the file in the output that holds the settings of an unfinished training. The file is written
            by this function.
        requested: all settings that the model depends on, by name. The entry `training` has the values of `training`.
        training: settings of the requested training.
        state: format string for the name of a saved state, with the field `step`.

    Raises:
        ValueError: if the settings of the finished training differ in anything but the number of steps; if it had at
            least as many steps as requested; if its saved state is gone; or if the average of the weights in the state
            began too early for the requested training.
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
    """Check that the requested training can continue the average of the weights in the kept state.

    `last` has the settings of the finished training. With more steps, the average may begin at a later step. Then the
    average in the kept state is of no use, because it contains weights from earlier steps. The average must be begun
    anew, so its first step must come after the step of the kept state.

    Raises:
        ValueError: if the average begins at a later step than in the finished training, and this step does not come
            after the step of the kept state.
    """
    state, begins = last.lasting_step or 0, training.first_averaged
    if training.average == "none" or begins == last.first_averaged or begins > state:
        return
    raise ValueError(
        f"the average of weights began at step {last.first_averaged:,}; with {training.steps:,} steps it would begin at"
        f" step {begins:,}, which the finished training has passed; give at least"
        f" {math.ceil(state / training.average_from):,} steps"
    )
