"""The protocol: settings are chosen on development documents, and test documents are opened once."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.comparison.methods import Method, Trial
from pipeline.comparison.protocol import choose, open_test, record_choices, search
from pipeline.comparison.standings import Standing, markdown, standings, write_results
from tests.comparison.studies import small_student

PLAIN, FLOOD = Method(name="cross-entropy"), Method(name="flood", objective="flood", labels="truth")


def trials(method: Method) -> list[Trial]:
    return [Trial(method=method, settings=(("dropout", dropout),)) for dropout in (0.0, 0.3)]


def curve(*losses: float) -> list[dict[str, float]]:
    return [{"step": step, "development_loss": loss, "seen_loss": 1.0} for step, loss in enumerate(losses)]


def test_the_lowest_loss_of_any_evaluation_decides() -> None:
    first, second = trials(PLAIN)
    other = trials(FLOOD)[0]
    curves = {first: curve(3.0, 2.5, 2.6), second: curve(3.0, 2.4, 9.0), other: curve(2.0)}
    assert choose(curves) == {PLAIN: second, FLOOD: other}


def test_test_documents_are_not_opened_with_other_choices(tmp_path: Path) -> None:
    first, second = trials(PLAIN)
    record_choices({PLAIN: first}, tmp_path)
    record_choices({PLAIN: first}, tmp_path)
    with pytest.raises(ValueError, match=r"were opened with other choices, which .*opened\.json names"):
        record_choices({PLAIN: second}, tmp_path)
    assert json.loads((tmp_path / "opened.json").read_text(encoding="utf-8")) == {"cross-entropy": {"dropout": 0.0}}


def test_a_comparison_from_search_to_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = small_student(tmp_path)
    tried = search(student, [*trials(PLAIN), *trials(FLOOD)], 1)
    assert not list(student.folder.rglob("test.npz"))
    chosen = choose(tried)
    tested = open_test(student, chosen, 2, 1, tmp_path)
    assert sorted((trial.method.name, trial.seed) for trial in tested) == [
        *[("cross-entropy", seed) for seed in (1, 2)],
        *[("flood", seed) for seed in (1, 2)],
    ]
    found = standings(student, tried, tested)
    by_name = {standing.method: standing for standing in found}
    assert set(by_name) == {"cross-entropy", "flood", "the teacher itself, causal"}
    assert by_name["cross-entropy"].above_baseline == (0, 0, 0) and by_name["flood"].trials == 2
    teacher = by_name["the teacher itself, causal"]
    assert teacher.test.mean == pytest.approx(12 * 20 / len(student.study.test.tokens_N))
    assert teacher.above_baseline.mean == pytest.approx(teacher.test.mean - by_name["cross-entropy"].test.mean)
    files = [np.load(file)["best"].sum() for file in student.folder.glob("flood*seed-[12]/test.npz")]
    assert by_name["flood"].test.mean == pytest.approx(np.mean(files) / len(student.study.test.tokens_N))
    text = write_results(tmp_path, student.study, found, tried, tested, "a command")
    assert "| cross-entropy | dropout " in text and "other text" in text and "Made by `a command`" in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    with (tmp_path / "trials.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == 4
    assert "a command" in capsys.readouterr().out
    assert {*json.loads((tmp_path / "opened.json").read_text(encoding="utf-8"))} == {"cross-entropy", "flood"}


def test_a_difference_that_excludes_zero_is_bold() -> None:
    from pipeline.comparison.bootstrap import Interval

    standing = Standing(
        method="flood",
        settings="",
        trials=1,
        seeds=1,
        development=1.0,
        test=Interval(1.0, 0.9, 1.1),
        above_baseline=Interval(-0.2, -0.3, -0.1),
        last=1.0,
        gap=0.0,
        elsewhere=float("nan"),
        training_tflop=0.25,
        labelling_tflop=1.5,
    )
    unsure = replace(standing, above_baseline=Interval(-0.1, -0.3, 0.1))
    table = markdown([standing, unsure], 0.9)
    assert "**-0.200 (-0.300 to -0.100)**" in table and "| -0.100 (-0.300 to +0.100) |" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1
    assert "| 0.25 + 1.5 |" in table and "other text" not in table and "test loss is 0.900" in table
