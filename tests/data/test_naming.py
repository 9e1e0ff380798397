"""The names of inputs that a dataset shows to everybody."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.files import File
from pipeline.data.naming import (
    LOCAL_NAME,
    MOST_NAMED,
    is_local,
    named_inputs,
    public_names,
    recorded,
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
def test_local_files_are_a_number_and_a_folder_that_is_nobodys_home(
    paths: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    assert named_inputs(paths, local(*paths)) == (name,)
    assert named_inputs([URL, *paths], local(*paths, URL)) == (URL, name)


@given(st.lists(PATHS, min_size=1, max_size=30), st.integers(0, 20))
def test_any_number_of_inputs_has_a_few_names_without_a_path(paths: list[str], remote: int) -> None:
    elsewhere = [f"https://host/{number}.parquet" for number in range(remote)]
    names = named_inputs([*elsewhere, *paths], local(*paths, *elsewhere))
    assert len(names) <= MOST_NAMED + 2 and list(names[:remote])[:MOST_NAMED] == elsewhere[:MOST_NAMED]
    assert not any(path in name for path in paths for name in names)
    assert (f"{remote - MOST_NAMED:,} more" in names) == (remote > MOST_NAMED)


def test_of_the_paths_that_older_versions_wrote_the_last_part_is_shown() -> None:
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
def test_a_url_is_written_down_without_parameters_that_may_let_anybody_in(url: str, written: str | None) -> None:
    assert recorded([url]) == (written or url,)
    if not is_local(url):
        assert named_inputs([url], []) == (written or url,)
