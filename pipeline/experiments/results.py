"""Results of an experiment as CSV and Markdown files, and a check that plots can be drawn."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.messages import say


def write_csv(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows to a CSV file, with all digits of numbers. The header is made from the keys of the first row."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table that ends in a newline."""
    first, *others = [f"| {' | '.join(cells)} |\n" for cells in (head, *rows)]
    return "".join([first, f"|{'---|' * len(head)}\n", *others])


def write_report(folder: Path | None, text: str, made_by: str) -> str:
    """Append the command `made_by` to the text, print the text and return it.

    If a folder is given, the text is also written to `results.md` in this folder.
    """
    report = f"{text.rstrip()}\n\nMade by `{made_by}`.\n"
    say(*report.split("\n"))
    if folder is not None:
        (folder / "results.md").write_text(report, encoding="utf-8")
    return report


def require_matplotlib() -> None:
    """Check that plots can be drawn. Call this before a long computation.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError("plots need matplotlib: pip install 'token-entropy[plots]'") from error
