"""A dataset on the Hub is verified in place, at any revision, and repaired by annotating to it again."""

from pathlib import Path

import pytest

from schemas.layout import shard_name
from tests.conftest import RunCommand
from tests.hub import Hub
from tests.verify.datasets import DATA, SHARDS, SUBSET, made, verified

URL = "hf://datasets/user/name"
FILE = f"{DATA}/{shard_name(2, SHARDS)}"


def published(hub: Hub, folder: Path) -> str:
    """Commit a sound dataset and return the commit."""
    dataset = made(folder)
    files = {file.relative_to(dataset).as_posix(): file.read_bytes() for file in dataset.rglob("*") if file.is_file()}
    return hub.add("user/name", files)


def test_a_dataset_of_the_hub_is_verified_at_any_revision(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = published(hub, tmp_path)
    code, (line,) = verified(URL, capsys)
    assert code == 0 and line.startswith("exact: 6 shards, 12 documents, ")
    content = bytearray(hub.files("user/name")[FILE])
    content[len(content) // 2] ^= 1
    hub.add("user/name", {FILE: bytes(content)})
    code, (fault, last) = verified(URL, capsys, subset=SUBSET)
    assert code == 1 and fault.startswith(f"{FILE}: is not what was written: its sha256 is ")
    assert last == "exact: 1 of 6 shards is bad"
    assert verified(f"{URL}@{sound}", capsys)[0] == 0


def test_a_file_without_a_receipt_is_a_fault(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published(hub, tmp_path)
    hub.add("user/name", {f"{DATA}/more.parquet": b"PAR1"})
    code, (fault, _) = verified(URL, capsys)
    assert code == 1 and fault == f"{DATA}/more.parquet: is not a shard of this run; remove it"


def test_a_dataset_of_the_hub_is_not_repaired_here(
    hub: Hub, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("pipeline.verify", URL, "--repair") == 1
    assert f"--repair needs a folder; to repair {URL}, run the annotate command" in capsys.readouterr().err
    assert hub.requests == []


def test_every_subset_is_verified(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    published(hub, tmp_path)
    hub.add("user/name", {f"data/foreign/{shard_name(0, 1)}": b"PAR1"})
    code, lines = verified(URL, capsys)
    assert code == 1
    file = f"data/foreign/{shard_name(0, 1)}"
    assert [line.partition(":")[0] for line in lines] == ["exact", "foreign", file, "foreign"]
