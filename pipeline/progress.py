"""How far a run is: a bar on a terminal, elsewhere a line a minute."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from pipeline.engine.report import Report

LINE_SECONDS = 60.0


class Progress:
    """Rows of `total` that are done, of which `done` were before; tokens/s, time left, failures, workers."""

    def __init__(self, total: int, done: int) -> None:
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc="annotating", unit=" documents", disable=not self.terminal)
        self.total, self.done = total, done
        self.next_line = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def show(self, report: Report, workers: int) -> None:
        """Brings the bar up to date, or prints a line when a minute has passed."""
        if self.terminal:
            self.bar.set_postfix_str(self._state(report, workers), refresh=False)
            self.bar.update(self.done + report.counts.rows - self.bar.n)
        elif time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_SECONDS
            rows = self.done + report.counts.rows
            print(
                f"{rows:,} of {self.total:,} documents ({rows / self.total:.1%}), {self._left(report)}, "
                + self._state(report, workers),
                file=sys.stderr,
                flush=True,
            )

    @staticmethod
    def _state(report: Report, workers: int) -> str:
        failures = f", {report.given_up} units given up" if report.given_up else ""
        return f"{report.tokens_per_second:,.0f} tokens/s, {workers} workers{failures}"

    def _left(self, report: Report) -> str:
        if not report.counts.rows:
            return "time left unknown"
        rows = self.total - self.done - report.counts.rows
        return f"{tqdm.format_interval(rows * report.seconds / report.counts.rows)} left"
