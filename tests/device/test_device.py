"""The script `python -m tests.device` at tiny sizes on the CPU.

Every line that it writes has figures, or the reason why figures are missing. If the process is killed, the lines that
were already written are kept.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.device.__main__ import SECTIONS
from tests.device.log import Line, Log, read_lines
from tests.device.tables import tables

COMMAND = [sys.executable, "-m", "tests.device", "--tiny", "--device", "cpu"]


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    """Run the script once, and return the lines that it wrote.

    The script runs in a separate process, because accelerate keeps the first precision that a process chooses.
    """
    file = tmp_path_factory.mktemp("device") / "device.jsonl"
    subprocess.run([*COMMAND, "--minutes", "8", "--output", str(file)], check=True, stdout=subprocess.DEVNULL)
    return read_lines(file)


@pytest.mark.long
def test_every_section_has_a_figure_or_a_reason(lines: list[Line]) -> None:
    assert [*dict.fromkeys(line.section for line in lines)] == ["machine", *SECTIONS, "checkpoints"]
    assert all(bool(line.figures) != bool(line.reason) for line in lines)
    reasons = [line.reason for line in lines if line.reason]
    assert len(reasons) < len(lines) / 3 and not any(reason.startswith("failed") for reason in reasons)


@pytest.mark.long
def test_the_same_labels_come_again(lines: list[Line]) -> None:
    same = [line.figures for line in lines if line.what.endswith("the same bits")]
    assert len(same) == 3
    assert all(figures["twice"] == figures["batch-invariant"] == 1 for figures in same)


@pytest.mark.long
def test_bfloat16_moves_the_labels_of_the_shipped_checkpoints_a_little(lines: list[Line]) -> None:
    moved = [line.figures for line in lines if line.what.endswith("bfloat16 against float32")]
    assert len(moved) == 3
    assert all(0 < float(figures["mean"]) < 0.1 and float(figures["99.9%"]) < 1 for figures in moved)


@pytest.mark.long
def test_both_ways_to_a_surprisal_agree(lines: list[Line]) -> None:
    differences = [float(line.figures["totals differ by"]) for line in lines if line.section == "peers"]
    assert len(differences) == 2 and max(differences) < 1e-3


@pytest.mark.long
def test_the_page_shows_every_line(lines: list[Line]) -> None:
    page = tables(lines)
    assert page.count("\n| ") == len(lines) + page.count("| measurement |")
    assert all(line.what in page for line in lines)
    assert page.startswith("### Machine\n\n| measurement | figures | s |\n|---|---|---|\n| cpu | torch 2.")


@pytest.mark.slow
def test_a_kill_in_the_middle_leaves_the_lines_before_it(tmp_path: Path) -> None:
    file = tmp_path / "device.jsonl"
    command = [*COMMAND, "--output", str(file), "--only", "right", "fast"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        while not file.exists() or len(read_lines(file)) < 3:
            assert running.poll() is None, "it ended before it was killed"
            time.sleep(0.05)
        running.kill()
    left = read_lines(file)
    assert len(left) >= 3 and all(line.figures for line in left)


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "device.jsonl"
    Log(file, 1).skip("fast", "one", "a reason")
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"section": "fast"})[:9])
    assert [line.what for line in read_lines(file)] == ["one"]


def test_what_fails_is_written_down_and_the_next_is_measured(tmp_path: Path) -> None:
    log = Log(tmp_path / "device.jsonl", 1)

    def fails() -> dict[str, float | str]:
        raise KeyError("nothing\nof the sort")

    assert log.measure("fast", "one", fails) == {} and log.failed
    log.measure("fast", "two", lambda: {"figure": 1.0})
    one, two = read_lines(log.file)
    assert one.reason == "failed: KeyError: 'nothing\\nof the sort'" and two.figures == {"figure": 1.0}


def test_nothing_begins_when_the_time_is_over(tmp_path: Path) -> None:
    log = Log(tmp_path / "device.jsonl", 0)
    log.measure("fast", "late", lambda: {"figure": 1.0})
    long = Log(tmp_path / "device.jsonl", 1)
    long.measure("fast", "long", lambda: {"figure": 1.0}, needs=100)
    assert [line.reason for line in read_lines(log.file)] == ["0 seconds are left", "60 seconds are left"]
    assert not long.failed
