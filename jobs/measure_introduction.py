"""Measures what late introduction of the embedding costs in loss and labels, and saves in time, on known sources.

Writes results.csv, and results.md, the means over sources.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import cyclopts

from pipeline.cli import run
from pipeline.experiments.sources import SOURCES, ContestSettings, require_sources
from pipeline.experiments.tables import write_csv
from pipeline.messages import say
from pipeline.models.checkpoint import require_new_folder
from pipeline.models.model_card import command_line

if TYPE_CHECKING:  # imports torch, which takes seconds that --help does not need
    from pipeline.experiments.introduction import Outcome


@dataclass(frozen=True, kw_only=True)
class Contest(ContestSettings):
    """Sizes and lengths, with a layer more than the contest of all methods."""

    layers: int = 3
    """Blocks of every model; the encoder has one less."""
    steps: int = 500
    """Optimizer steps of the estimators; the language model takes as many as have the same compute."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Which sources, which widths, where to write."""

    output: Path
    """Folder to write the results to."""
    sources: tuple[str, ...] = tuple(SOURCES)
    """Sources to draw documents from; all by default."""
    widths: tuple[int, ...] = (1, 4)
    """Numbers that the embedding has."""
    contest: Contest = field(default_factory=Contest)

    def __post_init__(self) -> None:
        require_sources(self.sources)
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"--widths must be at least 1, not {' '.join(map(str, self.widths))}")


def measure_introduction(config: Config) -> None:
    """Measure estimators whose embedding enters above none to all of the decoder's layers."""
    import torch

    from pipeline.experiments.introduction import compare_introductions

    require_new_folder(config.output)
    config.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # more do not help models of this size
    outcomes: list[Outcome] = []
    for source in config.sources:
        training = config.output / "training" / source
        for outcome in compare_introductions(source, config.contest, config.widths, training):
            outcomes.append(outcome)
            write_csv(config.output / "results.csv", [asdict(each) for each in outcomes])
            say(f"{source:14} {outcome.variant:28} {row(outcome)}")
    report = f"{markdown(outcomes)}\n\nMade by `{command_line('jobs.measure_introduction', sys.argv[1:])}`.\n"
    (config.output / "results.md").write_text(report, encoding="utf-8")
    say(*report.split("\n"))


def row(outcome: Outcome) -> str:
    """One outcome for the terminal."""
    return (
        f"loss {outcome.held_out_loss:.3f}, error {outcome.mean_absolute_error:.3f} nats, R² {outcome.r_squared:.3f}, "
        f"{outcome.passes:.1f} passes"
    )


def markdown(outcomes: Sequence[Outcome]) -> str:
    """A table of errors, R² in brackets, by variant and source; losses and passes are means over sources."""
    sources = list(dict.fromkeys(outcome.source for outcome in outcomes))
    lines = [
        f"| the embedding enters | {' | '.join(sources)} | held-out loss | passes a label |",
        "|---|" + "---|" * (len(sources) + 2),
    ]
    for variant in dict.fromkeys(outcome.variant for outcome in outcomes):
        those = {outcome.source: outcome for outcome in outcomes if outcome.variant == variant}
        errors = [f"{those[name].mean_absolute_error:.3f} ({those[name].r_squared:.3f})" for name in sources]
        loss, passes = fmean(o.held_out_loss for o in those.values()), fmean(o.passes for o in those.values())
        lines.append(f"| {variant} | {' | '.join(errors)} | {loss:.3f} | {passes:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(measure_introduction, "jobs.measure_introduction", resumes=False)
