"""Files are found, and a file is opened only if it has not changed since it was found."""

import glob
import gzip
import os
import time
from pathlib import Path

import pyarrow as pa
import pytest
from fsspec.core import url_to_fs
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.files import File, _names_matching, find_files, pinned
from pipeline.data.streams import open_file

NAMES = ("one/b.parquet", "one/a.jsonl", "one/deep/c.json.gz", "one/deep/d.NDJSON.zst", "two/e.jsonl", "two/f.jsonl")
LINE = b'{"text": "a"}\n'


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(LINE)


def compressed(parts: list[bytes], codec: str) -> bytes:
    """Compress each part as a separate member or frame."""
    if codec == "gzip":
        return b"".join(gzip.compress(part, mtime=0) for part in parts)
    return b"".join(pa.compress(part, "zstd", asbytes=True) for part in parts)


def stored(folder: Path, content: bytes, codec: str) -> File:
    file = folder / f"a.jsonl.{'gz' if codec == 'gzip' else 'zst'}"
    file.write_bytes(content)
    return find_files([str(file)])[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, *NAMES, "one/notes.txt", "one/.hidden/g.jsonl", "z.json")
    return tmp_path


@pytest.mark.parametrize("protocol", ["", "file://"])
def test_a_file_a_folder_and_a_glob_are_found_in_order(folder: Path, protocol: str) -> None:
    found = find_files([f"{protocol}{folder}/{named}" for named in ("z.json", "two/[ef].jsonl", "one")])
    relative = [str(Path(file.url).relative_to(folder)) for file in found]
    assert relative == ["z.json", *NAMES[4:], "one/a.jsonl", "one/b.parquet", *NAMES[2:4]]
    assert all(file.size == len(LINE) and file.name == Path(file.url).name for file in found)


@pytest.mark.parametrize(
    ("named", "paths"),
    [
        (["one/notes.txt"], ["notes.txt"]),
        (["one"], ["a.jsonl", "b.parquet", "deep/c.json.gz", "deep/d.NDJSON.zst"]),
        (["one/deep"], ["c.json.gz", "d.NDJSON.zst"]),
        (["two/e.jsonl", "one/a.jsonl", "z.json"], ["two/e.jsonl", "one/a.jsonl", "z.json"]),
        (["two/?.jsonl"], ["e.jsonl", "f.jsonl"]),
    ],
)
def test_a_path_is_relative_to_the_folder_of_all_files(folder: Path, named: list[str], paths: list[str]) -> None:
    for protocol in ("", "file://"):
        assert [file.path for file in find_files([f"{protocol}{folder}/{name}" for name in named])] == paths


@pytest.mark.parametrize("named", ["missing.parquet", "*.parquet", ".", "https"])
def test_an_input_that_names_nothing_is_refused(tmp_path: Path, named: str) -> None:
    for protocol in ("", "file://"):
        with pytest.raises(ValueError, match="no documents at"):
            find_files([f"{protocol}{tmp_path}/{named}"])


def test_an_input_that_a_ray_job_lacks_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(ValueError, match=r"notes/a.txt in Ray.s copy of the working directory, .* absolute"):
        find_files(["notes/a.txt"])


@pytest.mark.parametrize("protocol", ["", "file://", "memory://"])
def test_text_is_found_by_name_or_glob_but_not_in_folders(tmp_path: Path, protocol: str) -> None:
    filesystem, path = url_to_fs(f"{protocol}{tmp_path}/notes")
    for name in ("b.txt", "a.txt", "README.md", "deep/c.text.gz"):
        filesystem.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        filesystem.pipe_file(f"{path}/{name}", b"text")
    notes = f"{protocol}{tmp_path}/notes"
    named = [file.name for file in find_files([f"{notes}/README.md", f"{notes}/*.txt", f"{notes}/**/*.gz"])]
    assert named == ["README.md", "a.txt", "b.txt", "c.text.gz"]
    with pytest.raises(ValueError, match=r"at .*/notes; .* text files are read only if a glob names them"):
        find_files([notes])
    filesystem.pipe_file(f"{path}/data.jsonl", LINE)
    assert [file.name for file in find_files([notes])] == ["data.jsonl"]


def test_a_file_named_twice_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "link").symlink_to(".")
    for again in ("z.json", f"{folder}/z.json", "two/../z.json", f"file://{folder}/z.json", "link/z.json"):
        with pytest.raises(ValueError, match=r"more than once.*z\.json") as refusal:
            find_files(["z.json", "two", again])
        assert "e.jsonl" not in str(refusal.value)


def test_links_to_the_same_blob_are_different_files(tmp_path: Path) -> None:
    """The cache of the Hub stores equal files as links to one blob, even across datasets."""
    put(tmp_path, "blobs/0123")
    for name in ("a/0.parquet", "a/1.parquet", "b/0.parquet"):
        put(tmp_path, f"snapshots/{name}")
        (tmp_path / "snapshots" / name).unlink()
        (tmp_path / "snapshots" / name).symlink_to("../../blobs/0123")
    found = find_files([f"{tmp_path}/snapshots/{name}" for name in ("a", "b/0.parquet")])
    assert [file.url.removeprefix(f"{tmp_path}/snapshots/") for file in found] == [
        "a/0.parquet",
        "a/1.parquet",
        "b/0.parquet",
    ]


def test_a_broken_link_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    (tmp_path / "b.parquet").symlink_to("gone")
    for named in ("", "/*.parquet"):
        with pytest.raises(ValueError, match=r"b\.parquet is a link to a file that no longer exists; download"):
            find_files([f"{tmp_path}{named}"])


def test_a_folder_with_a_link_to_its_own_subfolder_is_refused(tmp_path: Path) -> None:
    """The folder has a link `latest` to its subfolder `2024`, whose files would be read twice."""
    put(tmp_path, "2024/a.parquet")
    (tmp_path / "latest").symlink_to("2024")
    with pytest.raises(ValueError, match=r"named more than once in the input: .*/2024/a\.parquet; name each file once"):
        find_files([str(tmp_path)])


def test_a_link_keeps_its_name(folder: Path) -> None:
    (folder / "blob").write_bytes(LINE)
    (folder / "link.jsonl").symlink_to("blob")
    assert [file.format for file in find_files([f"{folder}/blob", f"{folder}/one/a.jsonl"])] == [
        "Parquet",
        "JSON lines",
    ]
    assert find_files([f"{folder}/link.jsonl"])[0].url == f"{folder}/link.jsonl"


@pytest.mark.parametrize("protocol", ["", "file://"])
def test_a_folder_with_brackets_in_its_name_is_read(tmp_path: Path, protocol: str) -> None:
    put(tmp_path, "data[1]/a.jsonl")
    assert [file.url for file in find_files([f"{protocol}{tmp_path}/data[1]"])] == [f"{tmp_path}/data[1]/a.jsonl"]


@pytest.mark.parametrize("url", ["https://user:secret1@host/a.jsonl", "s3://bucket/a.jsonl?sig=secret1"])
def test_a_url_with_a_credential_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ValueError, match="holds a credential") as refusal:
        find_files([url])
    assert "secret1" not in str(refusal.value)
    with pytest.raises(ValueError, match="holds a credential") as refusal:
        pinned(["hf://datasets/user/name?token=secret1"])
    assert "secret1" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nothing://host/a", "Protocol not known"),
        ("zip://*.jsonl::https://host/a.zip", "chains filesystems"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_files([url])


@pytest.mark.parametrize("protocol", ["", "memory://"])
def test_a_file_that_changed_or_disappeared_is_refused(tmp_path: Path, protocol: str) -> None:
    filesystem, path = url_to_fs(f"{protocol}{tmp_path}/a.jsonl")
    filesystem.pipe_file(path, LINE)
    file = find_files([f"{protocol}{tmp_path}/a.jsonl"])[0]
    with open_file(file) as stream:
        assert stream.read() == LINE
    time.sleep(0.02)  # a file's time may have steps of several milliseconds
    filesystem.pipe_file(path, LINE)
    with pytest.raises(ValueError, match="has changed since"):
        open_file(file)
    filesystem.rm_file(path)
    with pytest.raises(FileNotFoundError, match=rf"{file.url} has disappeared since it was found; put it back"):
        open_file(file)


def test_a_copy_at_the_same_time_has_the_same_version(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.jsonl")
    for name in ("a.jsonl", "b.jsonl"):
        os.utime(tmp_path / name, ns=(1, 1_700_000_000_123_456_789))
    first, second = find_files([str(tmp_path)])
    assert first.version == second.version == f"{len(LINE)}-1700000000123456789"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=40).map(lambda part: part * 9), max_size=4), st.sampled_from(["gzip", "zstd"]))
def test_members_and_frames_are_read_as_one(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], codec: str
) -> None:
    with open_file(stored(tmp_path_factory.mktemp("stored"), compressed(parts, codec), codec)) as stream:
        assert stream.read() == b"".join(parts)


def test_skippable_frames_are_skipped(tmp_path: Path) -> None:
    """Before each frame of content, pzstd writes a skippable frame that holds the length of the content's frame."""
    skippable = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"size"
    content = b"".join(skippable + compressed([part], "zstd") for part in (LINE, LINE * 3))
    with open_file(stored(tmp_path, content, "zstd")) as stream:
        assert stream.readlines() == [LINE] * 4


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["gzip", "zstd"]), st.data())
def test_truncation_is_noticed(tmp_path_factory: pytest.TempPathFactory, codec: str, data: st.DataObject) -> None:
    parts = [b"first" * 50, bytes(range(50))]
    whole, ends = compressed(parts, codec), [0, len(compressed(parts[:1], codec))]
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda place: place not in ends))
    with open_file(stored(tmp_path_factory.mktemp("stored"), whole[:cut], codec)) as stream, pytest.raises(OSError):
        stream.read()


def test_cycles_of_links_between_folders_terminate(tmp_path: Path) -> None:
    """Two folders that link to each other can be reached by 2^40 paths, so the search must not follow them all."""
    for name in ("one", "two"):
        put(tmp_path, f"set/{name}/{name}.parquet")
    for name in ("one", "two"):
        for other in ("one", "two", "."):
            (tmp_path / "set" / name / f"link-{other}".replace(".", "up")).symlink_to(tmp_path / "set" / other)
    started = time.process_time()
    for named in (str(tmp_path / "set"), str(tmp_path / "set" / "**" / "*.parquet"), f"{tmp_path}/**/two/**/*.parquet"):
        with pytest.raises(ValueError, match=r"named more than once in the input"):
            find_files([named])
    assert time.process_time() - started < 10


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(["a.parquet", "b/a.parquet", "b/c/a.jsonl", ".h/a.parquet", "_u/b/a.parquet", "b/.d"])),
    st.sampled_from(["**", "**/*.parquet", "b/**", "**/b/*", "*/**/a.*", "**/b/**/*", "**/**", "b/**/c/**", "*"]),
)
def test_the_same_names_are_found_as_by_glob(
    tmp_path_factory: pytest.TempPathFactory, paths: list[str], pattern: str
) -> None:
    folder = tmp_path_factory.mktemp("globbed")
    for path in paths:
        put(folder, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for named in (pattern, f"{folder}/{pattern}"):
            found = map(Path, glob.glob(named, recursive=True))  # glob finds "b/" for "b/**" even if there is none
            expected = {str(path) for path in found if path.exists()}
            assert {str(Path(name)) for name in _names_matching(named)} == expected


def test_anything_but_a_regular_file_is_refused_and_never_opened(tmp_path: Path) -> None:
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "pipe.jsonl").symlink_to(tmp_path / "pipe")
    for named in (tmp_path / "zero.jsonl", tmp_path / "pipe.jsonl", tmp_path):
        with pytest.raises(ValueError, match=r"jsonl is a device, a pipe or a socket, not a file"):
            find_files([str(named)])
    for device in ("/dev/zero", str(tmp_path / "pipe")):
        with pytest.raises(ValueError, match=r"no documents at"):
            find_files([device])


def test_a_folder_named_like_a_file_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "table.parquet/part-0.parquet")
    for named in (tmp_path, tmp_path / "table.parquet", tmp_path / "*.parquet"):
        assert [file.name for file in find_files([str(named)])] == ["part-0.parquet"]
