"""The lines of a run, one per measurement. Each is written at the end of its measurement, so a time-out loses none."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

Figures = dict[str, float | str]


@dataclass(frozen=True)
class Line:
    """A measurement with its figures, or with the reason why it has none."""

    section: str
    what: str
    figures: Figures = field(default_factory=dict)
    reason: str = ""
    seconds: float = 0.0


class Log:
    """File to which measurements append lines until the time is over."""

    def __init__(self, file: Path, minutes: float) -> None:
        self.file, self.deadline = file, time.monotonic() + 60 * minutes
        self.failed = False
        file.parent.mkdir(parents=True, exist_ok=True)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def measure(self, section: str, what: str, figures: Callable[[], Figures], *, needs: float = 0.0) -> Figures:
        """Take a measurement if at least `needs` seconds are left. Write a line, and return the figures.

        A measurement without figures has a reason in its line: too little time, too little memory, or an error. Only an
        error makes the run a failed one.
        """
        started, found, reason = time.monotonic(), Figures(), ""
        if self.seconds_left < needs or self.seconds_left <= 0:
            reason = f"{max(0, self.seconds_left):.0f} seconds are left"
        else:
            try:
                found = figures()
            except torch.OutOfMemoryError as error:
                reason = f"does not fit the memory: {_first_line(error)}"
            except Exception as error:  # the next measurement may work
                reason, self.failed = f"failed: {type(error).__name__}: {_first_line(error)}", True
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.append(Line(section, what, found, reason, round(time.monotonic() - started, 2)))
        return found

    def skip(self, section: str, what: str, reason: str) -> None:
        """Write a line with the reason why a measurement is not taken."""
        self.append(Line(section, what, reason=reason))

    def append(self, line: Line) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        shown = ", ".join(f"{name} {_shown(value)}" for name, value in line.figures.items())
        print(f"{line.section:<12} {line.what}: {shown or line.reason}", flush=True)


def read_lines(file: Path) -> list[Line]:
    """Return the lines of a run, without a last line that a kill cut short."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Line(**json.loads(line)) for line in lines if line.endswith("\n")]


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:300]
