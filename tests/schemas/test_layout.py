"""Names of subsets and shards, and links that lead out of a dataset's folder."""

import os
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

from schemas.layout import GROUP, Subset, require_contained, shard_name, shards_in_all

PLACES = (
    "README.md",
    "data",
    "data/exact",
    "data/exact/000",
    "data/exact/train-00000-of-00001.parquet",
    "tokenizer/exact/tokenizer.json",
    "_ledger",
    "_ledger/lock",
    "_ledger/exact/plan.json",
    "_ledger/exact/quarantine/00000001.json",
)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("there", ["file", "folder", "nothing"])
def test_a_link_that_leads_out_is_refused(tmp_path: Path, place: str, there: str) -> None:
    target = tmp_path / "elsewhere"
    if there == "file":
        target.write_text("secret", encoding="utf-8")
    elif there == "folder":
        target.mkdir()
    link = tmp_path / "out" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(target, link.parent))
    with pytest.raises(ValueError, match=f"{place} is a link that leads out of .*out; delete it"):
        require_contained(tmp_path / "out")


@pytest.mark.parametrize("place", PLACES)
def test_a_pipe_is_refused_without_waiting(tmp_path: Path, place: str) -> None:
    pipe = tmp_path / place
    pipe.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=f"{place} is neither a file nor a folder; delete it"):
        require_contained(tmp_path)


def test_a_dataset_may_be_a_link_and_contain_links(tmp_path: Path) -> None:
    root = tmp_path / "disk" / "out"
    for place in PLACES[4:6]:
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text("", encoding="utf-8")
    (root / "data" / "same").symlink_to("exact")
    (root / "notes").symlink_to(tmp_path)  # not part of the dataset
    (tmp_path / "link").symlink_to("disk")
    (tmp_path / "out").symlink_to(root)
    require_contained(tmp_path / "link" / "out")
    require_contained(tmp_path / "out")
    require_contained(tmp_path / "absent")


def test_a_link_to_itself_is_no_way_out(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to("data")
    require_contained(tmp_path)


@pytest.mark.parametrize("name", ["", "x", "train-0-of-x.parquet", "a-15.parquet", "train-1-of-+2.parquet"])
def test_a_name_that_is_not_a_shards_is_refused(name: str) -> None:
    assert shards_in_all(shard_name(3, 15)) == 15
    with pytest.raises(ValueError, match="is not the name of a shard"):
        shards_in_all(name)


@pytest.mark.parametrize("name", ["", ".", "a/b", "-a", "ü"])
def test_a_subset_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a subset cannot be called"):
        Subset(name)


@pytest.mark.parametrize("shards", [1, GROUP, GROUP + 1, 10**6])
def test_shards_sort_in_order_and_no_folder_gets_too_many(shards: int) -> None:
    step = max(1, shards // 20_000)
    names = [shard_name(index, shards) for index in range(0, shards, step)]
    assert names == sorted(names) and {shards_in_all(name) for name in names} == {shards}
    assert max(Counter(str(PurePosixPath(name).parent) for name in names).values()) * step <= max(GROUP, step)
