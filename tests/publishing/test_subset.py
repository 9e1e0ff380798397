"""A complete run on this disk, published beside whatever the repository has."""

from pathlib import Path

import pytest

from pipeline.data.hub import Repository
from pipeline.publish import publish_subset
from pipeline.publishing.source import License, SourceFacts
from schemas.layout import Subset
from tests.hub import Hub
from tests.publishing.datasets import annotated

REPOSITORY = Repository("user/name")


@pytest.fixture
def subset(tmp_path: Path) -> Subset:
    return annotated(tmp_path).subset


def test_a_source_with_a_list_of_licences_is_published(
    hub: Hub, subset: Subset, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = SourceFacts(("user/wiki",), License(("cc-by-sa-3.0", "gfdl")))
    monkeypatch.setattr("pipeline.publish.source_facts", lambda inputs: both)
    REPOSITORY.prepare(private=False)
    publish_subset(subset, REPOSITORY)
    assert b"\nlicense:\n- cc-by-sa-3.0\n- gfdl\n" in hub.files("user/name")["README.md"]


def test_a_card_that_the_hub_does_not_take_is_told_of_before_any_shard_is_sent(
    hub: Hub, subset: Subset, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = SourceFacts(("user/old",), License(("No licence at all",)))
    monkeypatch.setattr("pipeline.publish.source_facts", lambda inputs: old)
    REPOSITORY.prepare(private=False)
    said = r'does not take the card: .*"license" must be one of.*; write those fields into the README.md'
    with pytest.raises(ValueError, match=said):
        publish_subset(subset, REPOSITORY)
    assert not any(request.method == "PUT" for request in hub.requests)
    hub.add("user/name", {"README.md": b"---\nlicense: unknown\n---\n"})
    publish_subset(subset, REPOSITORY)
    assert len([path for path in hub.files("user/name") if path.startswith("data/")]) == 6
