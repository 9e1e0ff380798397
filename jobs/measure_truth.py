"""Holds every label method against sources whose entropies are known exactly.

On each source a causal language model and an entropy estimation model are trained with equal compute, second-order
models learn the labels of these, and all of them label the same fresh documents. A source takes one CPU core; the
sources run beside each other. Writes results.csv, results.md, a scatter plot a method and the metrics of each training.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.experiments.parallel import side_by_side
from pipeline.experiments.plots import require_matplotlib, write_plots
from pipeline.experiments.sources import SOURCES, ContestSettings, require_sources
from pipeline.experiments.tables import write_csv
from pipeline.messages import say
from pipeline.models.checkpoint import require_new_folder
from pipeline.models.model_card import command_line

if TYPE_CHECKING:  # imports torch, which takes seconds that --help does not need
    from pipeline.experiments.accuracy import Accuracy
    from pipeline.experiments.contest import Entry


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Which sources, how large the contest, where to write."""

    output: Path
    """Folder to write the results to."""
    sources: tuple[str, ...] = tuple(SOURCES)
    """Sources to hold the methods against; all by default."""
    processes: int | None = None
    """Sources at a time; one a CPU core by default."""
    contest: ContestSettings = field(default_factory=ContestSettings)

    def __post_init__(self) -> None:
        require_sources(self.sources)
        require_at_least_one(self, "processes")


def measure_truth(config: Config) -> None:
    """Measure how near each label method comes to the true entropies of known sources."""
    from pipeline.experiments.accuracy import markdown, verdict

    require_matplotlib()
    require_new_folder(config.output)
    config.output.mkdir(parents=True, exist_ok=True)
    by_source = dict(side_by_side(partial(contest, config=config), config.sources, config.processes))
    entries = [entry for source in config.sources for entry in by_source[source]]
    results = [entry.accuracy for entry in entries]
    write_csv(config.output / "results.csv", [asdict(result) for result in results])
    write_plots(config.output, entries)
    report = (
        f"{markdown(results)}\n{verdict(results)}\n\nMade by `{command_line('jobs.measure_truth', sys.argv[1:])}`.\n"
    )
    (config.output / "results.md").write_text(report, encoding="utf-8")
    say(*report.split("\n"))


def contest(name: str, config: Config) -> list[Entry]:
    """One source's contest on one core, printing each result. More threads do not help models of this size."""
    from pipeline.experiments.contest import hold_contest

    entries: list[Entry] = []
    for entry in hold_contest(name, config.contest, config.output / "training" / name):
        say(line(entry.accuracy))
        entries.append(entry)
    return entries


def line(result: Accuracy) -> str:
    """One result for the terminal."""
    error = "" if result.mean_absolute_error is None else f"{result.mean_absolute_error:.3f} nats, "
    return f"{result.source:14} {result.method:40} {result.target:10} {error}R² {result.r_squared:.3f}"


if __name__ == "__main__":
    run(measure_truth, "jobs.measure_truth", resumes=False)
