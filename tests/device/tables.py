"""`python -m tests.device.tables device.jsonl`: print the lines of a run as tables in Markdown."""

import sys
from itertools import groupby
from pathlib import Path

from tests.device.log import Line, read_lines

TITLES = {
    "machine": "Machine",
    "right": "Right",
    "fast": "Fast",
    "peers": "Against peers",
    "training": "Training",
    "host": "Host",
    "launches": "Launches",
    "checkpoints": "Checkpoints",
}


def tables(lines: list[Line]) -> str:
    """Return Markdown with a table for each section.

    A row of a table is a measurement with its figures, or with the reason why it has no figures.
    """
    parts = []
    for section, found in groupby(lines, key=lambda line: line.section):
        rows = [f"| {line.what} | {figures_of(line)} | {line.seconds:.1f} |" for line in found]
        parts.append("\n".join([f"### {TITLES[section]}", "", "| measurement | figures | s |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def figures_of(line: Line) -> str:
    """Return the figures of a measurement as text, or the reason why it has no figures."""
    told = line.reason or "; ".join(f"{name} {_number(value)}" for name, value in line.figures.items())
    return told.replace("|", "\\|")


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    if value != value or value in (float("inf"), -float("inf")):
        return "not a number"
    if value >= 1e12:
        return f"{value / 1e12:,.0f} T"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    print(tables(read_lines(Path(sys.argv[1]))), end="")
