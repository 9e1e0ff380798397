"""Names of inputs without a user's folders, and the printed `load_dataset` call, which Python and `datasets` run."""

import ast
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.annotate.config import Config
from pipeline.data.files import File
from pipeline.data.naming import (
    LOCAL_NAME,
    MOST_NAMED,
    is_local,
    load_call,
    named_inputs,
    public_names,
    recorded,
    require_loadable,
    urls,
    without_paths,
)

URL = "hf://datasets/user/name@" + "a" * 40 + "/data"
PARTS = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=9).filter(
    lambda part: part not in (".", "..")
)
PATHS = st.lists(PARTS, min_size=2, max_size=5).map(lambda parts: "/" + "/".join(parts))


def local(*paths: str) -> list[File]:
    return [File(path, 1, "1") for path in paths]


@pytest.mark.parametrize("named", ["a.parquet", "/a/b.parquet", "../a/*.txt", "file:///a/b.parquet", "local:///a.txt"])
def test_a_path_is_never_published(named: str) -> None:
    assert is_local(named) and without_paths([named, URL]) == (LOCAL_NAME, URL) and urls([named, URL]) == [URL]


@pytest.mark.parametrize(
    ("paths", "name"),
    [
        (["/data/notes/a.txt"], "1 local file in notes"),
        (["/data/notes/a.txt", "/data/notes/more/b.txt"], "2 local files in notes"),
        (["/data/a/a.txt", "/data/b/b.txt"], "2 local files in data"),
        (["/a/a.txt", "/b/b.txt"], "2 local files"),
        (["/home/ann/a.txt", "/home/ann/b/b.txt"], "2 local files"),
        (["/home/a.txt"], "1 local file"),
    ],
)
def test_local_files_are_named_by_number_and_folder_but_never_a_home_folder(
    paths: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert named_inputs(paths, local(*paths)) == (name,)
    assert named_inputs([URL, *paths], local(*paths, URL)) == (URL, name)


@given(st.lists(PATHS, min_size=1, max_size=30), st.integers(0, 20))
def test_any_number_of_inputs_gets_few_names_without_paths(paths: list[str], remote: int) -> None:
    elsewhere = [f"https://host/{number}.parquet" for number in range(remote)]
    names = named_inputs([*elsewhere, *paths], local(*paths, *elsewhere))
    assert len(names) <= MOST_NAMED + 2 and list(names[:remote])[:MOST_NAMED] == elsewhere[:MOST_NAMED]
    assert not any(path in name for path in paths for name in names)
    assert (f"{remote - MOST_NAMED:,} more" in names) == (remote > MOST_NAMED)


def test_only_the_last_part_is_shown_of_paths_that_older_versions_recorded() -> None:
    assert public_names(["/home/ann/in.parquet", "notes/*.txt", URL]) == ("in.parquet", "notes/*.txt", URL)
    assert public_names([f"/home/ann/{number}.txt" for number in range(1000)])[-2:] == ("3.txt", "996 more")


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("https://host/a.parquet?download=true&ref=main", None),
        ("https://host/a.parquet?upload_id=5", "https://host/a.parquet"),
        ("https://host/a.parquet?download=true&x%69=5", "https://host/a.parquet"),
        ("https://host/a.parquet?abcdef", "https://host/a.parquet"),
        ("https://host/a.parquet#part", "https://host/a.parquet"),
        ("https://host/a.parquet;grant=5", "https://host/a.parquet"),
        ("https://host/a;b/c.parquet", None),
        ("s3://bucket/part-?.parquet", None),
        ("s3://bucket/a.parquet?versionId=abc", None),
        ("s3://bucket/a.parquet?grant=abc", "s3://bucket/a.parquet"),
        ("/data/a?b=c.parquet", None),
        (URL, None),
    ],
)
def test_a_url_is_recorded_without_parameters_that_may_grant_access(url: str, written: str | None) -> None:
    assert recorded([url]) == (written or url,)
    if not is_local(url):
        assert named_inputs([url], []) == (written or url,)


CARD = "---\nconfigs:\n- config_name: exact\n  data_files: data/exact/**/*.parquet\n---\n"
LOADABLE = ["a b", "it's", 'a "quoted" one', "a\\b", "naïve 🙂", "{a,b}", "a:b", "tab\there", "~", "%20"]
NOT_LOADABLE = ["run[1]", "run*", "run?", "a::b", "[a]/b", os.fsdecode(b"latin-\xe9")]


def written(folder: Path) -> Path:
    (folder / "data" / "exact").mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    pq.write_table(pa.table({"x": [1, 2]}), folder / "data" / "exact" / "train-00000-of-00001.parquet")
    return folder


def called(line: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the arguments that the call passes to `load_dataset`."""
    (call,) = ast.parse(line).body
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    places = tuple(ast.literal_eval(one) for one in call.value.args)
    return places, {str(one.arg): ast.literal_eval(one.value) for one in call.value.keywords}


@given(st.text(), st.sampled_from(["main", "draft", 'a"b']))
def test_the_call_names_the_location_whatever_its_name_contains(place: str, revision: str) -> None:
    branch = {} if revision == "main" else {"revision": revision}
    assert called(load_call(place, "exact", revision)) == ((place, "exact"), {"split": "train", **branch})
    assert "\n" not in load_call(place, "exact", revision)


@pytest.mark.parametrize("name", LOADABLE)
def test_a_folder_that_is_accepted_can_be_loaded_by_its_call(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = written(tmp_path / name)
    require_loadable(folder)
    places, how = called(load_call(str(folder), "exact"))
    assert datasets.load_dataset(*places, **how)["x"][:] == [1, 2]


@pytest.mark.parametrize("name", NOT_LOADABLE)
def test_a_folder_that_cannot_be_loaded_is_refused_as_an_output(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"is a path that load_dataset cannot read: .*; choose a folder without"):
        Config(output=str(tmp_path / name)).check_place()


def test_an_output_in_a_working_folder_that_cannot_be_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "[a]").mkdir()
    monkeypatch.chdir(tmp_path / "[a]")
    with pytest.raises(ValueError, match=r"`output` .*/\[a\]/annotated is a path"):
        Config(input=("a.parquet",)).check_place()
