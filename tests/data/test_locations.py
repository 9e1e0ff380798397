"""Finding files on disk and behind URLs, pinning them, and opening them as they were found."""

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.core import url_to_fs
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.locations import File, find_files, open_file, pinned
from tests.file_server import file_server
from tests.hub_server import COMMIT, hub_server

NAMES = ("one/b.parquet", "one/a.jsonl", "one/deep/c.json.gz", "one/deep/d.NDJSON.zst", "two/e.jsonl", "two/f.jsonl")
LINE = b'{"text": "a"}\n'


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(LINE)


def parquet(texts: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink)
    return bytes(sink.getvalue())


def compressed(parts: list[bytes], codec: str) -> bytes:
    """Each part a member or frame of its own."""
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


@pytest.mark.parametrize("named", ["missing.parquet", "*.parquet", ".", "https"])
def test_an_input_that_names_nothing_is_refused(tmp_path: Path, named: str) -> None:
    for protocol in ("", "file://"):
        with pytest.raises(ValueError, match="no Parquet or JSON lines file at"):
            find_files([f"{protocol}{tmp_path}/{named}"])


def test_a_file_that_is_named_twice_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "link.json").symlink_to("z.json")
    for again in ("z.json", f"{folder}/z.json", "two/../z.json", f"file://{folder}/z.json", "link.json"):
        with pytest.raises(ValueError, match=r"more than once.*z\.json") as refusal:
            find_files(["z.json", "two", again])
        assert "e.jsonl" not in str(refusal.value)


def test_a_link_keeps_its_name(folder: Path) -> None:
    (folder / "blob").write_bytes(LINE)
    (folder / "link.jsonl").symlink_to("blob")
    assert [file.holds_json_lines for file in find_files([f"{folder}/blob", f"{folder}/one/a.jsonl"])] == [False, True]
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
        ("http://127.0.0.1:9/a.jsonl", "no Parquet or JSON lines file at .*: .*127.0.0.1"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_files([url])


@pytest.mark.parametrize("protocol", ["", "memory://"])
def test_a_file_that_changed_or_went_is_refused(tmp_path: Path, protocol: str) -> None:
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
    with pytest.raises(ValueError, match="is gone since"):
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
    """pzstd writes one before each frame, with the frame's length."""
    skippable = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"size"
    content = b"".join(skippable + compressed([part], "zstd") for part in (LINE, LINE * 3))
    with open_file(stored(tmp_path, content, "zstd")) as stream:
        assert stream.readlines() == [LINE] * 4


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["gzip", "zstd"]), st.data())
def test_what_is_cut_short_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, codec: str, data: st.DataObject
) -> None:
    parts = [b"first" * 50, bytes(range(50))]
    whole, ends = compressed(parts, codec), [0, len(compressed(parts[:1], codec))]
    cut = data.draw(st.integers(1, len(whole) - 1).filter(lambda place: place not in ends))
    with open_file(stored(tmp_path_factory.mktemp("stored"), whole[:cut], codec)) as stream, pytest.raises(OSError):
        stream.read()


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, bytes]]]:
    index = b'<a href="b.jsonl">b</a> <a href="a.parquet">a</a> <a href="notes.txt">notes</a>'
    files = {
        "/data/": index,
        "/data/a.parquet": parquet(["x", "y"]),
        "/data/b.jsonl": LINE * 100_000,
        "/data/deep/c.jsonl.gz": compressed([LINE, LINE], "gzip"),
        "/data/notes.txt": b"no data",
    }
    with file_server(files) as address:
        yield address, files


def test_files_on_the_web_are_found_and_read(web: tuple[str, dict[str, bytes]]) -> None:
    address, files = web
    paths = ("/data/b.jsonl", "/data/a.parquet", "/data/deep/c.jsonl.gz")
    found = find_files([f"{address}{paths[0]}?download=yes", f"{address}/data/*.parquet", f"{address}{paths[2]}"])
    assert [(file.name, file.size) for file in found] == [(Path(path).name, len(files[path])) for path in paths]
    contents = []
    for file in found:
        with open_file(file) as stream:
            contents.append(stream.read())
    assert contents == [files[paths[0]], files[paths[1]], LINE * 2]


def test_a_folder_on_the_web_is_refused(web: tuple[str, dict[str, bytes]]) -> None:
    with pytest.raises(ValueError, match=r"is a web page; name files, or a glob of them as in .*/data/\*"):
        find_files([f"{web[0]}/data/"])


def test_a_file_that_changed_on_the_web_is_refused(web: tuple[str, dict[str, bytes]]) -> None:
    address, files = web
    file = find_files([f"{address}/data/b.jsonl"])[0]
    files["/data/b.jsonl"] = LINE * 99_999 + LINE.replace(b"a", b"b")
    with pytest.raises(ValueError, match="has changed since"):
        open_file(file)
    del files["/data/b.jsonl"]
    with pytest.raises(ValueError, match="is gone since"):
        open_file(file)


HUB_FILES = {
    "data/train-0.parquet": parquet(["x", "y"]),
    "data/train-1.parquet": parquet(["z"]),
    "data/deep/more.jsonl": LINE * 3,
    "README.md": b"a card",
}
HUB_SCRIPT = """
import json, sys
from pipeline.data.documents import Column, inspect_file, read_rows
from pipeline.data.locations import find_files, pinned

def texts(file):
    layout = inspect_file(file, Column())
    return [text for rows in read_rows(file, 0, 9, layout.schema, Column()) for text in rows.column(0).to_pylist()]

for named in sys.argv[1:]:
    try:
        inputs = pinned([named])
        print(json.dumps([inputs, [[file.url, file.size, texts(file)] for file in find_files(inputs)]]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def test_datasets_on_the_hub_are_pinned_found_and_read() -> None:
    """In another process, since the Hub's clients read their environment once."""
    dataset, at = "hf://datasets/user/name", f"hf://datasets/user/name@{COMMIT}"
    named = [dataset, f"{dataset}/data/*.parquet", f"{dataset}@main/data/deep", f"{at}/data/train-1.parquet"]
    converted = f"{dataset}@refs/convert/parquet/data/train-0.parquet"
    missing = [f"{dataset}@gone/data", "hf://datasets/user/other", f"{dataset}/gone.parquet"]
    with hub_server(HUB_FILES) as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_DISABLE_TELEMETRY": "1"}
        ran = subprocess.run(
            [sys.executable, "-c", HUB_SCRIPT, *named, converted, *missing],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    first, second, third = (
        [f"{at}/{name}", len(HUB_FILES[name]), texts]
        for name, texts in (
            ("data/train-0.parquet", ["x", "y"]),
            ("data/train-1.parquet", ["z"]),
            ("data/deep/more.jsonl", ["a", "a", "a"]),
        )
    )
    assert results[:5] == [
        [[at], [third, first, second]],
        [[f"{at}/data/*.parquet"], [first, second]],
        [[f"{at}/data/deep"], [third]],
        [[f"{at}/data/train-1.parquet"], [second]],
        [[f"{at}/data/train-0.parquet"], [first]],
    ]
    for result, message in zip(results[5:], ["no dataset at", "no dataset at", "no Parquet or JSON"], strict=True):
        assert message in result


def test_other_inputs_are_not_pinned() -> None:
    inputs = ["a/b.parquet", "https://host/a.jsonl", f"hf://datasets/user/name@{COMMIT}/data", "hf://user/model/a.json"]
    assert pinned(inputs) == tuple(inputs)
