"""Existing README.md files. If no card can be added to a file, it is refused before anything is labelled."""

import logging
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.hub import Repository
from pipeline.publish.__main__ import publish_subset
from pipeline.publish.card import dataset_card, write_card
from pipeline.publish.readme import parsed, read_readme
from schemas.layout import Subset
from tests.builders import write_documents
from tests.conftest import RunCommand
from tests.hub import Hub
from tests.publish.datasets import annotated
from tests.publish.test_card import front_matter, subset_info
from tests.tiny_models import tiny_estimator

LAUGHS = "\n".join(f"a{depth}: &a{depth} [{', '.join([f'*a{depth - 1}'] * 9)}]" for depth in range(1, 13))
BROKEN = {
    "a tab": "\ta: 1",
    "a list": "- a",
    "text": "abc",
    "a list that does not end": "configs: [",
    "code": "x: !!python/object/apply:os.system ['true']",
    "a name of code": "x: !!python/name:os.system",
    "a list that holds itself": "x: &a [*a]",
    "a billion laughs": f"a0: &a0 [x, x]\n{LAUGHS}",
    "configurations that are a number": "configs: 5",
    "configurations without a name": "configs: [{data_files: a}]",
    "a configuration that is text": "configs: [a]",
    "a configuration named by a list": "configs: [{config_name: [a], data_files: b}]",
    "information that is text": "dataset_info: abc",
    "information of unknown types": "dataset_info: {features: [{name: a, dtype: {class_label: 5}}]}",
    "a key twice": "license: mit\nlicense: gpl",
    "a key twice below": "dataset_info: {config_name: a, config_name: b}",
    "a deep list": f"x: {'[' * 5000}",
}


@pytest.mark.parametrize("front", BROKEN.values(), ids=BROKEN)
def test_unusable_front_matter_is_refused_with_the_name_of_its_file(front: str) -> None:
    with pytest.raises(ValueError, match=r"^the front matter of hf://a/README\.md cannot be read: .*; fix it, or"):
        dataset_card(subset_info(), f"---\n{front}\n---\n# Old\n", "hf://a/README.md")


def test_front_matter_that_does_not_end_is_refused_and_text_without_any_is_kept() -> None:
    with pytest.raises(ValueError, match=r"README\.md cannot be read: no line of --- ends it"):
        dataset_card(subset_info(), "---\na: 1\nhello")
    assert "\n# Old\n" in dataset_card(subset_info(), "# Old\nhello")


def test_aliases_are_kept_and_information_without_rows_gives_no_size() -> None:
    known = "a: &a [1, 2]\nb: *a\ndataset_info:\n- config_name: b\n  splits: [{name: train}]"
    card = dataset_card(subset_info(), f"---\n{known}\n---\n# Old\n")
    data = front_matter(card)
    assert data["a"] == data["b"] == [1, 2] and "size_categories" not in data
    assert dataset_card(subset_info(), card) == card


@settings(max_examples=100, deadline=None)
@given(st.text("-:\n []{}&*ab!#|>'\"\t", max_size=40) | st.text(max_size=30))
def test_any_text_is_added_to_or_refused(text: str) -> None:
    try:
        card = dataset_card(subset_info(), text, "there")
    except ValueError as error:
        assert "there" in str(error)
        return
    assert isinstance(yaml.safe_load(card.split("---\n")[1]), dict) and "## exact" in card
    assert dataset_card(subset_info(), card) == card


@pytest.mark.parametrize(
    ("mark", "instead"),
    [
        ("<!-- end exact -->", ""),
        ("<!-- end exact -->", "<!-- end exact -->\n<!-- end exact -->"),
        ("<!-- begin exact", "<!-- begin exact 0123 -->\n<!-- begin exact"),
        ("<!-- begin exact", "<!-- begin exact not-a-digest"),
        ("## exact", "<!-- end exact -->\n## exact"),
    ],
)
def test_a_section_with_broken_marks_is_refused(mark: str, instead: str) -> None:
    card = dataset_card(subset_info("exact-2"), dataset_card(subset_info(), None))
    with pytest.raises(ValueError, match=r"^the section on exact in README\.md is not between one `<!-- begin` and"):
        dataset_card(subset_info(), card.replace(mark, instead, 1))
    dataset_card(subset_info("exact-2"), card.replace(mark, instead, 1))  # marks of another subset do not count


def test_a_readme_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    assert read_readme(tmp_path / "README.md") is None
    (tmp_path / "README.md").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"README\.md is not UTF-8 \(.*\); fix it"):
        read_readme(tmp_path / "README.md")
    parsed("café", "there")


def test_a_readme_broken_before_a_run_is_refused_and_one_broken_meanwhile_is_left(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tiny_estimator().save_pretrained(tmp_path / "estimator")
    file = write_documents(tmp_path / "in.parquet", ["text"] * 4, input_ids=[list(range(30))] * 4)
    chosen = ("--method", "exact", "--estimator", tmp_path / "estimator", "--tokenizer", "none", "--workers", 0)
    words = ("--input", file, *chosen, "--output", tmp_path / "out")
    assert run_command("pipeline.annotate", *words, "--limit", 2, "--rows-per-unit", 2) == 0
    readme, shards = tmp_path / "out/README.md", sorted((tmp_path / "out").rglob("*.parquet"))
    readme.write_text("---\nconfigs: 5\n---\n", encoding="utf-8")
    assert run_command("pipeline.annotate", *words) == 1
    assert f"error: the front matter of {readme} cannot be read: " in capsys.readouterr().err
    assert sorted((tmp_path / "out").rglob("*.parquet")) == shards
    with caplog.at_level(logging.WARNING):
        write_card(subset_info(subset=Subset("exact", tmp_path / "out")))
    assert readme.read_text(encoding="utf-8") == "---\nconfigs: 5\n---\n" and "the card is not updated" in caplog.text


@pytest.mark.parametrize("broken", [b"---\n\ta: 1\n---\n", b"caf\xe9"])
def test_a_repository_whose_readme_is_broken_is_refused_before_any_shard_is_sent(
    hub: Hub, tmp_path: Path, broken: bytes
) -> None:
    hub.add("user/name", {"README.md": broken})
    with pytest.raises(ValueError, match=r"README\.md"):
        publish_subset(annotated(tmp_path).subset, Repository("user/name"))
    assert hub.files("user/name") == {"README.md": broken}


def test_a_repository_whose_readme_is_broken_meanwhile_receives_everything_else(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, repository = b"---\nconfigs: 5\n---\n", Repository("user/name")
    repository.prepare(private=False)
    monkeypatch.setattr(  # as if somebody wrote it at this moment
        "pipeline.publish.__main__.with_totals",
        lambda given, _: (hub.add("user/name", {"README.md": broken}) and given) or given,
    )
    subset = annotated(tmp_path).subset
    (subset.ledger / "report.json").write_text("{}", encoding="utf-8")
    publish_subset(subset, repository)
    files = hub.files("user/name")
    assert files["README.md"] == broken and files["_ledger/exact/report.json"] == b"{}"
    assert len([path for path in files if path.startswith("data/")]) == 6
    assert "hf://datasets/user/name/README.md cannot be read" in caplog.text
