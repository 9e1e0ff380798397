"""Shards and their receipts in few commits, whatever the Hub answers."""

import time
from pathlib import Path

import pytest

from pipeline.data import hub as requests
from pipeline.data.hub import Repository
from pipeline.engine.ledger import read_published, read_receipts, unpublished
from pipeline.publishing import publisher as committing
from pipeline.publishing.publisher import Publisher, published_receipts
from tests.hub import Hub
from tests.publishing.datasets import annotated, made_up

REPOSITORY = Repository("user/name")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "LONGEST_PAUSE", 0.02)


@pytest.fixture
def prepared(hub: Hub) -> Hub:
    REPOSITORY.prepare(private=False)
    return hub


def shards(hub: Hub) -> dict[str, bytes]:
    files = hub.files("user/name")
    return {path.removeprefix("data/exact/"): files[path] for path in sorted(files) if path.startswith("data/")}


def local(folder: Path) -> dict[str, bytes]:
    data = folder / "out" / "data" / "exact"
    return {file.name: file.read_bytes() for file in sorted(data.glob("*.parquet"))}


@pytest.mark.parametrize("keeps", [True, False])
def test_shards_and_receipts_come_in_one_commit_and_only_then_leave_the_disk(
    prepared: Hub, tmp_path: Path, keeps: bool
) -> None:
    run, before = annotated(tmp_path), local(tmp_path)
    receipts = list(read_receipts(run.subset))
    first = len(prepared.commits("user/name"))
    with Publisher(REPOSITORY, run.subset, keeps=keeps) as publisher:
        for receipt in receipts:
            publisher.add(receipt)
    assert len(prepared.commits("user/name")) == first + 1
    assert shards(prepared) == before and published_receipts(REPOSITORY, run.subset) == receipts
    assert local(tmp_path) == (before if keeps else {})
    assert read_published(run.subset) == ([] if keeps else receipts)
    assert list(read_receipts(run.subset)) == receipts
    assert sorted(publisher.taken()) == sorted(before) and publisher.taken() == []


def test_two_thousand_shards_take_twenty_commits_at_the_most(prepared: Hub, tmp_path: Path) -> None:
    subset = made_up(tmp_path / "out", 2000)
    with Publisher(REPOSITORY, subset, keeps=True) as publisher:
        for receipt in read_receipts(subset):
            publisher.add(receipt)
    assert len(prepared.commits("user/name")) <= 20
    assert shards(prepared) == local(tmp_path)
    assert published_receipts(REPOSITORY, subset) == list(read_receipts(subset))


def test_shards_are_committed_after_a_while_though_few_have_come(
    prepared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committing, "COMMIT_EVERY", 0.05)
    run = annotated(tmp_path)
    first, *others = read_receipts(run.subset)
    with Publisher(REPOSITORY, run.subset, keeps=True) as publisher:
        publisher.add(first)
        deadline = time.monotonic() + 20
        while not publisher.taken():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert list(shards(prepared)) == [first.shard]
        for receipt in others:
            publisher.add(receipt)
    assert shards(prepared) == local(tmp_path)


@pytest.mark.parametrize("status", [409, 412, 429, 500, 503, 0])
def test_a_refusal_that_may_pass_is_tried_again(prepared: Hub, tmp_path: Path, status: int) -> None:
    run = annotated(tmp_path)
    prepared.faults.refuse(status, method="POST", path="/commit/", times=3)
    prepared.faults.refuse(status, path="/paths-info/", times=2)
    with Publisher(REPOSITORY, run.subset, keeps=True) as publisher:
        for receipt in read_receipts(run.subset):
            publisher.add(receipt)
    assert shards(prepared) == local(tmp_path)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(prepared: Hub, tmp_path: Path) -> None:
    run = annotated(tmp_path)
    first = len(prepared.commits("user/name"))
    prepared.faults.lost_commits = 1
    with Publisher(REPOSITORY, run.subset, keeps=False) as publisher:
        for receipt in read_receipts(run.subset):
            publisher.add(receipt)
    assert len(prepared.commits("user/name")) == first + 1
    assert len(published_receipts(REPOSITORY, run.subset)) == 6 and unpublished(run.subset) == []


def test_what_another_run_published_with_other_labels_stays_with_its_receipt(prepared: Hub, tmp_path: Path) -> None:
    ours, theirs = annotated(tmp_path / "ours"), annotated(tmp_path / "theirs")
    receipts = list(read_receipts(theirs.subset))
    shard = theirs.subset.data / receipts[0].shard
    shard.write_bytes(shard.read_bytes() + b"rounded otherwise")
    with Publisher(REPOSITORY, theirs.subset, keeps=True) as publisher:
        publisher.add(receipts[0])
    with Publisher(REPOSITORY, ours.subset, keeps=False) as publisher:
        for receipt in read_receipts(ours.subset):
            publisher.add(receipt)
    assert shards(prepared) == local(tmp_path / "theirs")
    assert local(tmp_path / "ours") == {} and shard.name not in {one.shard for one in read_published(ours.subset)}


def test_a_token_that_may_not_write_stops_the_run_and_loses_nothing(
    prepared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = annotated(tmp_path), local(tmp_path)
    monkeypatch.setenv("HF_TOKEN", prepared.reader)
    with (
        pytest.raises(ValueError, match="this token may not write"),
        Publisher(REPOSITORY, run.subset, keeps=False) as publisher,
    ):
        for receipt in read_receipts(run.subset):
            publisher.add(receipt)
    assert local(tmp_path) == before and len(unpublished(run.subset)) == 6


def test_no_answer_for_long_ends_in_an_error_that_names_the_repository(
    prepared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "PATIENCE", 0.2)
    run = annotated(tmp_path)
    prepared.faults.share = 1.0
    with (
        pytest.raises(ValueError, match="cannot reach hf://datasets/user/name"),
        Publisher(REPOSITORY, run.subset, keeps=False) as publisher,
    ):
        publisher.add(next(read_receipts(run.subset)))
    assert len(local(tmp_path)) == 6
