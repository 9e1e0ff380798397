"""Selection of the files that hold documents: the same rules apply on a disk, behind URLs and on the Hub."""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest

from pipeline.data.documents import Column, iterate_rows
from pipeline.data.files import pinned
from pipeline.data.inputs import InputFiles, Inputs, find_documents
from tests.file_server import file_server
from tests.hub import Hub

NUMBERS = count()
LINE = b'{"text": "a"}\n'
TABLE = b"PAR1" * 9


class Store:
    """A place for files under one URL: a folder on a disk, a folder in memory, or a repository of the Hub."""

    def __init__(self, url: str, hub: Hub | None = None) -> None:
        self.url, self.hub = url, hub

    def put(self, *names: str) -> None:
        contents = {name: TABLE if name.endswith(".parquet") else LINE for name in names}
        if self.hub is not None:
            name = self.url.removeprefix("hf://datasets/")
            self.hub.add(name, contents)
        for name, content in contents.items() if self.hub is None else ():
            filesystem, path = fsspec.url_to_fs(f"{self.url}/{name}")
            filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            filesystem.pipe_file(path, content)

    def find(self, *named: str, split: str | None = None) -> tuple[list[str], list[str]]:
        """Return the found files, and the notes about files left out, both with paths relative to the store."""
        inputs = pinned([f"{self.url}{name}" for name in named])
        found = find_documents(inputs, split)
        root = inputs[0].removesuffix(named[0]).removeprefix("file://")
        return [file.url.removeprefix(f"{root}/") for file in found.files], [
            note.removeprefix("file://").removeprefix(root) for note in found.notes
        ]


@pytest.fixture(params=["disk", "file://", "memory://", "hf://"])
def store(request: pytest.FixtureRequest, tmp_path: object) -> Iterator[Store]:
    if request.param == "hf://":
        yield Store("hf://datasets/user/name", request.getfixturevalue("hub"))
    else:
        yield Store(f"{request.param.removeprefix('disk')}{tmp_path}/{next(NUMBERS)}")


def test_a_folder_that_a_glob_matches_is_read(store: Store) -> None:
    """Spark writes folders whose names have the extensions of files."""
    store.put("a.parquet/part-0.parquet", "a.parquet/_SUCCESS", "b.parquet", "c.parquet/part-1.parquet")
    files = ["a.parquet/part-0.parquet", "b.parquet", "c.parquet/part-1.parquet"]
    for glob in ("/*.parquet", "/**/*.parquet", "/*", "/**"):
        assert store.find(glob)[0] == files


def test_a_glob_of_files_in_a_folder_reads_only_these(store: Store) -> None:
    store.put("x.parquet/part-0.parquet", "x.parquet/notes.jsonl", "y/deep/z.parquet", "y/deep/z.jsonl")
    assert store.find("/**/*.parquet") == (["x.parquet/part-0.parquet", "y/deep/z.parquet"], [])
    assert store.find("/*/*.parquet") == (["x.parquet/part-0.parquet"], [])


def test_each_file_of_nested_folders_is_read_once(store: Store) -> None:
    store.put("d1/d2/a.parquet", "d1/b.parquet", "d3/d4/d5/c.parquet", "e/d6/d.parquet")
    files = ["d1/b.parquet", "d1/d2/a.parquet", "d3/d4/d5/c.parquet", "e/d6/d.parquet"]
    assert store.find("/**/d?") == (files, [])


def test_a_folder_that_a_glob_matches_has_splits(store: Store) -> None:
    store.put("one/train.parquet", "one/test.parquet", "two/0.parquet")
    files, notes = store.find("/*")
    assert files == ["one/train.parquet", "two/0.parquet"]
    assert [note.partition(": ")[2] for note in notes] == [
        "taking split train of train, test; `split` names another, `split` all takes all"
    ]
    assert store.find("/*", split="all")[0] == ["one/train.parquet", "one/test.parquet", "two/0.parquet"]


def test_hidden_files_are_left_out_unless_they_are_named(store: Store) -> None:
    hidden = "_temporary/0/part-0.parquet"
    store.put("part-0.parquet", "_SUCCESS", ".part-0.parquet.crc", ".x/0.parquet", "_old.parquet", hidden)
    assert store.find("") == (["part-0.parquet"], [f": left out 2 files (not data): _old.parquet, {hidden}"])
    for glob in ("/*.parquet", "/**/*.parquet"):
        files, notes = store.find(glob)
        assert files == ["part-0.parquet"] and len(notes) == 1 and "(not data): " in notes[0], notes
    for named in ("/_temporary", "/_temporary/0", "/_temporary/*", "/_temporary/*/*", f"/{hidden}"):
        assert store.find(named) == ([hidden], [])
    for named in ("/.x", "/.x/*", "/.x/0.parquet", "/.*/*.parquet"):
        assert store.find(named) == ([".x/0.parquet"], [])


def test_files_of_settings_are_left_out_unless_they_are_named(store: Store) -> None:
    store.put("a.json", "dataset_infos.json", "dataset_dict.json", "deep/config.json", "README.md")
    files, notes = store.find("")
    assert files == ["a.json"]
    assert notes == [": left out 3 files (not data): dataset_dict.json, dataset_infos.json, deep/config.json"]
    assert store.find("/*.json")[0] == ["a.json"]
    assert store.find("/deep/config.json") == (["deep/config.json"], [])
    assert store.find("/*/config.json") == (["deep/config.json"], [])


def test_a_folder_without_data_that_a_glob_matches_is_reported(store: Store) -> None:
    store.put("a/0.parquet", "logs/0.log", "_x/0.parquet")
    files, notes = store.find("/*")
    assert files == ["a/0.parquet"]
    (note,) = notes
    assert "left out 2 files (not data): " in note and "logs/" in note and "_x" in note
    with pytest.raises(ValueError, match=r"no documents at .*logs"):
        store.find("/logs")


def test_an_input_of_which_everything_is_left_out_is_refused(store: Store) -> None:
    store.put("a/_x/0.parquet", "a/dataset_infos.json")
    for named in ("/a", "/*"):
        with pytest.raises(ValueError, match=r"no data at .*0\.parquet.* would be left out; name the files that are"):
            store.find(named)


def test_files_and_globs_are_read_as_they_are_named(store: Store) -> None:
    store.put("train.parquet", "test.parquet", "stats.json")
    every = ["test.parquet", "train.parquet"]
    assert store.find("/*.parquet") == (every, [])
    assert store.find("/*t*.*") == (["stats.json", *every], [])
    assert store.find("/test.parquet", "/train.parquet") == (every, [])
    with pytest.raises(ValueError, match="`split` test selects within folders and datasets, but the input has none"):
        store.find("/*.parquet", split="test")


def test_a_glob_on_the_web_is_read_as_it_is_named() -> None:
    index = b"".join(b'<a href="%s">x</a> ' % name for name in (b"a.parquet", b"_b.parquet", b"test.parquet"))
    files = {"/data/": index} | {f"/data/{name}.parquet": TABLE for name in ("a", "_b", "test")}
    with file_server(files) as address:
        found = find_documents([f"{address}/data/*.parquet"])
    assert [file.name for file in found.files] == ["a.parquet", "test.parquet"]
    assert found.notes == [f"{address}/data/*.parquet: left out 1 file (not data): {address}/data/_b.parquet"]


CARD = b"""---
configs:
- config_name: default
  data_files: [{split: train, path: data/*/*}]
- config_name: sample-10BT
  data_files: [{split: train, path: sample/10BT/*}]
---
"""


def test_a_dataset_of_the_hub_is_read_by_its_card(hub: Hub) -> None:
    files = {"data/CC-1/0.parquet": TABLE, "data/CC-2/0.parquet": TABLE, "sample/10BT/0.parquet": TABLE}
    at = f"hf://datasets/user/web@{hub.add('user/web', {'README.md': CARD, **files})}"

    def read(named: str, config_name: str | None = None) -> InputFiles:
        return find_documents(pinned([named]), config_name=config_name)

    found = read("hf://datasets/user/web")
    assert [file.url for file in found.files] == [f"{at}/data/CC-1/0.parquet", f"{at}/data/CC-2/0.parquet"]
    assert found.choices == ("config default",)
    assert found.notes == [f"{at}: taking config default of default, sample-10BT; `config_name` names another"]
    sample = [f"{at}/sample/10BT/0.parquet"]
    assert [file.url for file in read("hf://datasets/user/web", "sample-10BT").files] == sample
    part = read("hf://datasets/user/web/sample/10BT")
    assert ([file.url for file in part.files], part.choices, part.notes) == (sample, (), [])


def test_the_named_split_is_read_from_each_folder(store: Store) -> None:
    store.put("one/train.parquet", "one/test.parquet", "two/test.parquet", "three.parquet")
    assert store.find("/one", "/two", "/three.parquet", split="test")[0] == [
        "one/test.parquet",
        "two/test.parquet",
        "three.parquet",
    ]
    with pytest.raises(ValueError, match="two has no split train; `split` takes all or one of test"):
        store.find("/one", "/two", split="train")


@pytest.mark.parametrize("splits", [False, True])
def test_output_of_save_to_disk_is_refused_with_advice_that_works(tmp_path: Path, splits: bool) -> None:
    rows = datasets.Dataset.from_dict({"text": [f"document {row}" for row in range(9)]})
    saved = tmp_path / "saved"
    if splits:
        datasets.DatasetDict({"train": rows, "test": rows.select(range(2))}).save_to_disk(saved)
    else:
        rows.save_to_disk(saved, num_shards=2)
    for named in saved.rglob("*.arrow"):
        with pytest.raises(ValueError, match="is an Arrow file, the format of save_to_disk; write Parquet"):
            find_documents([str(named)])
    with pytest.raises(ValueError, match="is an Arrow file") as said:
        find_documents([str(saved)])
    remedy = re.search(r'load_from_disk\("(.+)"\)\.to_parquet', str(said.value))
    assert remedy is not None
    written = tmp_path / "documents.parquet"
    datasets.load_from_disk(remedy[1]).to_parquet(written)
    (file,) = find_documents([str(written)]).files
    (batch,) = iterate_rows([file], Column())
    assert batch.column("text").to_pylist() == rows["text"][:]


@pytest.mark.parametrize("setting", ["split", "config_name"])
def test_a_split_or_configuration_of_built_in_documents_is_refused(setting: str) -> None:
    chosen: dict[str, Any] = {setting: "x"}
    assert Inputs(input=()).find_any(()) == InputFiles(())
    with pytest.raises(ValueError, match=f"`{setting}` x selects within folders and datasets, but the input has none"):
        Inputs(input=(), **chosen).find_any(())
    with pytest.raises(ValueError, match="no input is named"):
        Inputs(input=()).find(())


@pytest.mark.parametrize(("rank", "said"), [(None, ["a", "b"]), ("0", ["a", "b"]), ("1", [])])
def test_only_one_process_reports_what_was_selected(
    rank: str | None, said: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    InputFiles((), (), ["a", "b"]).tell()
    assert capsys.readouterr().err.splitlines() == said


def test_annotated_datasets_below_a_folder_are_left_out_and_reported(store: Store) -> None:
    store.put("a.parquet", "deep/out/data/exact/000/train-0.parquet", "deep/out/data/exact/train-1.parquet")
    store.put("deep/out/_ledger/exact/plan.json", "deep/out/tokenizer/exact/tokenizer.json", "data/b.parquet")
    store.put(
        "other/data/exact/c.parquet", "other/_ledger/exact/notes.json"
    )  # without a plan, this is not an annotated dataset
    files, notes = store.find("")
    assert files == ["a.parquet", "data/b.parquet", "other/data/exact/c.parquet"]
    (note,) = [note for note in notes if "annotated" in note]
    assert note.startswith(": left out 3 files (of annotated datasets): deep/out/data/exact/000/train-0.parquet, ")
    assert store.find("/deep/out/data/exact/train-1.parquet") == (["deep/out/data/exact/train-1.parquet"], [])


def test_matches_of_a_glob_below_the_output_are_left_out_and_reported(tmp_path: Path) -> None:
    for name in ("a.jsonl", "out/data/b.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(LINE)
    output, globbed = tmp_path / "out", f"{tmp_path}/**/*.jsonl"
    found = find_documents([globbed], output=output)
    assert [file.name for file in found.files] == ["a.jsonl"]
    assert found.notes == [f"{globbed}: left out 1 file (in the `output`): {output}/data/b.jsonl"]
    assert [file.name for file in find_documents([globbed]).files] == ["a.jsonl", "b.jsonl"]
    assert [file.name for file in find_documents([f"{output}/data/b.jsonl"], output=output).files] == ["b.jsonl"]
