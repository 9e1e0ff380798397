"""Scatter plots of labels against the truth: a file a method, a panel a source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # imports torch, which takes seconds
    from pipeline.experiments.contest import Entry

MOST_POINTS = 3000


def write_plots(folder: Path, entries: Sequence[Entry]) -> list[Path]:
    """Writes `scatter-METHOD.png` for the surprisal and `scatter-METHOD-entropy.png` for its expectation.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    grouped: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        grouped.setdefault((entry.accuracy.method, entry.accuracy.target), []).append(entry)
    return [_write_plot(folder, method, target, group) for (method, target), group in grouped.items()]


def require_matplotlib() -> None:
    """Checks before a long computation that its result can be drawn.

    Raises:
        ValueError: if it cannot.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'token-entropy[plots]'") from error


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
