"""Measure label methods against sources whose entropies are known exactly.

On each source, a causal language model and an entropy estimation model (estimator) are trained with equal compute.
Second-order models learn the labels of these two models, and all models label the same new documents. With
--introduction, the job instead compares estimators that differ in the place where the embedding enters the decoder. The
comparison covers held-out loss, label errors and labelling time. With --ensemble, the job compares ensembles of causal
language models with single ones. Several sources are processed at a time, one per CPU core. Writes results.csv,
results.md, the metrics of each training run and, if label methods are compared, a scatter plot for each method.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.experiments.parallel import side_by_side
from pipeline.experiments.results import require_matplotlib
from pipeline.experiments.sources import SOURCES, ContestSettings, require_sources
from pipeline.messages import say
from pipeline.models.checkpoint import require_new_folder
from pipeline.models.model_card import command_line

if TYPE_CHECKING:  # these import torch, which is slow and not needed for --help
    from pipeline.experiments.accuracy import Entry
    from pipeline.experiments.ensembles import EnsembleAccuracy
    from pipeline.experiments.introduction import Outcome


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the measurement: sources, sizes of models, lengths of training runs, and output."""

    output: Path
    """Folder to write the results to."""
    sources: tuple[str, ...] = tuple(SOURCES)
    """Names of the sources of known entropy to measure on; all by default."""
    introduction: bool = False
    """Compare estimators instead of label methods. In the first variant, the embedding enters the decoder as an
    additional token. In the other variants, the embedding is added to the states above the first n decoder layers, for
    every n from 0 to the number of layers."""
    widths: tuple[int, ...] = (1, 4)
    """With --introduction, embedding widths to try."""
    ensemble: tuple[int, ...] = ()
    """Sizes of ensembles. Instead of label methods, compare ensembles of this many causal language models with single
    models. The models of an ensemble have different seeds. The same command resumes an interrupted comparison."""
    processes: int | None = None
    """Number of sources to process at a time; one per CPU core by default."""
    contest: ContestSettings = field(default_factory=ContestSettings)

    def __post_init__(self) -> None:
        require_sources(self.sources)
        require_at_least_one(self, "processes")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"--widths must be at least 1, not {' '.join(map(str, self.widths))}")
        if self.ensemble and min(self.ensemble) < 2:
            raise ValueError(f"--ensemble must be at least 2, not {' '.join(map(str, self.ensemble))}")
        if self.ensemble and self.introduction:
            raise ValueError("--ensemble and --introduction are two measurements; leave one of them out")


def measure_truth(config: Config) -> None:
    """Measure how close each label method comes to the true entropies of sources whose distribution is known."""
    from pipeline.experiments import accuracy, introduction

    made_by = command_line("jobs.measure_truth", sys.argv[1:])
    if config.ensemble:
        measure_ensembles(config, made_by)
        return
    if not config.introduction:
        require_matplotlib()
    require_new_folder(config.output)
    config.output.mkdir(parents=True, exist_ok=True)
    if config.introduction:
        outcomes = side_by_side(partial(introductions, config=config), config.sources, config.processes)
        introduction.write_results(config.output, list(chain(*outcomes.values())), made_by)
    else:
        entries = side_by_side(partial(contest, config=config), config.sources, config.processes)
        accuracy.write_results(config.output, list(chain(*entries.values())), made_by)


def measure_ensembles(config: Config, made_by: str) -> None:
    """Measure ensembles on all sources. An interrupted measurement is resumed."""
    from pipeline.experiments import ensembles
    from pipeline.training import resume

    settings = {name: value for name, value in asdict(config).items() if name not in ("output", "processes")}
    resume.begin(config.output, settings)
    measured = side_by_side(partial(ensembles_of, config=config), config.sources, config.processes)
    ensembles.write_results(config.output, list(chain(*measured.values())), made_by)
    resume.finish(config.output)


def ensembles_of(source: str, config: Config) -> list[EnsembleAccuracy]:
    """Train models and measure ensembles of them on one source, and return all results.

    One CPU core is used.
    """
    from pipeline.experiments.ensembles import compare_ensembles

    return list(compare_ensembles(source, config.contest, config.ensemble, config.output / "training" / source))


def contest(source: str, config: Config) -> list[Entry]:
    """Train and measure all label methods on one source. Print each result when it is known, and return all results.

    One CPU core is used, since models of this size are not faster with more threads.
    """
    from pipeline.experiments.contest import hold_contest

    entries: list[Entry] = []
    for entry in hold_contest(source, config.contest, config.output / "training" / source):
        result = entry.accuracy
        error = "" if result.mean_absolute_error is None else f"{result.mean_absolute_error:.3f} nats, "
        say(f"{source:14} {result.method:40} {result.target:10} {error}R² {result.r_squared:.3f}")
        entries.append(entry)
    return entries


def introductions(source: str, config: Config) -> list[Outcome]:
    """Train and compare estimators on one source. Print each outcome when it is known, and return all outcomes.

    One CPU core is used.
    """
    from pipeline.experiments.introduction import compare_introductions

    outcomes: list[Outcome] = []
    training = config.output / "training" / source
    for outcome in compare_introductions(source, config.contest, config.widths, training):
        errors = f"error {outcome.mean_absolute_error:.3f} nats, R² {outcome.r_squared:.3f}"
        losses = f"loss {outcome.held_out_loss:.3f}, {errors}, {outcome.passes:.1f} passes"
        say(f"{source:14} {outcome.variant:28} {losses}")
        outcomes.append(outcome)
    return outcomes


if __name__ == "__main__":
    run(measure_truth, "jobs.measure_truth", resumes=False)
