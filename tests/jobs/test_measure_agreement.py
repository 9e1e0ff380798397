"""Agreement of two datasets with planted labels: in all documents, by length and by a column."""

from pathlib import Path

import numpy as np
import pytest

from tests.annotated import write_annotated
from tests.conftest import RunCommand

JOB = "jobs.measure_agreement"


def rows_of(printed: str) -> dict[str, list[str]]:
    """Return the figures of each row by its name."""
    lines = [line for line in printed.splitlines() if line[28:].strip()]
    return {line[:28].strip(): line[28:].split() for line in lines}


def test_figures_are_printed_for_all_documents_by_length_and_by_a_column(
    tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    """The labels of site a are 1 nat above the reference's labels. The labels of site b equal the reference's labels.

    The third document has no site and is missing from the reference.
    """
    random = np.random.default_rng(0)
    tokens = [random.integers(90, size=length).tolist() for length in (100, 300, 20, 1100, 5)]
    nats = [random.gamma(2, 1.5, len(ids)).astype(np.float32) for ids in tokens]
    sites = ["a", "b", None, "a", "b"]
    high = [row + (site == "a") for row, site in zip(nats, sites, strict=True)]
    write_annotated(tmp_path / "labels", tokens, [row.tolist() for row in high], columns_of_source={"site": sites})
    kept = [0, 1, 3, 4]
    wanted, others = [tokens[row] for row in kept], [nats[row].tolist() for row in kept]
    write_annotated(tmp_path / "reference", [*wanted, [1, 2]], [*others, [1.0, 1.0]])
    sets = ("--labels", tmp_path / "labels", "--reference", tmp_path / "reference")
    assert run_command(JOB, *sets, "--by", "site") == 0
    printed = capsys.readouterr().out
    assert "4 of both, 1 of the reference are not among the labels" in printed
    rows = rows_of(printed)
    assert rows["all documents"][:2] == ["4", "1,505"]
    assert [name for name in rows if name.endswith("tokens")] == [
        "1 to 127 tokens",
        "256 to 511 tokens",
        "1,024 to 2,047 tokens",
    ]
    assert rows["site a"] == ["2", "1,200", *rows["site a"][2:3], "1.000", "-1.000", "1.000", "1.000"]
    assert rows["site b"] == ["2", "305", "1.000", "1.000", "0.000", "0.000", "0.000"]
    assert float(rows["all documents"][5]) == pytest.approx(1200 / 1505, abs=1e-3)
    assert run_command(JOB, *sets, "--by", "site", "--groups", 1) == 0
    rows = rows_of(capsys.readouterr().out)
    assert "site b" not in rows and rows["1 other values"] == ["2", "305", "1.000", "1.000", "0.000", "0.000", "0.000"]


def test_labels_that_are_all_alike_have_no_figures(
    tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, nats in (("labels", [2.0, 2.0]), ("reference", [1.0, 3.0])):
        write_annotated(tmp_path / name, [[1, 2]], [nats])
    assert run_command(JOB, "--labels", tmp_path / "labels", "--reference", tmp_path / "reference") == 0
    assert capsys.readouterr().out.count("no labels that differ") == 2
