"""The line that loads a dataset, as Python and `datasets` understand it."""

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
from pipeline.data.naming import load_call, require_loadable

CARD = "---\nconfigs:\n- config_name: exact\n  data_files: data/exact/**/*.parquet\n---\n"
LOADABLE = ["a b", "it's", 'a "quoted" one', "a\\b", "naïve 🙂", "{a,b}", "a:b", "tab\there", "~", "%20"]
NOT_LOADABLE = ["run[1]", "run*", "run?", "a::b", "[a]/b", os.fsdecode(b"latin-\xe9")]


def written(folder: Path) -> Path:
    (folder / "data" / "exact").mkdir(parents=True)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    pq.write_table(pa.table({"x": [1, 2]}), folder / "data" / "exact" / "train-00000-of-00001.parquet")
    return folder


def called(line: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What the line gives to `load_dataset`."""
    (call,) = ast.parse(line).body
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    places = tuple(ast.literal_eval(one) for one in call.value.args)
    return places, {str(one.arg): ast.literal_eval(one.value) for one in call.value.keywords}


@given(st.text(), st.sampled_from(["main", "draft", 'a"b']))
def test_the_line_names_the_place_whatever_is_in_its_name(place: str, revision: str) -> None:
    branch = {} if revision == "main" else {"revision": revision}
    assert called(load_call(place, "exact", revision)) == ((place, "exact"), {"split": "train", **branch})
    assert "\n" not in load_call(place, "exact", revision)


@pytest.mark.parametrize("name", LOADABLE)
def test_a_folder_that_is_not_refused_is_loaded_by_its_line(
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
    with pytest.raises(ValueError, match=r"--output .*/\[a\]/annotated is a path"):
        Config(input=("a.parquet",)).check_place()
