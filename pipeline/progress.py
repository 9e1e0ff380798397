"""Progress of a run on standard error: a line for each slow stage, then a progress bar.

Without a terminal, a line per minute replaces the bar.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tqdm import tqdm

from pipeline.messages import say

LINE_SECONDS = 60.0
TICK_SECONDS = 0.5  # between two updates
SHORT_SECONDS = 1.0  # shorter stages print no line


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print the name of a stage of the work if it takes longer than SHORT_SECONDS."""
    timer = threading.Timer(SHORT_SECONDS, lambda: say(f"{name} ...", file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@dataclass(frozen=True)
class State:
    """Totals since the start of the command, including the labelled parts of units that are not committed yet."""

    rows: float
    tokens: float
    workers: int
    """Number of workers that have loaded the model."""
    quarantined: int
    """Number of quarantined units."""


class Progress:
    """Display of a run's progress: rows out of `total`, tokens/s, time left, workers and quarantined units.

    `done` is the number of rows that were labelled before this start of the command. A thread calls `look` to get the
    state, because the main thread may be busy labelling.
    """

    def __init__(self, total: int, done: int, look: Callable[[], State]) -> None:
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total, initial=done, desc="annotating", unit=" documents", disable=not self.terminal)
        self.total, self.done, self.look = total, done, look
        self.started: float | None = None
        """Time at which the first worker finished loading the model, or None before that."""
        self.next_line = 0.0
        self.loading = ExitStack()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if not self.terminal:  # on a terminal, the bar says this
            self.loading.enter_context(stage("loading the model"))
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self.thread.join()
        self.loading.close()
        self.show(self.look())
        self.bar.close()

    def _watch(self) -> None:
        while not self.ended.wait(TICK_SECONDS):
            self.show(self.look())

    def show(self, state: State) -> None:
        """Update the bar or, without a terminal, print a line if a minute has passed."""
        if self.started is None and state.workers:
            self.started = time.monotonic()
            self.next_line = self.started + LINE_SECONDS
            self.loading.close()
        if self.terminal:
            self.bar.set_postfix_str(self._state(state), refresh=False)
            self.bar.n = self.done + int(state.rows)  # less than before if a worker died
            self.bar.refresh()
        elif self.started is not None and time.monotonic() >= self.next_line:
            self.next_line = time.monotonic() + LINE_SECONDS
            rows = self.done + state.rows
            say(
                f"{int(rows):,} of {self.total:,} documents ({rows / self.total:.1%}), {self._left(state)}, "
                + self._state(state),
                file=sys.stderr,
            )

    @property
    def seconds(self) -> float:
        """Seconds since the first worker finished loading the model, or 0 before that."""
        return max(1e-9, time.monotonic() - self.started) if self.started is not None else 0.0

    def _state(self, state: State) -> str:
        if self.started is None:
            return "loading the model"
        failures = f", {state.quarantined} units quarantined" if state.quarantined else ""
        return f"{state.tokens / self.seconds:,.0f} tokens/s, {state.workers} workers{failures}"

    def _left(self, state: State) -> str:
        if not state.rows:
            return "time left unknown"
        rows = self.total - self.done - state.rows
        return f"{tqdm.format_interval(rows * self.seconds / state.rows)} left"
