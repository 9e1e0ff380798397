"""What a comparison of objectives comes to: figures as CSV, a table in Markdown, held-out loss by step as a plot."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan, sqrt
from pathlib import Path
from statistics import fmean, stdev

from pipeline.experiments.study import ObjectiveTrial
from pipeline.experiments.tables import write_csv

CurvesOfTrials = Mapping[ObjectiveTrial, list[dict[str, float]]]
# Of Student's distribution, for means of two to ten seeds
T_95 = dict(enumerate((12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26), start=2))


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All seeds of one objective, labels and dropout: means, and half the width of their 95% confidence interval."""

    objective: str
    labels: str
    """With their scale and margin, where they have any."""
    dropout: float
    seeds: int
    final: float
    """Held-out loss at the last step, nats a token."""
    final_error: float
    best: float
    """The lowest held-out loss of any evaluation, which only who looks at held-out text can stop at."""
    best_error: float
    gap: float
    """Held-out less training loss at the last step."""
    elsewhere: float
    """Loss on other text at the last step; NaN where there is none."""


def summarise(figures: CurvesOfTrials) -> Iterator[Summary]:
    """A line an objective, labels and dropout, in the order of the trials."""
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
    """Half the width of the 95% confidence interval of the mean; NaN of a single value."""
    if len(values) < 2:
        return nan
    deviation = stdev(values)
    return T_95.get(len(values), 1.96) * deviation / sqrt(len(values))


def write_results(
    folder: Path, figures: CurvesOfTrials, summaries: Sequence[Summary], truth: float | None, made_by: str
) -> str:
    """Writes `results.csv`, `curves.csv`, `results.md` and `curves.png`; returns the table."""
    write_csv(folder / "results.csv", [asdict(summary) for summary in summaries])
    curves = [{**asdict(trial), **record} for trial, curve in figures.items() for record in curve]
    write_csv(folder / "curves.csv", curves)
    report = f"{markdown(summaries, truth)}\nMade by `{made_by}`.\n"
    (folder / "results.md").write_text(report, encoding="utf-8")
    write_plot(folder / "curves.png", figures, truth)
    return report


def markdown(summaries: Sequence[Summary], truth: float | None) -> str:
    """A table of means, the half widths of 95% confidence intervals in brackets, the lowest final loss first."""
    known = "" if truth is None else f"The truth's own held-out loss is {truth:.3f} nats a token.\n\n"
    elsewhere = not all(isnan(summary.elsewhere) for summary in summaries)
    head = ["objective", "labels", "dropout", "final", "best", "gap", *(["other text"] if elsewhere else [])]
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    for each in sorted(summaries, key=lambda summary: summary.final):
        cells = [each.objective, each.labels, f"{each.dropout:g}", f"{each.final:.3f} ({each.final_error:.3f})"]
        cells += [f"{each.best:.3f} ({each.best_error:.3f})", f"{each.gap:.3f}"]
        lines.append(" | ".join([*cells, *([f"{each.elsewhere:.3f}"] if elsewhere else [])]))
    return known + "".join(f"| {line} |\n" for line in lines)


def write_plot(file: Path, figures: CurvesOfTrials, truth: float | None) -> None:
    """Held-out loss by step at the lowest dropout, the mean of all seeds; panels for flood, floor and the others.

    Where the truth's own loss is known it is what lies above that, on a logarithmic axis.
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
    above = "" if truth is None else " above the truth's"
    figure.axes[0].set_ylabel(f"held-out loss{above}, nats a token")
    figure.savefig(file, dpi=110)


def mean_curves(figures: CurvesOfTrials) -> dict[tuple[str, str], dict[float, float]]:
    """Held-out loss at each step, the mean of all seeds, by objective and labels, at the lowest dropout."""
    lowest = min(trial.dropout for trial in figures)
    losses: dict[tuple[str, str], dict[float, list[float]]] = {}
    for trial, curve in figures.items():
        if trial.dropout == lowest:
            group = losses.setdefault((trial.objective, trial.corrected_labels), {})
            for record in curve:
                group.setdefault(record["step"], []).append(record["held_out_loss"])
    return {what: {step: fmean(values) for step, values in group.items()} for what, group in losses.items()}
