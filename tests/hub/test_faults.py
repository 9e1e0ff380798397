"""Faults of the server, and what stays intact in spite of them."""

import time
from contextlib import suppress
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError

from tests.hub import Faults, Hub, Kind, hub_server

NAME = "user/name"
LARGE = bytes(range(256)) * 40


@pytest.fixture
def api(hub: Hub) -> HfApi:
    hub.add(NAME, {"a.txt": b"a"})
    return HfApi(endpoint=hub.address, token=hub.writer)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would have waited before each retry. The client does not really wait."""
    waited: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=waited.append))
    return waited


def commit(api: HfApi, content: bytes = LARGE) -> str:
    addition = CommitOperationAdd("x.parquet", content)
    return str(api.create_commit(NAME, [addition], commit_message="more", repo_type="dataset").oid)


def statuses(hub: Hub, method: str, ending: str) -> list[int]:
    return [one.status for one in hub.requests if one.method == method and one.path.endswith(ending)]


def test_the_client_goes_on_after_faults_that_it_tries_again(hub: Hub, api: HfApi, waits: list[float]) -> None:
    hub.faults = Faults(retry_after=7)
    hub.faults.refuse(503, method="POST", path="/preupload/", times=2)
    hub.faults.refuse(0, method="PUT")
    hub.faults.refuse(429, method="POST", path="/objects/verify$")
    commit(api)
    assert hub.files(NAME)["x.parquet"] == LARGE
    assert statuses(hub, "POST", "/preupload/main") == [503, 503, 200]
    assert [one.status for one in hub.requests if one.method == "PUT"] == [0, 200]
    assert statuses(hub, "POST", "/objects/verify") == [429, 200]
    assert waits == [1, 2, 1, 8]


def test_a_commit_whose_answer_is_lost_was_made(hub: Hub, api: HfApi) -> None:
    hub.faults.lost_commits = 1
    with pytest.raises(httpx2.RemoteProtocolError):
        commit(api)
    assert hub.files(NAME)["x.parquet"] == LARGE and statuses(hub, "POST", "/commit/main") == [0]
    assert commit(api, LARGE + b"more") == hub.commits(NAME)[-1].oid
    assert len(hub.commits(NAME)) == 3


def test_a_commit_that_is_refused_is_not_lost_instead(hub: Hub, api: HfApi) -> None:
    hub.faults = Faults(lost_commits=1)
    hub.faults.refuse(500, path="/commit/")
    with pytest.raises(HfHubHTTPError, match="a fault on purpose"):
        commit(api)
    assert len(hub.commits(NAME)) == 1 and hub.faults.lost_commits == 1


def test_a_connection_serves_on_after_errors(hub: Hub, api: HfApi) -> None:
    """If the server left the body of a request unread, it would parse this body as the connection's next request."""
    with httpx2.Client(base_url=hub.address, headers={"Authorization": f"Bearer {hub.writer}"}) as client:
        for status in (503, 429, 404):
            hub.faults.refuse(status, method="POST")
            assert client.post(f"/api/datasets/{NAME}/commit/main", content=b"x" * 100_000).status_code == status
            chunks = (b"y" * 1000 for _ in range(3))
            assert client.post("/api/datasets/user/gone/commit/main", content=chunks).status_code == 404
            assert client.get("/api/whoami-v2").json()["name"] == "user"


def test_uploads_take_their_time(hub: Hub, api: HfApi) -> None:
    hub.faults.seconds_per_upload = 0.3
    begun = time.monotonic()
    commit(api)
    assert 0.3 <= time.monotonic() - begun < 3


def failures(seed: int, share: float, kinds: tuple[Kind, ...] = ("rate limit", "unavailable", "dropped")) -> list[int]:
    """Return the statuses of a hundred requests, with 0 for a dropped connection."""
    with hub_server() as hub, httpx2.Client(base_url=hub.address) as client:
        hub.faults = Faults(seed=seed, share=share, kinds=kinds)
        for _ in range(100):
            with suppress(httpx2.RemoteProtocolError):
                client.get("/api/whoami-v2")
        return [one.status for one in hub.requests]


def test_a_share_of_requests_fails_and_the_seed_says_which() -> None:
    first = failures(0, 0.3)
    assert first == failures(0, 0.3) != failures(1, 0.3)
    assert set(first) == {0, 401, 429, 503} and 15 < len(first) - first.count(401) < 45
    assert set(failures(0, 0.3, ("unavailable",))) == {401, 503}
    assert failures(0, 0) == [401] * 100


def test_requests_for_one_path_fail_alike_in_any_order() -> None:
    def outcomes(order: list[int]) -> dict[int, list[bool]]:
        faults = Faults(seed=1, share=0.3)
        failed: dict[int, list[bool]] = {}
        for index in order:
            fails = faults.instead("POST", "/verify", bytes([index])) is not None
            failed.setdefault(index, []).append(fails)
        return failed

    assert outcomes([*range(50)] * 3) == outcomes([index for index in range(50) for _ in range(3)])


def test_uploads_arrive_whole_through_many_faults(hub: Hub, api: HfApi, waits: list[float]) -> None:
    hub.faults = Faults(seed=1, share=0.3)
    additions = [CommitOperationAdd(f"{index}.parquet", LARGE + bytes([index])) for index in range(20)]
    api.preupload_lfs_files(NAME, additions, repo_type="dataset", free_memory=False)
    hub.faults.share = 0
    api.create_commit(NAME, additions, commit_message="many", repo_type="dataset")
    assert len(waits) > 5
    assert {path: hub.files(NAME)[path] for path in sorted(hub.files(NAME)) if path != "a.txt"} == {
        f"{index}.parquet": LARGE + bytes([index]) for index in sorted(range(20), key=str)
    }
