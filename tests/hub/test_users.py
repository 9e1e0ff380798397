"""Rights of users and tokens, and the errors that the Hub's client raises when a right is missing."""

from collections.abc import Callable

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from tests.hub import Hub

NAME = "user/name"


def client(hub: Hub, token: str | bool) -> HfApi:
    return HfApi(endpoint=hub.address, token=token)


def upload(api: HfApi, name: str = NAME) -> None:
    api.upload_file(path_or_fileobj=b"a", path_in_repo="a.txt", repo_id=name, repo_type="dataset")


def status(call: Callable[..., object], *arguments: object, **settings: object) -> int:
    with pytest.raises(HfHubHTTPError) as raised:
        call(*arguments, **settings)
    return int(raised.value.response.status_code)


def test_tokens_say_whose_they_are_and_what_they_allow(hub: Hub) -> None:
    told = [client(hub, token).whoami() for token in (hub.writer, hub.reader, hub.other)]
    assert [(one["name"], one["auth"]["accessToken"]["role"]) for one in told] == [
        ("user", "write"),
        ("user", "read"),
        ("other", "write"),
    ]
    assert status(client(hub, "hf_wrong").whoami) == 401


def test_only_the_owner_with_a_token_that_may_write_writes(hub: Hub) -> None:
    hub.add(NAME, {})
    upload(client(hub, hub.writer))
    refused = [status(upload, client(hub, token)) for token in (hub.reader, hub.other, "hf_wrong", False)]
    assert refused == [403, 403, 401, 401]
    assert len(hub.commits(NAME)) == 2
    for token in (hub.reader, hub.other):
        assert status(client(hub, token).create_repo, "user/new", repo_type="dataset") == 403
        assert status(client(hub, token).create_tag, NAME, tag="v1", repo_type="dataset") == 403
    client(hub, hub.reader).auth_check(NAME, repo_type="dataset")
    assert status(client(hub, hub.reader).auth_check, NAME, repo_type="dataset", write=True) == 403


def test_a_repository_that_is_not_to_be_seen_is_not_there(hub: Hub) -> None:
    hub.add("other/secret", {"a.txt": b"a"}, private=True)
    assert client(hub, hub.other).dataset_info("other/secret").private
    for token, expected in ((hub.writer, 404), (False, 401)):
        for name in ("other/secret", "user/gone"):
            with pytest.raises(RepositoryNotFoundError) as raised:
                client(hub, token).dataset_info(name)
            assert raised.value.response.status_code == expected
    with pytest.raises(RepositoryNotFoundError):
        upload(client(hub, hub.writer), "user/gone")


def test_a_repository_is_made_once(hub: Hub) -> None:
    api = client(hub, hub.writer)
    first = api.create_repo(NAME, repo_type="dataset", private=True)
    assert api.create_repo(NAME, repo_type="dataset", exist_ok=True) == first
    assert first == f"{hub.address}/datasets/{NAME}"
    assert status(api.create_repo, NAME, repo_type="dataset") == 409
    assert client(hub, hub.reader).create_repo(NAME, repo_type="dataset", exist_ok=True).repo_id == NAME
    assert api.dataset_info(NAME).private


def test_a_client_that_is_given_nothing_is_the_writer_at_this_hub(hub: Hub) -> None:
    assert HfApi().whoami()["name"] == "user"
    assert HfApi().create_repo(NAME, repo_type="dataset").endpoint == hub.address


@pytest.mark.parametrize("name", ["a..b", "a--b", "-a", "a.git", "a b", ""])
def test_invalid_names_are_refused(hub: Hub, name: str) -> None:
    headers = {"Authorization": f"Bearer {hub.writer}"}
    answer = httpx2.post(f"{hub.address}/api/repos/create", json={"name": name, "type": "dataset"}, headers=headers)
    assert answer.status_code == 400


def test_a_card_that_is_no_yaml_is_refused_before_anything_is_sent(hub: Hub) -> None:
    hub.add(NAME, {})
    api = client(hub, hub.writer)
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(
            path_or_fileobj=b"---\na: [\n---\n", path_in_repo="README.md", repo_id=NAME, repo_type="dataset"
        )
    assert len(hub.commits(NAME)) == 1
