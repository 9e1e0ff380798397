"""A complete local run, published alongside existing data of the repository."""

import io
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.hub import Repository
from pipeline.publish.__main__ import publish_subset
from pipeline.publish.origin import License, Origin
from schemas.layout import Subset
from tests.conftest import RunCommand
from tests.hub import Hub
from tests.hub.elsewhere import run
from tests.publish.datasets import annotated

REPOSITORY = Repository("user/name")


@pytest.fixture
def subset(tmp_path: Path) -> Subset:
    return annotated(tmp_path).subset


def test_a_source_with_a_list_of_licences_is_published(
    hub: Hub, subset: Subset, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = Origin(("user/wiki",), License(("cc-by-sa-3.0", "gfdl")))
    monkeypatch.setattr("pipeline.publish.__main__.origin_of", lambda inputs: both)
    REPOSITORY.prepare(private=False)
    publish_subset(subset, REPOSITORY)
    assert b"\nlicense:\n- cc-by-sa-3.0\n- gfdl\n" in hub.files("user/name")["README.md"]


def test_a_card_that_the_hub_rejects_is_reported_before_any_shard_is_sent(
    hub: Hub, subset: Subset, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Origin(("user/old",), License(("No licence at all",)))
    monkeypatch.setattr("pipeline.publish.__main__.origin_of", lambda inputs: old)
    REPOSITORY.prepare(private=False)
    said = r'does not accept the card: .*"license" must be one of.*; write those fields into the README.md'
    with pytest.raises(ValueError, match=said):
        publish_subset(subset, REPOSITORY)
    assert not any(request.method == "PUT" for request in hub.requests)
    hub.add("user/name", {"README.md": b"---\nlicense: unknown\n---\n"})
    publish_subset(subset, REPOSITORY)
    assert len([path for path in hub.files("user/name") if path.startswith("data/")]) == 6


OWN = ["mine", "mine too"]
CARD = b"---\nlicense: mit\n---\n# Mine\n"
LOAD = """
import json, sys
from datasets import load_dataset
def texts(rows):
    return rows.column_names + list(map(str, rows[rows.column_names[0]]))
def loaded(*config):
    return {split: texts(rows) for split, rows in load_dataset("user/name", *config).items()}
print(json.dumps([loaded(*config) for config in ([], *([name] for name in sys.argv[1:]))]))
"""


def parquet(texts: list[str] = OWN) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), buffer)
    return buffer.getvalue()


def load(hub: Hub, home: Path, *configs: str) -> Any:
    """Return splits as `datasets` loads them: first without a configuration, then with each of `configs`."""
    return run(hub, home, LOAD, *configs)


FILES_THERE = (
    ["data/train-00000-of-00001.parquet"],
    ["mine.parquet"],
    ["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"],
    ["some files/a[1]*.parquet", "other.parquet"],
)
MARKS: dict[tuple[int, bool], list[pytest.MarkDecorator]] = {
    (0, False): [],
    (1, True): [],
    (2, True): [pytest.mark.long],
    (3, False): [pytest.mark.long],
}
"""Marks of test cases. A key has the index of the case's files in FILES_THERE, and True if the case has a card. Cases
that are not listed are slow."""
PAIRS = [
    pytest.param(paths, card, marks=MARKS.get((place, card is not None), [pytest.mark.slow]))
    for place, paths in enumerate(FILES_THERE)
    for card in (None, CARD)
]


@pytest.mark.parametrize(("paths", "card"), PAIRS)
def test_existing_data_is_still_loaded_by_default(
    hub: Hub, subset: Subset, tmp_path: Path, paths: list[str], card: bytes | None
) -> None:
    hub.add("user/name", {**dict.fromkeys(paths, parquet()), **({"README.md": card} if card else {})})
    (before,) = load(hub, tmp_path / "before")
    publish_subset(subset, REPOSITORY)
    own, labels, default = load(hub, tmp_path / "after", "exact", "default")
    assert own == default == before and len(labels["train"]) == 12 + 4
    readme = hub.files("user/name")["README.md"].decode()
    publish_subset(subset, REPOSITORY)
    assert hub.files("user/name")["README.md"].decode() == readme
    assert ("# Mine" in readme) == (card is not None) and "annotations_creators" not in readme


@pytest.mark.parametrize("flag", ["", "  default: true\n"])
def test_existing_configurations_and_their_default_are_kept(
    hub: Hub, subset: Subset, tmp_path: Path, flag: str
) -> None:
    card = f"---\nconfigs:\n- config_name: mine\n  data_files: mine/*\n{flag}---\n# Mine\n".encode()
    hub.add("user/name", {"mine/a.parquet": parquet(), "README.md": card})
    publish_subset(subset, REPOSITORY)
    own, mine, labels = load(hub, tmp_path, "mine", "exact")
    assert own == mine == {"train": ["text", *OWN]} and len(labels["train"]) == 12 + 4


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.csv": b"text\nmine\n"}, "has data that `datasets` reads as csv"),
        ({"a/x.csv": b"t\n", "README.md": b"---\nconfigs:\n- config_name: a\n  data_files: a/*\n---\n"}, "as csv"),
        ({"data/exact/a.parquet": parquet()}, "already has other files in data/exact/"),
        (
            {"x.parquet": parquet(), "README.md": b"---\nconfigs:\n- config_name: exact\n  data_files: x*\n---\n"},
            "already has another configuration called exact",
        ),
        ({"a.zip": b"none"}, "cannot read the existing data of hf://datasets/user/name"),
        ({f"{number}.parquet": b"" for number in range(4)}, "has 4 data files, which labels would hide"),
    ],
)
def test_existing_data_that_could_no_longer_be_loaded_is_refused_before_an_upload(
    hub: Hub, subset: Subset, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes], said: str
) -> None:
    monkeypatch.setattr("pipeline.publish.readme.MOST_FILES", 3)
    hub.add("user/name", files)
    before, requests = hub.files("user/name"), len(hub.requests)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        publish_subset(subset, REPOSITORY)
    assert "\n" not in str(refused.value) and hub.files("user/name") == before
    assert not any(request.method == "PUT" for request in hub.requests[requests:])


def test_files_that_are_not_data_hide_nothing(hub: Hub, subset: Subset, tmp_path: Path) -> None:
    hub.add("user/name", {"LICENSE": b"text", "model.bin": b"1", "README.md": b"# A name\n"})
    publish_subset(subset, REPOSITORY)
    (labels,) = load(hub, tmp_path)
    assert len(labels["train"]) == 12 + 4


def test_the_printed_line_loads_the_branch(
    hub: Hub, subset: Subset, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("user/name", {"a.bin": b"a"}, revision="draft")
    assert run_command("pipeline.publish", subset.root, "hf://datasets/user/name@draft") == 0
    assert 'load it with load_dataset("user/name", "exact", split="train", revision="draft")' in capsys.readouterr().out
    card = hub.files("user/name", "draft")["README.md"].decode()
    assert 'split="train", revision="draft")' in card and "--labels hf://datasets/user/name@draft/data/exact" in card


@pytest.mark.parametrize("path", ["/home/ann/in.parquet", "in.parquet"])
def test_paths_in_shards_of_an_older_version_cause_a_warning(
    hub: Hub, subset: Subset, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    plan = subset.ledger / "plan.json"
    plan.write_text(
        plan.read_text(encoding="utf-8").replace('"source": ["a.parquet"]', f'"source": ["{path}"]', 1),
        encoding="utf-8",
    )
    REPOSITORY.prepare(private=False)
    publish_subset(subset, REPOSITORY)
    told = "the shards of exact contain the paths of their inputs; annotate again to leave them out"
    assert (told in caplog.text) == path.startswith("/")
    card = hub.files("user/name")["README.md"].decode()
    assert "| source | in.parquet |" in card and "/home/ann" not in card
