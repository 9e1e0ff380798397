"""The real client, huggingface_hub, writes to the server that imitates the Hub, and reads the same content back."""

import hashlib
import json
import re
import threading
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, RepoFile
from huggingface_hub.errors import BadRequestError, HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError

from tests.hub import Hub

NAME = "user/name"
LARGE = bytes(range(256)) * 40


@pytest.fixture
def api(hub: Hub) -> HfApi:
    """Return the client of a user that may write, and create an empty repository of this user."""
    client = HfApi(endpoint=hub.address, token=hub.writer)
    assert client.create_repo(NAME, repo_type="dataset").repo_id == NAME
    return client


def commit(api: HfApi, files: dict[str, bytes], parent: str | None = None, revision: str = "main") -> str:
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    made = api.create_commit(
        NAME, operations, commit_message="more", repo_type="dataset", parent_commit=parent, revision=revision
    )
    assert made.repo_url.repo_id == NAME
    return str(made.oid)


def test_commits_keep_whole_trees_and_any_of_them_can_be_read(hub: Hub, api: HfApi) -> None:
    first = commit(api, {"a.txt": b"one", "data/x.parquet": LARGE})
    second = commit(api, {"a.txt": b"two", "data/y.parquet": LARGE + b"y"})
    assert [one.title for one in hub.commits(NAME)] == ["initial commit", "more", "more"]
    assert [one.oid for one in hub.commits(NAME)][1:] == [first, second]
    assert hub.commits(NAME)[2].parent == first
    plain = {path: content for path, content in hub.files(NAME, first).items() if path != ".gitattributes"}
    assert plain == {"a.txt": b"one", "data/x.parquet": LARGE}
    assert hub.files(NAME)["data/x.parquet"] == LARGE and hub.files(NAME)["a.txt"] == b"two"
    listed = api.list_repo_commits(NAME, repo_type="dataset")
    assert [one.commit_id for one in listed] == [one.oid for one in hub.commits(NAME)][::-1]
    assert listed[0].authors == ["user"]
    path = api.hf_hub_download(NAME, "data/x.parquet", repo_type="dataset", revision=first)
    assert Path(path).read_bytes() == LARGE


def test_large_files_go_by_lfs_and_only_once(hub: Hub, api: HfApi) -> None:
    commit(api, {"x.parquet": LARGE})
    puts = [one for one in hub.requests if one.method == "PUT"]
    assert [(one.path.split("/")[-1], one.storage, one.authorized) for one in puts] == [
        (hashlib.sha256(LARGE).hexdigest(), True, False)
    ]
    commit(api, {"again.parquet": LARGE, "empty.parquet": b"", "a.txt": b"a"})
    assert len([one for one in hub.requests if one.method == "PUT"]) == 1
    info = {file.path: file for file in api.list_repo_tree(NAME, repo_type="dataset") if isinstance(file, RepoFile)}
    again = info["again.parquet"].lfs
    assert again is not None and info["a.txt"].lfs is None and info["empty.parquet"].lfs is None
    assert (again.sha256, again.size) == (hashlib.sha256(LARGE).hexdigest(), len(LARGE))


def test_files_larger_than_a_part_are_sent_in_parts(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    hub.part_size = 4000
    (tmp_path / "x.parquet").write_bytes(LARGE)
    api.upload_file(path_or_fileobj=tmp_path / "x.parquet", path_in_repo="x.parquet", repo_id=NAME, repo_type="dataset")
    assert hub.files(NAME)["x.parquet"] == LARGE
    parts = [one.path.split("/")[-1] for one in hub.requests if one.method == "PUT"]
    assert parts == ["1", "2", "3"]


def test_a_folder_is_uploaded_without_what_gitignore_names_and_nothing_changes_twice(
    hub: Hub, api: HfApi, tmp_path: Path
) -> None:
    for path in ("data/x.parquet", "a.txt", "scratch/b.txt", "a.log"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(path, encoding="utf-8")
    (tmp_path / ".gitignore").write_text("scratch/\n*.log\n", encoding="utf-8")
    api.upload_folder(repo_id=NAME, folder_path=tmp_path, repo_type="dataset")
    for ignored in ("scratch/b.txt", "a.log"):
        (tmp_path / ignored).unlink()
    api.upload_folder(repo_id=NAME, folder_path=tmp_path, repo_type="dataset")
    assert set(hub.files(NAME)) == {".gitattributes", ".gitignore", "a.txt", "data/x.parquet"}
    assert len(hub.commits(NAME)) == 2


def test_files_and_folders_are_deleted_and_copied(hub: Hub, api: HfApi) -> None:
    commit(api, {"a.txt": b"a", "d/x.parquet": LARGE, "d/e/b.txt": b"b"})
    copy = [CommitOperationCopy("d/x.parquet", "c.parquet"), CommitOperationCopy("a.txt", "c.txt")]
    delete = [CommitOperationDelete("d/"), CommitOperationDelete("a.txt")]
    api.create_commit(NAME, [*copy, *delete], commit_message="move", repo_type="dataset")
    assert {**hub.files(NAME), ".gitattributes": b""} == {".gitattributes": b"", "c.parquet": LARGE, "c.txt": b"a"}
    for path in ("a.txt", "d/"):
        with pytest.raises(RemoteEntryNotFoundError, match="with this name doesn't exist"):
            api.create_commit(NAME, [CommitOperationDelete(path)], commit_message="again", repo_type="dataset")


def test_a_commit_on_another_parent_is_refused(hub: Hub, api: HfApi) -> None:
    first = commit(api, {"a.txt": b"one"})
    second = commit(api, {"a.txt": b"two"}, parent=first[:7])
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as raised:
        commit(api, {"a.txt": b"three"}, parent=first)
    assert raised.value.response.status_code == 412
    assert hub.commits(NAME)[-1].oid == second


def test_of_two_commits_at_once_on_one_parent_one_is_made(hub: Hub, api: HfApi) -> None:
    parent = commit(api, {"a.txt": b"one"})
    failures = []

    def write(content: bytes) -> None:
        try:
            commit(api, {"a.txt": content}, parent=parent)
        except HfHubHTTPError as error:
            failures.append(error.response.status_code)

    threads = [threading.Thread(target=write, args=(bytes([65 + index]),)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [412] * 5 and len(hub.commits(NAME)) == 3


@pytest.mark.parametrize("change", [{"oid": "0" * 64}, {"size": 7}])
def test_a_pointer_to_what_was_not_uploaded_is_refused(hub: Hub, api: HfApi, change: dict[str, object]) -> None:
    commit(api, {"x.parquet": LARGE})
    value = {"path": "y.parquet", "algo": "sha256", "oid": hashlib.sha256(LARGE).hexdigest(), "size": len(LARGE)}
    lines = [{"key": "header", "value": {"summary": "by hand"}}, {"key": "lfsFile", "value": {**value, **change}}]
    sent = httpx2.post(
        f"{hub.address}/api/datasets/{NAME}/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={"Authorization": f"Bearer {hub.writer}"},
    )
    assert sent.status_code == 400 and "y.parquet" in sent.json()["error"]
    assert "y.parquet" not in hub.files(NAME)


def test_an_upload_that_arrives_damaged_is_refused_and_can_be_sent_again(hub: Hub, api: HfApi) -> None:
    addition = CommitOperationAdd("x.parquet", LARGE)
    addition.upload_info.sha256 = hashlib.sha256(b"something else").digest()
    with pytest.raises(RuntimeError, match="Error while uploading") as raised:
        api.create_commit(NAME, [addition], commit_message="damaged", repo_type="dataset")
    assert isinstance(raised.value.__cause__, BadRequestError)
    commit(api, {"x.parquet": LARGE})
    assert hub.files(NAME)["x.parquet"] == LARGE


def test_branches_and_tags_are_made_read_written_and_deleted(hub: Hub, api: HfApi) -> None:
    first = commit(api, {"a.txt": b"one"})
    api.create_tag(NAME, tag="v1", revision=first, repo_type="dataset")
    api.create_branch(NAME, branch="feature/x", revision="v1", repo_type="dataset")
    second = commit(api, {"a.txt": b"two"}, revision="feature/x")
    hub.add(NAME, {"0.parquet": LARGE}, revision="refs/convert/parquet")
    refs = api.list_repo_refs(NAME, repo_type="dataset", include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in [*refs.branches, *refs.tags]} == {
        "main": first,
        "feature/x": second,
        "v1": first,
    }
    assert [(ref.name, ref.ref) for ref in refs.converts] == [("parquet", "refs/convert/parquet")]
    assert refs.pull_requests == []
    assert api.list_repo_files(NAME, repo_type="dataset", revision="refs/convert/parquet") == ["0.parquet"]
    api.create_tag(NAME, tag="v1", repo_type="dataset", exist_ok=True)
    api.create_branch(NAME, branch="feature/x", repo_type="dataset", exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="Reference already exists"):
        api.create_tag(NAME, tag="v1", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="Reference already exists"):
        api.create_branch(NAME, branch="feature/x", repo_type="dataset")
    api.delete_tag(NAME, tag="v1", repo_type="dataset")
    api.delete_branch(NAME, branch="feature/x", repo_type="dataset")
    for gone in ("v1", "feature/x"):
        with pytest.raises(RevisionNotFoundError):
            api.dataset_info(NAME, revision=gone)
    with pytest.raises(RevisionNotFoundError):
        commit(api, {"a.txt": b"three"}, revision=first)


@pytest.mark.parametrize(
    ("front_matter", "said"),
    [
        ("license: \"['cc-by-sa-3.0', 'gfdl']\"", '"license" must be one of'),
        ("license: [mit, Apache 2.0]", '"license" must be one of'),
        ("language: English", '"language" must be an ISO 639'),
        ("license_name: [a]", '"license_name" must be a string'),
        ("tags: a", '"tags" must be an array'),
        ("license: [", "Invalid metadata"),
    ],
)
def test_a_card_is_refused_for_what_the_hub_does_not_know(api: HfApi, front_matter: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        commit(api, {"README.md": f"---\n{front_matter}\n---\n".encode()})
    assert commit(api, {"README.md": b"---\nlicense: [cc-by-sa-3.0, gfdl]\nlanguage: en\ntags: [a]\n---\n"})
