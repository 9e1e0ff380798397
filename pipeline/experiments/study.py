"""Study of training objectives on few documents: documents to overfit, several kinds of labels, trials, and a summary.

Trials differ only in objective, labels, dropout and seed. The module `overfitting` trains the models of the trials.

Shapes: N tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from math import isnan, nan, sqrt
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

from pipeline.data.corpus import Corpus
from pipeline.experiments.results import markdown_table, write_csv, write_report
from pipeline.training.config import ObjectiveName

SHUFFLED, TRUTH = "shuffled", "truth"
Labelled = tuple[ObjectiveName, str | None]
"""An objective, and the name of the labels that it uses; the name is None for objectives without labels."""
CORRECTED: tuple[ObjectiveName, ...] = ("flood", "floor", "flood-mean")
"""Objectives that are tried with every scale and margin; other objectives use neither. `flood` and `floor` apply scale
and margin to each label, and `flood-mean` applies them to the mean label."""


@dataclass(frozen=True)
class Study:
    """Documents to train on, several kinds of labels for these documents, and documents to evaluate on."""

    seen: Corpus
    labels: Mapping[str, np.ndarray]
    """Labels [N] in nats by the name of their label method. Index i is for token i of `seen`."""
    held_out: Mapping[str, Corpus]
    """Documents to evaluate on, by name. The documents called `held_out` are of the same kind as `seen`, and all
    others are of a different kind."""
    vocabulary: int
    start: int
    """Id of the start token, which precedes each window."""

    def with_labels(self, name: str | None, seed: int) -> Corpus:
        """Return the training documents with the labels called `name`, or without labels if `name` is None.

        The name `shuffled NAME` stands for the labels called NAME after a random permutation among the tokens.
        """
        if name is None:
            return replace(self.seen, labels_N=np.full(len(self.seen.tokens_N), np.nan, np.float32))
        labelled = replace(self.seen, labels_N=self.labels[name.removeprefix(f"{SHUFFLED} ")])
        return labelled.with_shuffled_labels(np.random.default_rng(seed)) if name.startswith(SHUFFLED) else labelled


@dataclass(frozen=True)
class ObjectiveTrial:
    """Settings for training one model: objective, labels with their scale and margin, dropout and seed."""

    objective: ObjectiveName
    labels: str | None
    dropout: float
    seed: int
    scale: float = 1.0
    margin: float = 0.0

    @property
    def corrected_labels(self) -> str:
        """Name of the labels with scale and margin, for display: `none`, `exact`, `exact x 1.5`, `exact x 0.8 + 1`."""
        scale = f" x {self.scale:g}" if self.scale != 1 else ""
        return (self.labels or "none") + scale + (f" + {self.margin:g}" if self.margin else "")

    @property
    def name(self) -> str:
        """Name of the trial's folder."""
        return f"{self.objective} {self.corrected_labels} dropout {self.dropout:g} seed {self.seed}".replace(" ", "-")


def trials(
    objectives: Sequence[Labelled],
    dropouts: Sequence[float],
    seeds: int,
    scales: Sequence[float] = (1.0,),
    margins: Sequence[float] = (0.0,),
) -> list[ObjectiveTrial]:
    """Return a trial for every combination of the arguments, without duplicates.

    All trials of the first seed come first, so that unfinished results cover every objective equally. Scales and
    margins apply only to objectives in CORRECTED.
    """
    every = product(range(seeds), dropouts, product(scales, margins), objectives)
    return list(
        dict.fromkeys(
            ObjectiveTrial(objective, labels, dropout, seed, *(correction if objective in CORRECTED else ()))
            for seed, dropout, correction, (objective, labels) in every
        )
    )


def default_objectives(labels: Sequence[str], chosen: str) -> list[Labelled]:
    """Return the objectives to try by default, each with the name of its labels.

    `flood` and `floor` are tried with every kind of labels, and the other objectives with the labels called `chosen`.
    `flood-mean` is also tried with the true labels, if these are known. Controls use no labels or shuffled labels.
    """
    with_all: list[Labelled] = [*(("flood", name) for name in labels), *(("floor", name) for name in labels)]
    with_chosen: list[Labelled] = [("weight", chosen), ("mask", chosen), ("reference-share", chosen)]
    # flood-mean uses only the mean of the labels, so it is also tried with the true mean if that is known.
    means: list[Labelled] = [("flood-mean", name) for name in dict.fromkeys((chosen, TRUTH)) if name in labels]
    controls: list[Labelled] = [("cross-entropy", None), ("random-share", None), ("flood", f"{SHUFFLED} {chosen}")]
    return [*controls, *means, *with_all, *with_chosen]


CurvesOfTrials = Mapping[ObjectiveTrial, list[dict[str, float]]]
# 97.5% quantile of Student's t, by number of seeds
T_95 = dict(enumerate((12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26), start=2))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Results of one combination of objective, labels and dropout, averaged over all seeds.

    `final_error` and `best_error` are half the width of the 95% confidence intervals of `final` and `best`.
    """

    objective: str
    labels: str
    """Name of the labels with scale and margin."""
    dropout: float
    seeds: int
    final: float
    """Held-out loss at the last step, in nats per token."""
    final_error: float
    best: float
    """Lowest held-out loss of all evaluations, in nats per token. Only early stopping on held-out text reaches it."""
    best_error: float
    gap: float
    """Held-out loss minus training loss at the last step."""
    elsewhere: float
    """Loss at the last step on text of another kind than the training text; NaN if this was not evaluated."""


def summarise(figures: CurvesOfTrials) -> Iterator[Summary]:
    """Yield a summary for each combination of objective, labels and dropout, in the order of the trials."""
    groups: dict[tuple[str, str, float], list[list[dict[str, float]]]] = {}
    for trial, curve in figures.items():
        groups.setdefault((trial.objective, trial.corrected_labels, trial.dropout), []).append(curve)
    for (objective, labels, dropout), curves in groups.items():
        finals = [curve[-1]["held_out_loss"] for curve in curves]
        bests = [min(record["held_out_loss"] for record in curve) for curve in curves]
        yield Summary(
            objective=objective,
            labels=labels,
            dropout=dropout,
            seeds=len(curves),
            final=fmean(finals),
            final_error=interval(finals),
            best=fmean(bests),
            best_error=interval(bests),
            gap=fmean([curve[-1]["held_out_loss"] - curve[-1]["seen_loss"] for curve in curves]),
            elsewhere=fmean([curve[-1].get("elsewhere_loss", nan) for curve in curves]),
        )


def interval(values: Sequence[float]) -> float:
    """Return half the width of the 95% confidence interval of the values' mean; NaN for a single value."""
    if len(values) < 2:
        return nan
    deviation = stdev(values)
    return T_95.get(len(values), 1.96) * deviation / sqrt(len(values))


def write_results(
    folder: Path, figures: CurvesOfTrials, summaries: Sequence[Summary], truth: float | None, made_by: str
) -> str:
    """Write `results.csv`, `curves.csv`, `results.md` and `curves.png`. Print and return the text of `results.md`."""
    write_csv(folder / "results.csv", [asdict(summary) for summary in summaries])
    curves = [{**asdict(trial), **record} for trial, curve in figures.items() for record in curve]
    write_csv(folder / "curves.csv", curves)
    write_plot(folder / "curves.png", figures, truth)
    return write_report(folder, markdown(summaries, truth), made_by)


def markdown(summaries: Sequence[Summary], truth: float | None) -> str:
    """Return the summaries as a Markdown table, sorted by final loss.

    The final and the best loss are followed by half the width of their 95% confidence intervals, in brackets.
    """
    known = "" if truth is None else f"The true distribution's held-out loss is {truth:.3f} nats per token.\n\n"
    elsewhere = not all(isnan(summary.elsewhere) for summary in summaries)
    head = ["objective", "labels", "dropout", "final", "best", "gap", *(["other text"] if elsewhere else [])]
    rows: list[list[str]] = []
    for each in sorted(summaries, key=lambda summary: summary.final):
        cells = [each.objective, each.labels, f"{each.dropout:g}", f"{each.final:.3f} ({each.final_error:.3f})"]
        cells += [f"{each.best:.3f} ({each.best_error:.3f})", f"{each.gap:.3f}"]
        rows.append([*cells, *([f"{each.elsewhere:.3f}"] if elsewhere else [])])
    return known + markdown_table(head, rows)


def write_plot(file: Path, figures: CurvesOfTrials, truth: float | None) -> None:
    """Plot the held-out loss of the trials with the lowest dropout against the step, averaged over seeds.

    There are three panels: `flood`, `floor` and other objectives. Cross-entropy is shown in each panel. If the loss of
    the true distribution is known, it is subtracted from all losses, and the loss axis is logarithmic.
    """
    from matplotlib.figure import Figure

    curves, panels = mean_curves(figures), ("flood", "floor", "other")
    figure = Figure(figsize=(15, 4.6), layout="constrained")
    for panel, name in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        for (objective, labels), loss_at in curves.items():
            if objective in (name, "cross-entropy") or (name == "other" and objective not in panels):
                label = objective if labels == "none" else f"{objective}, {labels}"
                style = {"color": "black"} if objective == "cross-entropy" else {}
                losses = [loss - (truth or 0) for loss in loss_at.values()]
                panel.plot(list(loss_at), losses, label=label, linewidth=1.4, **style)
        panel.set_yscale("linear" if truth is None else "log")
        panel.set_xlabel("step")
        if panel.lines:
            panel.legend(fontsize=8)
    above = "" if truth is None else " above the true distribution's"
    figure.axes[0].set_ylabel(f"held-out loss{above}, nats per token")
    figure.savefig(file, dpi=110)


def mean_curves(figures: CurvesOfTrials) -> dict[tuple[str, str], dict[float, float]]:
    """Return the held-out losses of the trials with the lowest dropout, averaged over seeds.

    The outer keys are pairs of objective and labels, and the inner keys are steps.
    """
    lowest = min(trial.dropout for trial in figures)
    losses: dict[tuple[str, str], dict[float, list[float]]] = {}
    for trial, curve in figures.items():
        if trial.dropout == lowest:
            group = losses.setdefault((trial.objective, trial.corrected_labels), {})
            for record in curve:
                group.setdefault(record["step"], []).append(record["held_out_loss"])
    return {what: {step: fmean(values) for step, values in group.items()} for what, group in losses.items()}
