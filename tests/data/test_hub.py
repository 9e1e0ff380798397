"""Repositories of the Hub: how they are named, prepared and read, and how the Hub's refusals are reported."""

import threading
import time
from collections.abc import Iterator

import pytest
from httpx2 import ConnectError
from huggingface_hub import CommitOperationAdd

from pipeline.data import hub as hub_module
from pipeline.data.hub import Repository
from tests.hub import Hub


@pytest.mark.parametrize(
    "url",
    [
        "hf://user/name",
        "hf://datasets/name",
        "hf://datasets/user/name/data",
        "hf://datasets/user/na me",
        "hf://datasets/user/..",
        "hf://spaces/user/name",
        "hf://datasets/",
        "hf:/datasets/user/name",
    ],
)
def test_a_url_of_anything_but_a_dataset_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"is not a dataset of the Hub.*write hf://datasets/USER/NAME"):
        Repository.at(url)


def test_a_branch_is_named_after_an_at_sign() -> None:
    assert Repository.at("hf://datasets/user/name") == Repository("user/name", "main")
    assert Repository.at("hf://datasets/user/name@draft").url == "hf://datasets/user/name@draft"


def test_a_repository_is_made_once(hub: Hub) -> None:
    assert Repository("user/name").head() is None
    for _ in range(2):
        Repository("user/name").prepare(private=True)
    assert hub.repositories["datasets", "user/name"].private
    assert len(hub.commits("user/name")) == 1


def test_a_missing_branch_is_refused(hub: Hub) -> None:
    with pytest.raises(ValueError, match="there is no such branch"):
        Repository("user/name", "draft").prepare(private=False)


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        ("hf_" + "x" * 34, "user/name", "does not know this token"),
        ("", "user/name", "does not know this token"),
        ("reader", "user/name", "may not write"),
        ("reader", "user/new", "may not write"),
        ("writer", "other/new", "may not write"),
        ("writer", "other/theirs", "may not write"),
    ],
)
def test_a_token_that_may_not_write_is_refused(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str, name: str, said: str
) -> None:
    hub.add("user/name", {"README.md": b"mine"})
    hub.add("other/theirs", {"README.md": b"theirs"})
    monkeypatch.setenv("HF_TOKEN", getattr(hub, token, token))
    with pytest.raises(ValueError, match=said) as refusal:
        Repository(name).prepare(private=False)
    assert name in str(refusal.value) and "hf_" not in str(refusal.value).replace("hf auth", "")


def test_files_are_listed_with_their_digests(hub: Hub) -> None:
    at = hub.add("user/name", {f"data/{place}.parquet": b"%d" % place for place in range(1500)} | {"a.txt": b"small"})
    repository = Repository("user/name")
    listed = repository.files("data", at)
    assert len(listed) == 1500 and len(set(listed.values())) == 1500
    assert repository.digests([*listed, "none", "a.txt"], at) == {**listed, **repository.digests(["a.txt"], at)}
    assert repository.files("none", at) == {} and repository.text("none", at) is None
    assert repository.text("a.txt", at) == "small"


def test_a_commit_adds_what_the_current_head_lacks(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "LONGEST_PAUSE", 0.01)
    hub.add("user/name", {"a": b"1"})
    asked = []

    def missing(head: str) -> list[CommitOperationAdd]:
        asked.append(head)
        if len(asked) == 1:
            hub.add("user/name", {"theirs": b"2"})  # another commit in between
        return [CommitOperationAdd("ours", b"3")]

    Repository("user/name").commit("ours", missing)
    assert len(set(asked)) == 2
    assert hub.files("user/name") == {"a": b"1", "theirs": b"2", "ours": b"3"}


def test_a_pause_is_as_long_as_the_hub_requests(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("user/name", {"a": b"1"})
    hub.faults.retry_after = 7
    hub.faults.refuse(429, method="GET", path="/api/datasets/user/name")
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert Repository("user/name").head() == hub.commits("user/name")[-1].oid
    assert 7 in slept or 8 in slept, slept


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Make the clock advance only in `sleep`, and make this process forget that the Hub has ever answered."""
    now = [0.0]
    monkeypatch.setattr(hub_module, "ANSWERED", threading.Event())
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    yield now
    monkeypatch.undo()


def unplugged() -> None:
    raise ConnectError("[Errno -3] Temporary failure in name resolution")


def test_a_hub_that_never_answered_is_tried_for_a_minute(clock: list[float]) -> None:
    with pytest.raises(ConnectionError, match=r"^cannot reach \S+/user/name after \d+ tries in \d\d s: .*resolution"):
        Repository("user/name")._retried(unplugged)
    assert 20 < clock[0] <= 60


@pytest.mark.parametrize("answer", ["a commit", "no such repository", "too many requests", "another process's"])
def test_a_hub_that_answered_once_is_tried_for_an_hour(
    hub: Hub, clock: list[float], monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    if answer == "a commit":
        hub.add("user/name", {"a": b"1"})
    if answer in ("a commit", "no such repository"):
        Repository("user/name").head()
    if answer == "too many requests":
        hub.faults.refuse(429, method="GET", path="/api/datasets/user/name")
        Repository("user/name").head()
    clock[0] = 0
    with pytest.raises(ConnectionError, match="cannot reach hf://datasets/user/name after"):
        Repository("user/name")._retried(unplugged, prepared=answer == "another process's")
    assert 3500 < clock[0] <= 3600
