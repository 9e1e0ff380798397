"""Figures as CSV."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_csv(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """A line a row, all digits, under the names of the first row."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
