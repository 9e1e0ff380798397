"""The dry run: its measurement within a time limit, and its estimate for the requested workers."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.annotate import dry_run
from pipeline.annotate.config import Config
from pipeline.annotate.dry_run import (
    Estimate,
    Speed,
    Workers,
    beginning,
    measure,
    print_estimate,
    sample_documents,
    workers_of,
)
from pipeline.engine.annotator import with_tokenizers
from pipeline.engine.plan import Run
from tests.engine.fakes import FakeLabeller, planned

PLAN = Estimate(
    units=10,
    rows_a_unit=4,
    rows=40,
    files=1,
    source_bytes=9,
    sampled_rows=4,
    empty_rows=0,
    tokens=3.6e6,
    error=0.1,
    label_columns=1,
    share=1.0,
    passed=(),
    speed=Speed(100.0),
)


class Slow(FakeLabeller):
    """A labeller of `speed` tokens per second, by the clock in CLOCK, which advances only while it labels."""

    speed = 50.0

    def label(self, batches: Iterable[Any], *told: Any) -> tuple[list[Any], int]:
        whole = list(batches)
        CLOCK[0] += sum(int(batch.lengths_B.sum()) for batch in whole) / self.speed
        return super().label(whole, *told)


CLOCK = [0.0]


@pytest.mark.parametrize("seconds", [30.0, 5.0, 1e6])
def test_a_slow_model_is_measured_within_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    run, units = planned(tmp_path, rows=300)
    run = replace(run, provenance=replace(run.provenance, window=512, overlap=256))
    chunks = sample_documents(run, units)
    tokens = sum(len(ids) for chunk in chunks for ids in chunk.tokens)

    def loaded(job: Run, device: str) -> Any:
        return with_tokenizers(job, (Slow(),))

    CLOCK[0] = 0.0
    monkeypatch.setattr(dry_run, "load_annotator", loaded)
    monkeypatch.setattr(dry_run, "MEASURED_SECONDS", seconds)
    monkeypatch.setattr(time, "monotonic", lambda: CLOCK[0])
    monkeypatch.setattr(time, "perf_counter", lambda: CLOCK[0])
    speed = measure(run, chunks)
    assert speed.tokens_per_second == pytest.approx(50, rel=0.05)
    assert CLOCK[0] <= seconds
    assert speed.measured_tokens == {30.0: 512, 5.0: 128, 1e6: tokens}[seconds]
    assert speed.seconds == pytest.approx(speed.measured_tokens / 50)


def test_the_beginning_of_documents_has_the_given_number_of_tokens() -> None:
    documents = [np.arange(length) for length in (3, 0, 5, 4)]
    for tokens in range(1, 15):
        found = beginning(documents, tokens)
        assert np.concatenate(found).tolist() == np.concatenate(documents)[:tokens].tolist()


@pytest.mark.parametrize(
    ("workers", "told"),
    [
        (None, "10.00 hours of one worker\n"),
        (
            Workers("auto", 4, "this machine", "cpu"),
            "one worker; this machine has room for 4 that are as fast, 3.00 hours",
        ),
        (Workers(4, 8, "the cluster", "cpu"), "one worker; 4 that are as fast, 3.00 hours\n"),
        (
            Workers(8, 2, "the cluster", "cpu"),
            "; 8 that are as fast, 2.00 hours; the cluster has room for 2 th",
        ),
        (
            Workers(64, 0, "the cluster", "cpu"),
            "1.00 hours, 54 of them without a unit; the cluster has room for none",
        ),
    ],
)
def test_the_time_is_that_of_the_workers(
    capsys: pytest.CaptureFixture[str], workers: Workers | None, told: str
) -> None:
    """The run has ten units of an hour each."""
    print_estimate(PLAN, workers)
    assert told in capsys.readouterr().out


def test_a_short_time_is_in_minutes(capsys: pytest.CaptureFixture[str]) -> None:
    print_estimate(replace(PLAN, tokens=9e3), None)
    assert "time           1.5 minutes of one worker\n" in capsys.readouterr().out


def test_a_speed_that_was_measured_on_another_device_is_marked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "DEVICE", "cpu")
    measured = replace(PLAN, speed=Speed(100.0, 512, 5.12))
    print_estimate(measured, Workers(1, 0, "the cluster", "cuda"))
    assert "measured on one CPU core here with 512 tokens in 5.1 s; workers have GPUs" in capsys.readouterr().out


def test_workers_are_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers_of(Config(workers=0)) is None
    monkeypatch.setattr("pipeline.engine.cluster.nodes_at", lambda address: [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}])
    assert workers_of(Config(workers=64)) == Workers(64, 4, "this machine", "cuda")
    assert workers_of(Config(gpus_per_worker=0, address="a:1")) == Workers("auto", 24, "the cluster", "cpu")
    assert workers_of(Config(gpus_per_worker=0.5)) == Workers("auto", 8, "this machine", "cuda")


def test_predictions_are_counted_by_their_ids(capsys: pytest.CaptureFixture[str]) -> None:
    print_estimate(replace(PLAN, top_k=50, sampled_ids=4, share=0.5), None)
    printed = capsys.readouterr().out
    assert "top_ids        0.306 GB, 3.4 bytes for each of a labelled token's 50 ids\n" in printed
    assert "sampled_ids    0.009 GB, 1.2 bytes for each of a labelled token's 4 ids\n" in printed
