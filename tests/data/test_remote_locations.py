"""Files on the web and on the Hugging Face Hub, both on loopback: found, pinned and read."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.files import find_files, pinned
from pipeline.data.streams import open_file
from tests.file_server import file_server
from tests.hub import hub_server

LINE = b'{"text": "a"}\n'


def parquet(texts: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts}), sink)
    return bytes(sink.getvalue())


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, bytes]]]:
    index = b'<a href="b.jsonl">b</a> <a href="a.parquet">a</a> <a href="notes.txt">notes</a>'
    files = {
        "/data/": index,
        "/data/a.parquet": parquet(["x", "y"]),
        "/data/b.jsonl": LINE * 100_000,
        "/data/deep/c.jsonl.gz": gzip.compress(LINE) + gzip.compress(LINE),
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
    with pytest.raises(FileNotFoundError, match="has disappeared since"):
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
from pipeline.data.files import find_files, pinned

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


def test_datasets_on_the_hub_are_pinned_found_and_read(tmp_path: Path) -> None:
    """This runs in another process, since the Hub's clients read their environment only once."""
    dataset = "hf://datasets/user/name"
    named = [dataset, f"{dataset}/data/*.parquet", f"{dataset}@main/data/deep"]
    missing = [f"{dataset}@gone/data", "hf://datasets/user/other", f"{dataset}/gone.parquet"]
    with hub_server() as hub:
        converted_at = f"{dataset}@{hub.add('user/name', HUB_FILES, revision='refs/convert/parquet')}"
        at = f"{dataset}@{hub.add('user/name', HUB_FILES)}"
        converted = f"{dataset}@refs/convert/parquet/data/train-0.parquet"
        ran = subprocess.run(
            [sys.executable, "-c", HUB_SCRIPT, *named, f"{at}/data/train-1.parquet", converted, *missing],
            env={**os.environ, **hub.environment, "HF_HOME": str(tmp_path)},
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
        [[f"{converted_at}/data/train-0.parquet"], [[f"{converted_at}/data/train-0.parquet", *first[1:]]]],
    ]
    for result, message in zip(results[5:], ["no dataset at", "no dataset at", "no documents at"], strict=True):
        assert message in result


def test_a_hub_that_does_not_answer_is_named() -> None:
    script = "from pipeline.data.files import pinned; pinned(['hf://datasets/user/name'])"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert "ConnectionError: cannot reach hf://datasets/user/name: " in ran.stderr


def test_other_inputs_are_not_pinned() -> None:
    inputs = [
        "a/b.parquet",
        "https://host/a.jsonl",
        f"hf://datasets/user/name@{'a' * 40}/data",
        "hf://user/model/a.json",
    ]
    assert pinned(inputs) == tuple(inputs)
