"""Display of a run: its stages, a bar on a terminal, lines elsewhere, and a report that names the bottleneck."""

import io
import json
import re
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipeline import progress
from pipeline.annotate.__main__ import state_of
from pipeline.engine.cluster import WorkerResources
from pipeline.engine.plan import Run, Unit
from pipeline.engine.ray_workers import RayWorkerPool
from pipeline.engine.scheduler import Scheduler
from pipeline.engine.throughput import Stages, Throughput, UnitResult
from pipeline.engine.workers import ThisProcessPool, WorkerPool
from pipeline.progress import Progress, State, stage
from schemas.receipts import Counts, Quarantined, Receipt
from tests.builders import write_documents
from tests.engine.fakes import load_fake, planned_run, token_rows

GIVEN_UP = Quarantined(unit=1, shard="b", file="a.parquet", start=0, stop=10, reason="it is broken")
LOADING, LABELLING = State(0, 0, workers=0, quarantined=0), State(20.5, 5000, workers=2, quarantined=1)


def outcome(rows: int, tokens: int) -> UnitResult:
    stages = Stages(dict.fromkeys(Stages().seconds, 1.0), tokens=tokens, padded_tokens=tokens * 2)
    stages.seconds.update(label=4.0, held=5.0)
    return UnitResult(Receipt(unit=0, shard="a", sha256="0", size=0, counts=Counts(rows=rows, tokens=tokens)), stages)


def report_of(*outcomes: UnitResult | Quarantined | None) -> Throughput:
    report = Throughput()
    for one in outcomes:
        report.add(one)
    report.seconds = 10.0
    return report


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose only item is the present time in seconds. Tests set the clock by changing this item."""
    times = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[0])
    return times


def test_a_stage_that_takes_longer_than_a_moment_is_shown_while_it_lasts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage("reading the inputs"):
        pass
    monkeypatch.setattr(progress, "SHORT_SECONDS", 0.02)
    with stage("starting Ray"):
        time.sleep(0.3)
        assert capsys.readouterr() == ("", "starting Ray ...\n")
    with pytest.raises(ValueError, match="broken"), stage("loading the model"):
        raise ValueError("broken")
    time.sleep(0.1)
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_a_line_a_minute_is_printed(capsys: pytest.CaptureFixture[str], now: list[float]) -> None:
    shown = Progress(total=100, done=40, look=lambda: LOADING)
    now[0] += 100
    shown.show(LOADING)
    shown.show(LABELLING)
    now[0] += 10
    shown.show(LABELLING)
    assert capsys.readouterr().err == ""
    now[0] += 52
    shown.show(LABELLING)
    shown.show(LABELLING)
    expected = "60 of 100 documents (60.5%), 01:59 left, 81 tokens/s, 2 workers, 1 units quarantined"
    assert capsys.readouterr().err.splitlines() == [expected], "the time until a worker is there does not count"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch, now: list[float]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Progress(total=100, done=40, look=lambda: LOADING)
    shown.show(LOADING)
    assert "40/100" in terminal.getvalue() and "loading the model" in terminal.getvalue()
    shown.show(LABELLING)
    now[0] += 10
    shown.show(LABELLING)
    assert "60/100" in terminal.getvalue() and "500 tokens/s, 2 workers, 1 units quarantined" in terminal.getvalue()
    shown.show(replace(LABELLING, rows=3))
    assert terminal.getvalue().rpartition("\r")[2].strip().startswith("annotating:  43%"), "a worker has died"


def slow_run(folder: Path) -> tuple[Run, list[Unit]]:
    """Plan one unit of twelve documents, each of which is a batch."""
    file = write_documents(folder / "in.parquet", ["text"] * 12, input_ids=token_rows(12))
    return planned_run(folder / "out", [file], rows_per_unit=12, batch_invariant=True)


def lines_of(run: Run, units: list[Unit], pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> Throughput:
    """Label the units, and print a line at each update of the progress."""
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "TICK_SECONDS", 0.1)
    report, scheduler = Throughput(), Scheduler(run, units, pool)
    with Progress(12, 0, partial(state_of, report, scheduler)):
        for one in scheduler.outcomes():
            report.add(one)
    return report


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_documents_are_counted_while_their_unit_is_labelled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setattr("pipeline.engine.ray_workers.ASK", 0.1)
    monkeypatch.setattr("pipeline.engine.scheduler.PATIENCE", 0.1)
    run, units = slow_run(tmp_path)
    load = partial(load_fake, seconds=0.05)
    pool = (
        RayWorkerPool(run, load, workers=1, share=WorkerResources(cpus=0.5))
        if workers
        else ThisProcessPool(run, load, "cpu")
    )
    report = lines_of(run, units, pool, monkeypatch)
    lines = capsys.readouterr().err.splitlines()
    counted = [int(line.split(" of ")[0]) for line in lines if " of 12 documents" in line]
    assert counted == sorted(counted) and counted[-1] == report.counts.rows == 12
    assert len({count for count in counted if 0 < count < 12}) >= 3, lines
    assert all(re.search(r"\d+ tokens/s, 1 workers$", line) for line in lines if line.startswith(("5 ", "6 ", "7 ")))


def test_the_report_names_the_bottleneck() -> None:
    report = report_of(outcome(1, 100), None, outcome(2, 300))
    figures = json.loads(report.to_json())
    assert (figures["units"], figures["rows"], figures["tokens"], figures["given_up"]) == (2, 3, 400, 0)
    assert figures["bottleneck"] == "label" and figures["stages"]["label"] == {"seconds": 8, "tokens_per_second": 50}
    assert figures["device_wait"] == pytest.approx(0.2) and figures["batch_fill"] == 0.5
