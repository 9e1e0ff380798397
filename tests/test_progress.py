"""What a user sees of a run: a bar on a terminal, lines elsewhere, and a report that names the bottleneck."""

import io
import json
import sys
import time

import pytest

from pipeline.engine.annotation import Annotated
from pipeline.engine.report import Report
from pipeline.engine.stages import Stages
from pipeline.progress import Progress
from schemas.ledger import Counts, Quarantined, Receipt

GIVEN_UP = Quarantined(unit=1, shard="b", file="a.parquet", start=0, stop=10, reason="it is broken")


def outcome(rows: int, tokens: int) -> Annotated:
    stages = Stages(dict.fromkeys(Stages().seconds, 1.0), tokens=tokens, padded_tokens=tokens * 2)
    stages.seconds.update(label=4.0, held=5.0)
    return Annotated(Receipt(unit=0, shard="a", sha256="0", size=0, counts=Counts(rows=rows, tokens=tokens)), stages)


def report_of(*outcomes: Annotated | Quarantined | None) -> Report:
    report = Report()
    for one in outcomes:
        report.add(one)
    report.seconds = 10.0
    return report


def test_where_there_is_no_terminal_a_line_a_minute_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = report_of(outcome(20, 5000), GIVEN_UP)
    with Progress(total=100, done=40) as shown:
        shown.show(report, workers=2)
        assert capsys.readouterr().err == ""
        late = shown.next_line + 1
        monkeypatch.setattr(time, "monotonic", lambda: late)
        shown.show(report, workers=2)
        shown.show(report, workers=2)
    expected = "60 of 100 documents (60.0%), 00:20 left, 500 tokens/s, 2 workers, 1 units given up"
    assert capsys.readouterr().err.splitlines() == [expected]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(total=100, done=40) as shown:
        shown.show(report_of(outcome(20, 5000), GIVEN_UP), workers=2)
        shown.bar.refresh()
    assert "60/100" in terminal.getvalue() and "500 tokens/s, 2 workers, 1 units given up" in terminal.getvalue()


def test_the_report_names_the_bottleneck() -> None:
    report = report_of(outcome(1, 100), None, outcome(2, 300))
    figures = json.loads(report.to_json())
    assert (figures["units"], figures["rows"], figures["tokens"], figures["given_up"]) == (2, 3, 400, 0)
    assert figures["bottleneck"] == "label" and figures["stages"]["label"] == {"seconds": 8, "tokens_per_second": 50}
    assert figures["device_wait"] == pytest.approx(0.2) and figures["batch_fill"] == 0.5
