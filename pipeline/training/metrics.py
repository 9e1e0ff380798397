"""Training metrics: one line of `metrics.jsonl` per evaluation, a progress bar, and experiment trackers.

Without a terminal, a line per minute and per evaluation replaces the bar.
"""

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from accelerate import Accelerator
from tqdm import tqdm

from pipeline.data.atomic import write_text
from pipeline.messages import say
from pipeline.progress import LINE_SECONDS
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.resume import TrainingState

Metrics = dict[str, float]
METRICS_FILE = "metrics.jsonl"
PROJECT = "token-entropy"


def evaluations(output: Path) -> list[Metrics]:
    """Return the metrics of each evaluation of a finished training run, in order, from its `metrics.jsonl`."""
    return [json.loads(line) for line in (output / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


def best_evaluation(output: Path) -> Metrics | None:
    """Return the metrics of the evaluation with the lowest held-out loss.

    Return None if this is the last evaluation, or if no evaluation has a `held_out_loss`.
    """
    found = [metrics for metrics in evaluations(output) if "held_out_loss" in metrics]
    best = min(found, key=lambda metrics: metrics["held_out_loss"], default=None)
    return None if best is None or best is found[-1] else best


class MetricsLog:
    """Log of a training run: counts steps, shows progress and writes evaluations.

    All processes count, but only the main process shows and writes.
    """

    def __init__(self, accelerator: Accelerator, config: TrainingConfig, output: Path, state: TrainingState) -> None:
        self.accelerator, self.file, self.writes = accelerator, output / METRICS_FILE, accelerator.is_main_process
        self.state, self.loss = state, math.nan
        self.resumed = self.started = time.monotonic()
        self.seconds_before, self.tokens_before = state.seconds, state.tokens
        self.speed, self.held_out = math.nan, Metrics()
        records = self._records(state.step) if self.writes else []
        self.record: Metrics = records[-1] if records else {}
        if self.writes:  # evaluations after the last saved state will be repeated
            write_text(self.file, "".join(json.dumps(record) + "\n" for record in records))
        accelerator.init_trackers(PROJECT, {name: _plain(value) for name, value in config.fingerprint.items()})
        name = f"training {output.name}"
        self.next_line = time.monotonic() + LINE_SECONDS
        shown = self.writes and sys.stderr.isatty()
        self.bar = tqdm(total=config.steps, desc=name, unit="step", initial=state.step, disable=not shown)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def add(self, loss: float, batches: Sequence[Batch]) -> None:
        """Add a finished step to the totals, and show its loss on the progress bar."""
        tokens = sum(int(batch.lengths_B.sum()) for batch in batches)
        seconds = self.seconds_before + time.monotonic() - self.started
        self.state = self.state.after(loss, tokens, seconds)
        self.speed = (self.state.tokens - self.tokens_before) / max(time.monotonic() - self.resumed, 1e-9)
        self.loss = loss
        if not self.bar.disable:
            self.bar.set_postfix_str(self._shown(), refresh=False)
            self.bar.update()
        elif time.monotonic() >= self.next_line:
            self._say_line()

    def evaluated(self, held_out: Metrics, learning_rate: float) -> None:
        """Write the metrics of an evaluation.

        `training_loss` is the mean training loss since the previous evaluation. Trackers also get the learning rate,
        and the tokens per second since the end of the previous evaluation.
        """
        state, self.held_out = self.state, held_out
        training = {"seconds": round(state.seconds, 1), "training_loss": state.losses / state.since}
        self.record = {"step": state.step, "tokens": state.tokens, **training, **held_out}
        self.state = state.after_evaluation()
        if self.writes:
            with self.file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(self.record) + "\n")
                lines.flush()
                os.fsync(lines.fileno())
        speed = {"learning_rate": learning_rate, "tokens_per_second": self.speed}
        self.accelerator.log({**self.record, **speed}, step=state.step)
        self.resumed, self.tokens_before = time.monotonic(), state.tokens
        self._say_line()

    def _say_line(self) -> None:
        """Print a line of progress, unless a progress bar is shown."""
        self.next_line = time.monotonic() + LINE_SECONDS
        if self.writes and self.bar.disable:
            say(f"step {self.state.step:,} of {self.bar.total:,}: {self._shown()}", file=sys.stderr)

    def _shown(self) -> str:
        shown = {"loss": self.loss, "tokens/s": self.speed, **self.held_out}
        return ", ".join(f"{name} {_short(value)}" for name, value in shown.items())

    def _records(self, step: int) -> list[Metrics]:
        """Return the evaluations up to and including a step, without a last line that a power cut left incomplete."""
        lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True) if step else []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if record["step"] <= step]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}"


def _plain(value: object) -> object:
    return value if isinstance(value, bool | int | float | str) else str(value)
