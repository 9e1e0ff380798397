"""Accuracy of labels on sources whose true entropies are known: errors, tables, a written verdict and scatter plots.

Shapes: N tokens.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.experiments.results import markdown_table, write_csv, write_report
from pipeline.training.evaluation import r_squared

Target = Literal["surprisal", "entropy"]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A label method that is applied to a source, and the costs of the method."""

    source: str
    method: str
    target: Target
    """Quantity that the labels estimate. `surprisal` is -ln p of the actual token under the true distribution.
    `entropy` is the expectation of the surprisal before the token is known."""
    token_passes: float
    """Cost of labelling, in model passes per token."""
    training_tflop: float
    """Training compute in TFLOP: 6 x parameters x tokens. For a model that learns from labels, this includes making
    these labels, and training the models that made them or that provide the initial weights."""


@dataclass(frozen=True, kw_only=True)
class Accuracy(Contestant):
    """Accuracy of a method's labels, compared with the true values.

    Attribution methods give scores without a unit instead of labels in nats. For scores, only the squared correlation
    is computed, and the errors in nats are None.
    """

    r_squared: float
    """1 - mean squared error / variance of the true values. For scores without a unit, this is the squared
    correlation."""
    mean_absolute_error: float | None
    """Mean of |label - true value|, in nats; None for scores without a unit."""
    bias: float | None
    """Mean of label - true value, in nats; None for scores without a unit."""


@dataclass(frozen=True)
class Entry:
    """Accuracy of a label method, with the labels and the true values for a plot."""

    accuracy: Accuracy
    estimates_N: np.ndarray
    truth_N: np.ndarray


def measure(contestant: Contestant, estimates_N: Tensor, truth_N: Tensor, *, in_nats: bool = True) -> Accuracy:
    """Return the errors of labels, compared with the true values.

    If `in_nats` is false, only the squared correlation is computed.
    """
    estimates_N, truth_N = estimates_N.double(), truth_N.double()
    if not in_nats:
        correlation = torch.corrcoef(torch.stack([estimates_N, truth_N]))[0, 1].nan_to_num().item()
        return Accuracy(**asdict(contestant), r_squared=correlation**2, mean_absolute_error=None, bias=None)
    error_N = estimates_N - truth_N
    return Accuracy(
        **asdict(contestant),
        r_squared=r_squared(estimates_N, truth_N),
        mean_absolute_error=error_N.abs().mean().item(),
        bias=error_N.mean().item(),
    )


def write_results(folder: Path, entries: Sequence[Entry], made_by: str) -> None:
    """Write `results.csv`, `results.md` and a scatter plot per method and target to a folder. Print `results.md`."""
    results = [entry.accuracy for entry in entries]
    write_csv(folder / "results.csv", [asdict(result) for result in results])
    write_plots(folder, entries)
    write_report(folder, f"{markdown(results)}\n{verdict(results)}", made_by)


def markdown(results: Sequence[Accuracy]) -> str:
    """Return a Markdown table per target, with a row per label method and a column per source.

    A source's cells have the mean absolute error in nats, followed by the R² in brackets. The cell with the best R² on
    the source is bold. The last two columns have the costs: model passes per token and training TFLOP.
    """
    targets: tuple[Target, ...] = ("surprisal", "entropy")
    tables = [_table(target, [result for result in results if result.target == target]) for target in targets]
    return "\n".join(tables)


def verdict(results: Sequence[Accuracy]) -> str:
    """Return Markdown lines that name the method with the smallest error in surprisal on each source.

    For every method other than the causal model, a further line names the sources on which the method has a smaller
    error than the causal model. The last line names the methods that have a smaller error on no source.
    """
    lines: list[str] = []
    in_nats = [result for result in results if result.target == "surprisal" and result.bias is not None]
    for source in dict.fromkeys(result.source for result in in_nats):
        by_method = {result.method: _error(result) for result in in_nats if result.source == source}
        nearest = min(by_method, key=lambda method: by_method[method])
        lines.append(f"- {source}: `{nearest}` is nearest to the truth, {by_method[nearest]:.3f} nats off.")
    wins = {
        method: [
            r.source for r in in_nats if r.method == method and _error(r) < _error(_of("causal", r.source, in_nats))
        ]
        for method in dict.fromkeys(result.method for result in in_nats)
        if method != "causal"
    }
    lines += [
        f"- `{method}` is nearer to the truth than the causal model of equal compute on {', '.join(sources)}."
        for method, sources in wins.items()
        if sources
    ]
    nowhere = ", ".join(f"`{method}`" for method, sources in wins.items() if not sources)
    if nowhere:
        lines.append(f"- On no source nearer to the truth than the causal model: {nowhere}.")
    return "\n".join(lines)


def _error(result: Accuracy) -> float:
    assert result.mean_absolute_error is not None
    return result.mean_absolute_error


def _of(method: str, source: str, results: Sequence[Accuracy]) -> Accuracy:
    return next(result for result in results if (result.method, result.source) == (method, source))


def _table(target: Target, results: Sequence[Accuracy]) -> str:
    sources = list(dict.fromkeys(result.source for result in results))
    by_place = {(result.method, result.source): result for result in results}
    nearest = {source: max(r.r_squared for r in results if r.source == source) for source in sources}
    rows: list[list[str]] = []
    for method in dict.fromkeys(result.method for result in results):
        row = [by_place.get((method, source)) for source in sources]
        shown = [_shown(result, nearest) for result in row]
        costs = [result for result in row if result is not None]
        tflop = sum(result.training_tflop for result in costs) / len(costs)
        rows.append([method, *shown, f"{costs[0].token_passes:g}", f"{tflop:.2f}"])
    return markdown_table([f"against the true {target}", *sources, "passes per token", "training TFLOP"], rows)


def _shown(result: Accuracy | None, nearest: dict[str, float]) -> str:
    if result is None:
        return ""
    error = "" if result.mean_absolute_error is None else f"{result.mean_absolute_error:.3f} "
    text = f"{error}({result.r_squared:.3f})"
    return f"**{text}**" if result.r_squared == nearest[result.source] else text


MOST_POINTS = 3000


def write_plots(folder: Path, entries: Sequence[Entry]) -> list[Path]:
    """Write a scatter plot per method and target, and return the files.

    Files are called `scatter-METHOD.png` for surprisal and `scatter-METHOD-entropy.png` for entropy.
    """
    grouped: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        grouped.setdefault((entry.accuracy.method, entry.accuracy.target), []).append(entry)
    return [_write_plot(folder, method, target, group) for (method, target), group in grouped.items()]


def _write_plot(folder: Path, method: str, target: str, entries: Sequence[Entry]) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(entries), 3.6), layout="constrained")
    for panel, entry in zip(figure.subplots(1, len(entries), squeeze=False)[0], entries, strict=True):
        truth_N, estimates_N = entry.truth_N[:MOST_POINTS], entry.estimates_N[:MOST_POINTS]
        panel.scatter(truth_N, estimates_N, s=4, alpha=0.25, linewidths=0, color="#1f5fa8")
        if entry.accuracy.mean_absolute_error is not None:
            panel.axline((0, 0), slope=1, color="black", linewidth=0.8)
        panel.set_title(f"{entry.accuracy.source}\nR² {entry.accuracy.r_squared:.3f}", fontsize=10)
        panel.set_xlabel(f"true {target}, nats")
    figure.axes[0].set_ylabel("label" if entries[0].accuracy.bias is None else "label, nats")
    figure.suptitle(method, fontsize=11)
    suffix = "" if target == "surprisal" else f"-{target}"
    file = folder / f"scatter-{re.sub('[^a-z0-9]+', '-', method)}{suffix}.png"
    figure.savefig(file, dpi=110)
    return file
