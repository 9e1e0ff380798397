"""Licences and languages that the annotated dataset's card takes from the cards of the source datasets."""

import pytest

from pipeline.publish.origin import License, Origin, origin_of
from tests.hub import Hub


def card(**front_matter: str) -> dict[str, bytes]:
    lines = "".join(f"{key}: {value}\n" for key, value in front_matter.items())
    return {"README.md": f"---\n{lines}---\n# A dataset".encode()}


@pytest.fixture
def sources(hub: Hub) -> Hub:
    hub.add("user/web", card(license="odc-by", language="en"))
    hub.add("user/books", card(license="odc-by", language="[en, fr]"))
    hub.add("user/code", card(license="mit"))
    hub.add("user/bare", {"a.txt": b"no card"})
    hub.add("user/wiki", card(license="[cc-by-sa-3.0, gfdl]", language="[en]"))
    hub.add("user/pile", card(license="other", license_name="pile-terms", license_link="https://pile.example/terms"))
    return hub


def origin(*names: str) -> Origin:
    return origin_of([f"hf://datasets/{name}/data" for name in names])


def test_one_licence_is_taken_over_with_the_languages(sources: Hub) -> None:
    found = origin("user/web", "user/books", "user/web")
    assert found == Origin(("user/web", "user/books"), License(("odc-by",)), ("en", "fr"))
    assert "[user/web](https://huggingface.co/datasets/user/web), [user/books]" in found.sentence
    assert "The licence, odc-by, applies" in found.sentence


def test_a_list_of_licences_is_taken_over_as_a_list(sources: Hub) -> None:
    found = origin("user/wiki")
    assert found.license is not None and found.license.front_matter() == {"license": ["cc-by-sa-3.0", "gfdl"]}
    assert "The licence, cc-by-sa-3.0 and gfdl, applies" in found.sentence


def test_an_other_licence_keeps_its_name_and_link(sources: Hub) -> None:
    found = origin("user/pile")
    assert found.license is not None and found.license.front_matter() == {
        "license": "other",
        "license_name": "pile-terms",
        "license_link": "https://pile.example/terms",
    }
    assert "The licence, pile-terms (https://pile.example/terms), applies" in found.sentence


@pytest.mark.parametrize(
    "names", [("user/web", "user/code"), ("user/web", "user/bare"), ("user/bare",), ("user/web", "user/wiki")]
)
def test_different_or_missing_licences_are_not_merged(sources: Hub, names: tuple[str, ...]) -> None:
    assert origin(*names).license is None and "The licences in their cards apply" in origin(*names).sentence


def test_files_outside_the_hub_have_no_licence_here(sources: Hub) -> None:
    assert origin_of(["a.parquet"]) == Origin()
    assert origin_of(["a.parquet", "hf://datasets/user/web"]).license is None
    assert "outside the Hub" in Origin().sentence
