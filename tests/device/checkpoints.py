"""Section `checkpoints` of the device measurements: train models of the shipped sizes in the minutes that are left.

The models are trained on a file of text. The training jobs need cyclopts. A checkpoint is written to the folder of the
measurements' log, in files of at most 8 MB each.
"""

import subprocess
import sys
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from pipeline.models.checkpoint import SHIPPED
from tests.device.log import Figures, Log

LEAST_SECONDS = 60.0
MEASURED_STEPS = 50
SPENT = 0.8  # share of the remaining time for the steps, because the job then evaluates and saves

RECIPES: dict[str, tuple[str, ...]] = {
    "estimator": (
        *("-m", "jobs.train_estimator", "--tokenizer", str(SHIPPED / "tokenizer")),
        *("--init-from", str(SHIPPED / "estimator"), "--held-out", "500", "--model.introduction", "projection"),
        *("--model.introduced-above", "4", "--model.noise", "0.0625", "--training.tokens-per-batch", "65536"),
        *("--training.learning-rate", "0.001", "--training.save-as", "bfloat16"),
    )
}
TINY_RECIPES: dict[str, tuple[str, ...]] = {
    "estimator": (
        *("-m", "jobs.train_estimator", "--tokenizer", str(SHIPPED / "tokenizer"), "--held-out", "2"),
        *("--model.context", "16", "--model.decoder-width", "24", "--model.decoder-layers", "1"),
        *("--training.tokens-per-batch", "64"),
    )
}


def section(log: Log, text: str | None, folder: Path, *, tiny: bool) -> None:
    for name, recipe in (TINY_RECIPES if tiny else RECIPES).items():
        if text is None:
            log.skip("checkpoints", name, "no --text to train on")
        elif find_spec("cyclopts") is None:
            log.skip("checkpoints", name, "cyclopts is not installed, which the job needs")
        else:
            needs = 0.0 if tiny else LEAST_SECONDS
            command = (sys.executable, *recipe, "--input", text)
            measured = 2 if tiny else MEASURED_STEPS
            log.measure("checkpoints", name, partial(_trained, log, command, folder / name, measured), needs=needs)


def _trained(log: Log, command: tuple[str, ...], output: Path, measured: int) -> Figures:
    """Train for as many steps as the time allows. Two short trainings first measure the time of a step."""
    start, more = (_train(command, output.with_name(f"{output.name}-{steps}"), steps) for steps in (1, measured + 1))
    step = max(1e-3, (more - start) / measured)
    steps = max(1, int((SPENT * log.seconds_left - start) / step))
    seconds = _train(command, output, steps)
    last = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return {"steps": steps, "steps/s": 1 / step, "s": seconds, "metrics": last}


def _train(command: tuple[str, ...], output: Path, steps: int) -> float:
    started = time.monotonic()
    ended = subprocess.run(
        [*command, "--output", str(output), "--training.steps", str(steps), "--training.evaluate-every", str(steps)],
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip().splitlines() or ["the training ended without a word"])[-1])
    return time.monotonic() - started
