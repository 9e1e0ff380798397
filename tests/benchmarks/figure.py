"""Figures that a benchmark prints, each on one line with its target, and the timing of several functions in turns."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Figure:
    """A measured number with its target. The target is a minimum, a maximum or missing."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        enough = self.at_least is None or self.value >= self.at_least
        return enough and (self.at_most is None or self.value <= self.at_most)

    @property
    def target(self) -> str:
        if self.at_least is not None:
            return f">= {self.at_least:g}"
        return "none" if self.at_most is None else f"<= {self.at_most:g}"

    def __str__(self) -> str:
        verdict = "met" if self.met else "MISSED"
        return f"{self.what:<105} {self.value:>9.4g}  target {self.target:<8} {verdict}"


def median_seconds(timed: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each function. They run in turns, so that a busy moment slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(repeats):
        for name, run in timed.items():
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(times) for name, times in seconds.items()}


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
