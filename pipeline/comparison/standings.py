"""Standings of a comparison: each method's losses on the test documents, and its difference from the baseline.

Intervals come from a paired bootstrap over documents and seeds.

Shapes: S seeds, M documents.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan, nan
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.comparison.bootstrap import Interval, mean_loss, paired_difference
from pipeline.comparison.methods import BASELINE, Method, Trial
from pipeline.comparison.protocol import Curves, lowest
from pipeline.comparison.student import Student, saved_test_losses
from pipeline.comparison.study import SHUFFLED, WITHIN_TOKENS, Study
from pipeline.comparison.teachers import DEVELOPMENT
from pipeline.data.corpus import Corpus
from pipeline.experiments.results import markdown_table, write_csv, write_report

TEACHER_ROW = "the teacher itself"
NAMED = 8
"""Number of methods that have a colour and a name in the plot, besides the baseline."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Results of one method with its chosen settings, over all seeds. Losses are in nats per token."""

    method: str
    settings: str
    trials: int
    """Number of settings that were tried on the development documents."""
    seeds: int
    development: float
    """Lowest development loss of all trials of the method."""
    test: Interval
    """Mean test loss of the trained models, one per seed. Each model is taken from the step with its lowest development
    loss."""
    above_baseline: Interval
    """Test loss minus the baseline's test loss, paired by document and seed."""
    last: float
    """Test loss at the last step."""
    gap: float
    """Development loss minus training loss at the last step."""
    elsewhere: float
    """Loss on text of another kind, for the same models as in `test`; NaN if the study has no text of another kind."""
    training_tflop: float
    """TFLOP of one training, 6 x parameters x tokens; NaN for a teacher."""
    labelling_tflop: float
    """TFLOP of making the labels. For cross-fitted labels, this includes the training of the models that make them. NaN
    if labels were given, if none are used, or if the compute is not known."""

    def row(self) -> dict[str, object]:
        """Return the values by name. The two ends of an interval are separate values."""
        values = {name: value for name, value in asdict(self).items() if not isinstance(value, tuple)}
        for name in ("test", "above_baseline"):
            interval: Interval = getattr(self, name)
            values |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return values


def standings(student: Student, tried: Curves, tested: Curves) -> list[Standing]:
    """Return the standings of all methods and of the teachers, best first."""
    seeds_of: dict[Method, list[Trial]] = {}
    for trial in tested:
        seeds_of.setdefault(trial.method, []).append(trial)
    tokens_M = np.diff(student.study.test.offsets)
    baseline = next(trials for method, trials in seeds_of.items() if method.name == BASELINE)
    baseline_SM = _losses(student.folder, baseline, "best")
    found = [_standing(student, trials, tried, tested, baseline_SM) for trials in seeds_of.values()]
    for labels, nats_M in student.study.teacher_nats.items():
        nats_SM = np.asarray(nats_M)[None]
        found.append(
            _of_teacher(labels, mean_loss(nats_SM, tokens_M), paired_difference(nats_SM, baseline_SM, tokens_M))
        )
    return sorted(found, key=lambda standing: standing.test.mean)


def _standing(
    student: Student, trials: Sequence[Trial], tried: Curves, tested: Curves, baseline_SM: np.ndarray
) -> Standing:
    study, folder, method = student.study, student.folder, trials[0].method
    tokens_M = np.diff(study.test.offsets)
    best_SM, ends = _losses(folder, trials, "best"), [tested[trial][-1] for trial in trials]
    own = [curve for trial, curve in tried.items() if trial.method == method]
    flop = 6.0 * student.new_model(0).num_parameters() * ends[0]["tokens"]
    return Standing(
        method=method.name,
        settings=trials[0].chosen,
        trials=len(own),
        seeds=len(trials),
        development=min(map(lowest, own)),
        test=mean_loss(best_SM, tokens_M),
        above_baseline=paired_difference(best_SM, baseline_SM, tokens_M),
        last=per_token(_losses(folder, trials, "last"), study.test),
        gap=fmean(end[DEVELOPMENT] - end["seen_loss"] for end in ends),
        elsewhere=nan
        if study.elsewhere is None
        else per_token(_losses(folder, trials, "best elsewhere"), study.elsewhere),
        training_tflop=flop / 1e12,
        labelling_tflop=_labelling_flop(study, method) / 1e12,
    )


def _labelling_flop(study: Study, method: Method) -> float:
    """Return the FLOP spent to make the labels, or the teacher, that a method learns from.

    `study.labelling_flop` has the FLOP of each kind of labels. If the method learns from a teacher's predictions or
    weights, return the largest of these values. Return NaN if the FLOP is not known, or if the method needs neither
    labels nor a teacher.
    """
    if method.distils is not None or method.from_teacher:
        return max(study.labelling_flop.values(), default=nan)
    name = (method.labels or "").removeprefix(WITHIN_TOKENS).removeprefix(SHUFFLED)
    return study.labelling_flop.get(name, nan)


def _of_teacher(labels: str, test: Interval, above_baseline: Interval) -> Standing:
    return Standing(
        method=f"{TEACHER_ROW}, {labels}",
        settings="",
        trials=0,
        seeds=1,
        development=nan,
        test=test,
        above_baseline=above_baseline,
        last=nan,
        gap=nan,
        elsewhere=nan,
        training_tflop=nan,
        labelling_tflop=nan,
    )


def _losses(folder: Path, trials: Sequence[Trial], name: str) -> np.ndarray:
    """Return the sum of losses in nats of each test document for each trial, [S, M], as saved under `name`."""
    return np.stack([saved_test_losses(folder / trial.folder, name) for trial in trials])


def per_token(nats_SM: np.ndarray, corpus: Corpus) -> float:
    """Return the mean loss over seeds in nats per token."""
    return float(nats_SM.mean(axis=0).sum() / len(corpus.tokens_N))


def write_results(folder: Path, study: Study, found: Sequence[Standing], tried: Curves, tested: Curves, by: str) -> str:
    """Write results.csv, trials.csv, curves.csv, curves.png and results.md. Print and return the text of results.md."""
    write_csv(folder / "results.csv", [standing.row() for standing in found])
    write_csv(folder / "trials.csv", list(_trial_rows(tried)))
    curves = [
        {"method": trial.method.name, "seed": trial.seed, **record} for trial in tested for record in tested[trial]
    ]
    write_csv(folder / "curves.csv", curves)
    write_plot(folder / "curves.png", tested, study.truth)
    return write_report(folder, markdown(found, study.truth), by)


def _trial_rows(tried: Curves) -> Iterator[dict[str, object]]:
    for trial, curve in tried.items():
        best = min(curve, key=lambda record: record[DEVELOPMENT])
        ends = {"best_step": best["step"], "best": best[DEVELOPMENT], "last": curve[-1][DEVELOPMENT]}
        yield {"method": trial.method.name, "settings": trial.chosen, **ends}


def markdown(found: Sequence[Standing], truth: float | None) -> str:
    """Return the standings as a Markdown table. Differences whose interval excludes zero are bold.

    The column TFLOP has the compute of one training. If the compute of making the method's
    labels is known, it is shown after a plus sign.
    """
    known = "" if truth is None else f"The true distribution's test loss is {truth:.3f} nats per token.\n\n"
    elsewhere = not all(isnan(standing.elsewhere) for standing in found)
    more = ["TFLOP", *(["other text"] if elsewhere else [])]
    head = ["method", "settings", "test", f"above {BASELINE}", "last step", "gap", *more]
    rows: list[list[str]] = []
    for each in found:
        low, high = each.above_baseline.low, each.above_baseline.high
        difference = f"{each.above_baseline.mean:+.3f} ({low:+.3f} to {high:+.3f})"
        cells = [each.method, each.settings, f"{each.test.mean:.3f} ({each.test.low:.3f} to {each.test.high:.3f})"]
        cells += [f"**{difference}**" if each.above_baseline.excludes_zero else difference]
        labelling = "" if isnan(each.labelling_tflop) else f" + {each.labelling_tflop:.2g}"
        cells += [_shown(each.last), _shown(each.gap), _shown(each.training_tflop, "{:.2g}") + labelling]
        cells += [_shown(each.elsewhere)] if elsewhere else []
        rows.append(cells)
    return known + markdown_table(head, rows)


def _shown(value: float, form: str = "{:.3f}") -> str:
    return "" if isnan(value) else form.format(value)


def write_plot(file: Path, tested: Curves, truth: float | None) -> None:
    """Plot the development loss of each method against the step: the mean over seeds as a line, the range as a band.

    The best methods have a colour and a name each, and the other methods are grey. If the loss of the
    true distribution is known, it is subtracted, and the axis is logarithmic.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    panel = figure.subplots()
    curves = curves_by_method(tested)
    ranked = sorted(curves, key=lambda name: min(np.mean(curves[name][1], axis=0)))
    for rank, name in enumerate(ranked):
        steps, losses_SK = curves[name]
        above_SK = losses_SK - (truth or 0)
        shown = rank < NAMED or name == BASELINE
        style: dict[str, Any] = {
            "color": "black" if name == BASELINE else f"C{rank}" if shown else "0.85",
            "zorder": 2 if shown else 1,
        }
        panel.plot(steps, above_SK.mean(axis=0), label=name if shown else None, linewidth=1.4, **style)
        if shown:
            panel.fill_between(steps, above_SK.min(axis=0), above_SK.max(axis=0), alpha=0.2, linewidth=0, **style)
    panel.set_yscale("linear" if truth is None else "log")
    panel.set_xlabel("step")
    above = "" if truth is None else " above the true distribution's"
    panel.set_ylabel(f"development loss{above}, nats per token")
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(file, dpi=110)


def curves_by_method(tested: Curves) -> Mapping[str, tuple[list[float], np.ndarray]]:
    """Return the steps of the evaluations and the development losses [S, evaluations] of each method."""
    losses: dict[str, list[list[float]]] = {}
    steps: dict[str, list[float]] = {}
    for trial, curve in tested.items():
        losses.setdefault(trial.method.name, []).append([record[DEVELOPMENT] for record in curve])
        steps[trial.method.name] = [record["step"] for record in curve]
    return {name: (steps[name], np.array(of_seeds)) for name, of_seeds in losses.items()}
