"""Files of untrusted folders: which belong to the folder, and what they may contain."""

import os
from pathlib import Path

import pytest

from pipeline.data.own_files import own_file, read_bounded, read_object


def test_a_file_and_links_within_the_folder_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "a.json").write_text("{}", encoding="utf-8")
    (tmp_path / "a.json").symlink_to("..data/a.json")
    assert own_file(tmp_path, "a.json") == tmp_path / "a.json"
    assert own_file(tmp_path, "b.json") is None
    (tmp_path.parent / f"{tmp_path.name}-link").symlink_to(tmp_path)
    assert own_file(tmp_path.parent / f"{tmp_path.name}-link", "a.json") is not None


@pytest.mark.parametrize("target", ["../secret", "/etc/passwd", "../blobs/secret", "gone/../../secret", "../absent"])
def test_links_out_of_the_folder_are_refused(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "blobs").mkdir()
    for file in ("secret", "blobs/secret"):
        (tmp_path / file).write_text("{}", encoding="utf-8")
    (folder / "a.json").symlink_to(target)
    with pytest.raises(ValueError, match="outside its folder; replace it with a copy"):
        own_file(folder, "a.json")


def test_snapshots_of_the_hubs_cache_may_link_only_to_its_blobs(tmp_path: Path) -> None:
    for folder in ("snapshots/0a/fold-0-of-2", "blobs", "refs"):
        (tmp_path / folder).mkdir(parents=True)
    for place in ("blobs/b", "refs/main"):
        (tmp_path / place).write_text("{}", encoding="utf-8")
    snapshot = tmp_path / "snapshots" / "0a"
    (snapshot / "a").symlink_to("../../blobs/b")
    (snapshot / "fold-0-of-2" / "a").symlink_to("../../../blobs/b")
    (snapshot / "b").symlink_to("../../refs/main")
    assert own_file(snapshot, "a") and own_file(snapshot / "fold-0-of-2", "a")
    with pytest.raises(ValueError, match="outside its folder"):
        own_file(snapshot, "b")


def test_anything_but_a_plain_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait forever
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").symlink_to("absent")
    for name in ("pipe", "folder", "broken"):
        with pytest.raises(ValueError, match=f"{name} is not a plain file"):
            own_file(tmp_path, name)


def test_a_file_beyond_the_size_limit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b"{}" + b" " * 8)
    assert read_bounded(file, 10) == file.read_bytes() and read_object(file, 10) == {}
    with pytest.raises(ValueError, match=r"a.json has more than 9 bytes, too many for what it is"):
        read_object(file, 9)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[1]", "holds no JSON object"),
        (b"5", "holds no JSON object"),
        (b"[" * 10**6, "nested too deeply"),
        (b"9" * 5000, "is not JSON"),
    ],
)
def test_anything_but_a_json_object_is_refused_by_name(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json.* {says}"):
        read_object(tmp_path / "a.json")
