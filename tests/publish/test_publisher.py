"""Publication of shards and their receipts in few commits, whatever the Hub answers."""

import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.data import hub as hub_module
from pipeline.data.hub import Repository
from pipeline.data.ledger import Ledger, PublishedLedger
from pipeline.publish import publisher as publishing
from pipeline.publish.publisher import Publisher
from tests.hub import Hub
from tests.publish.datasets import annotated, made_up

REPOSITORY = Repository("user/name")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "LONGEST_PAUSE", 0.02)


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
    receipts = Ledger(run.subset).receipts()
    first = len(prepared.commits("user/name"))
    with Publisher(REPOSITORY, run.subset, keeps=keeps) as publisher:
        for receipt in receipts:
            publisher.add(receipt)
    assert len(prepared.commits("user/name")) == first + 1
    assert shards(prepared) == before and PublishedLedger(REPOSITORY, run.subset).receipts(6) == receipts
    assert local(tmp_path) == (before if keeps else {})
    assert Ledger(run.subset).published() == ([] if keeps else receipts)
    assert Ledger(run.subset).receipts() == (receipts if keeps else [])
    assert sorted(publisher.taken()) == sorted(before) and publisher.taken() == []


@pytest.mark.parametrize("hundreds", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_shards_are_committed_in_hundreds(prepared: Hub, tmp_path: Path, hundreds: int) -> None:
    subset = made_up(tmp_path / "out", 100 * hundreds)
    with Publisher(REPOSITORY, subset, keeps=True) as publisher:
        for receipt in Ledger(subset).receipts():
            publisher.add(receipt)
    assert len(prepared.commits("user/name")) <= hundreds
    assert shards(prepared) == local(tmp_path)
    assert PublishedLedger(REPOSITORY, subset).receipts(100 * hundreds) == Ledger(subset).receipts()


def test_few_shards_are_committed_after_a_while(prepared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "COMMIT_EVERY", 0.05)
    run = annotated(tmp_path)
    first, *others = Ledger(run.subset).receipts()
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
def test_a_transient_refusal_is_retried(prepared: Hub, tmp_path: Path, status: int) -> None:
    run = annotated(tmp_path)
    prepared.faults.refuse(status, method="POST", path="/commit/", times=3)
    prepared.faults.refuse(status, path="/paths-info/", times=2)
    with Publisher(REPOSITORY, run.subset, keeps=True) as publisher:
        for receipt in Ledger(run.subset).receipts():
            publisher.add(receipt)
    assert shards(prepared) == local(tmp_path)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(prepared: Hub, tmp_path: Path) -> None:
    run = annotated(tmp_path)
    first = len(prepared.commits("user/name"))
    prepared.faults.lost_commits = 1
    with Publisher(REPOSITORY, run.subset, keeps=False) as publisher:
        for receipt in Ledger(run.subset).receipts():
            publisher.add(receipt)
    assert len(prepared.commits("user/name")) == first + 1
    assert len(PublishedLedger(REPOSITORY, run.subset).receipts(6)) == 6 and Ledger(run.subset).unpublished() == []


def test_shards_that_another_run_published_are_kept_with_their_receipts(
    prepared: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = annotated(tmp_path / "ours"), annotated(tmp_path / "theirs")
    receipts = Ledger(theirs.subset).receipts()
    shard = theirs.subset.data / receipts[0].shard
    content = shard.read_bytes() + b"rounded otherwise"
    shard.write_bytes(content)
    written = replace(receipts[0], sha256=sha256(content).hexdigest(), size=len(content))
    with Publisher(REPOSITORY, theirs.subset, keeps=True) as publisher:
        assert publisher.add(written)
    with Publisher(REPOSITORY, ours.subset, keeps=False) as publisher:
        for receipt in Ledger(ours.subset).receipts():
            assert publisher.add(receipt)
    assert "1 shards were published by another run with other labels, which are kept" in caplog.text
    assert shards(prepared) == local(tmp_path / "theirs")
    assert PublishedLedger(REPOSITORY, ours.subset).receipts(6)[0] == written
    assert local(tmp_path / "ours") == {} and shard.name not in {one.shard for one in Ledger(ours.subset).published()}


def test_a_token_that_may_not_write_stops_the_run_and_loses_nothing(
    prepared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = annotated(tmp_path), local(tmp_path)
    monkeypatch.setenv("HF_TOKEN", prepared.reader)
    with (
        pytest.raises(ValueError, match="this token may not write"),
        Publisher(REPOSITORY, run.subset, keeps=False) as publisher,
    ):
        for receipt in Ledger(run.subset).receipts():
            publisher.add(receipt)
    assert local(tmp_path) == before and len(Ledger(run.subset).unpublished()) == 6


def test_a_long_silence_of_the_hub_ends_in_an_error_that_names_the_repository(
    prepared: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "PATIENCE", 0.2)
    run = annotated(tmp_path)
    prepared.faults.share = 1.0
    with (
        pytest.raises(ValueError, match="cannot reach hf://datasets/user/name"),
        Publisher(REPOSITORY, run.subset, keeps=False) as publisher,
    ):
        publisher.add(Ledger(run.subset).receipts()[0])
    assert len(local(tmp_path)) == 6


def test_a_shard_that_does_not_match_its_receipt_is_not_sent(prepared: Hub, tmp_path: Path) -> None:
    run = annotated(tmp_path)
    first, *others = Ledger(run.subset).receipts()
    shard = run.subset.data / first.shard
    damaged = shard.read_bytes()[:-9] + bytes(9)
    shard.write_bytes(damaged)
    with Publisher(REPOSITORY, run.subset, keeps=True) as publisher:
        assert [publisher.add(receipt) for receipt in (first, *others)] == [False] + [True] * 5
    assert PublishedLedger(REPOSITORY, run.subset).receipts(6) == others
    assert first.shard not in shards(prepared)
    assert damaged not in prepared.repositories["datasets", "user/name"].objects.values()


@pytest.mark.parametrize("content", [b"damaged", None])
def test_a_file_without_a_receipt_is_replaced(
    prepared: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    """The file is damaged, or was sent without its receipt. If it were kept, its unit would stay incomplete forever."""
    run, before = annotated(tmp_path), local(tmp_path)
    receipts = Ledger(run.subset).receipts()
    path = f"data/exact/{receipts[3].shard}"
    prepared.add("user/name", {path: content or before[receipts[3].shard]})
    with Publisher(REPOSITORY, run.subset, keeps=True) as publisher:
        for receipt in receipts:
            publisher.add(receipt)
    assert f"1 files without a receipt are replaced: {path}" in caplog.text
    assert shards(prepared) == before and PublishedLedger(REPOSITORY, run.subset).receipts(6) == receipts


@pytest.mark.parametrize(
    "shard", ["../../../secret", "/secret", "train-00001-of-00006.parquet", "x/../train-00000-of-00006.parquet"]
)
def test_a_receipt_in_the_repository_that_names_another_file_is_refused(
    prepared: Hub, tmp_path: Path, shard: str
) -> None:
    """Published shards are removed from the disk, so such a receipt could remove any file."""
    run = annotated(tmp_path)
    wrong = replace(Ledger(run.subset).receipts()[0], shard=shard)
    prepared.add("user/name", {"_ledger/exact/receipts/a.jsonl": wrong.to_json().encode()})
    said = r"hf://datasets/user/name/_ledger/exact/receipts/a.jsonl is damaged \(.*; delete it there"
    with pytest.raises(ValueError, match=said):
        PublishedLedger(REPOSITORY, run.subset).receipts(6)


def test_receipts_of_another_number_of_shards_are_not_those_of_the_plan(prepared: Hub, tmp_path: Path) -> None:
    subset = made_up(tmp_path / "out", 7)
    with Publisher(REPOSITORY, subset, keeps=True) as publisher:
        for receipt in Ledger(subset).receipts():
            publisher.add(receipt)
    assert (
        len(PublishedLedger(REPOSITORY, subset).receipts(7)) == 7
        and PublishedLedger(REPOSITORY, subset).receipts(6) == []
    )
