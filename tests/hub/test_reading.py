"""The Hub's clients read trees, paths, information, files and parts of files."""

import hashlib
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, HfFileSystem, RepoFile, RepoFolder, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

from tests.hub import Hub

NAME = "user/name"
README = b"---\nlicense: mit\ntags:\n- text\nconfigs:\n- config_name: default\n---\n# Title\n"
LARGE = bytes(range(256)) * 40
FILES = {"README.md": README, "data/x.parquet": LARGE, "data/deep/b.txt": b"b"}


@pytest.fixture
def api(hub: Hub) -> HfApi:
    hub.add(NAME, FILES)
    return HfApi(endpoint=hub.address, token=False)


def test_information_has_the_card_and_all_files(hub: Hub, api: HfApi) -> None:
    info = api.dataset_info(NAME, files_metadata=True)
    assert info.sha == hub.commits(NAME)[0].oid and info.private is False and info.tags == ["text"]
    assert info.card_data is not None and info.card_data["configs"] == [{"config_name": "default"}]
    files = {file.rfilename: file for file in info.siblings or []}
    assert {path: file.size for path, file in files.items()} == {path: len(content) for path, content in FILES.items()}
    assert (lfs := files["data/x.parquet"].lfs) and lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert files["README.md"].blob_id == hashlib.sha1(b"blob %d\0%b" % (len(README), README)).hexdigest()
    assert api.dataset_info(NAME, expand=["sha"]).siblings is None


@pytest.mark.parametrize("page", [1, 2, 1000])
@pytest.mark.parametrize("expand", [False, True])
def test_trees_come_in_pages(hub: Hub, api: HfApi, page: int, expand: bool) -> None:
    hub.page = page
    last = hub.add(NAME, {"data/deep/c.txt": b"c"}, title="second")
    tree = {one.path: one for one in api.list_repo_tree(NAME, repo_type="dataset", recursive=True, expand=expand)}
    assert sorted(tree) == ["README.md", "data", "data/deep", "data/deep/b.txt", "data/deep/c.txt", "data/x.parquet"]
    assert isinstance(tree["data/deep"], RepoFolder) and isinstance(tree["data/x.parquet"], RepoFile)
    changed = {path for path, one in tree.items() if one.last_commit and one.last_commit.oid == last}
    assert changed == ({"data", "data/deep", "data/deep/c.txt"} if expand else set())
    assert all((one.last_commit is not None) == expand for one in tree.values())
    shallow = [one.path for one in api.list_repo_tree(NAME, "data", repo_type="dataset")]
    assert shallow == ["data/deep", "data/x.parquet"]
    assert len(api.list_repo_commits(NAME, repo_type="dataset")) == 2
    asked = [one for one in hub.requests if one.path == f"/api/datasets/{NAME}/tree/main"]
    assert len(asked) == -(-6 // page)


def test_paths_are_told_of_and_missing_ones_left_out(hub: Hub, api: HfApi) -> None:
    told = api.get_paths_info(NAME, ["data", "gone", "data/x.parquet"], repo_type="dataset", expand=True)
    assert [one.path for one in told] == ["data", "data/x.parquet"]
    file = told[1]
    assert isinstance(file, RepoFile) and file.lfs is not None and file.size == file.lfs.size == len(LARGE)
    assert file.last_commit is not None and file.last_commit.title == "files"


def test_missing_entries_and_revisions_are_told_apart(api: HfApi) -> None:
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(NAME, "gone", repo_type="dataset"))
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(NAME, "gone", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(NAME, revision="gone")
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_files(NAME, revision="gone", repo_type="dataset")
    assert api.file_exists(NAME, "README.md", repo_type="dataset")
    assert not api.file_exists(NAME, "gone", repo_type="dataset")
    assert not api.revision_exists(NAME, "0" * 40, repo_type="dataset")


def test_large_files_come_from_the_storage_which_is_sent_no_token(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    url = hf_hub_url(NAME, "data/x.parquet", repo_type="dataset", endpoint=hub.address)
    metadata = get_hf_file_metadata(url, token=hub.reader)
    assert metadata.location.startswith(hub.storage) and metadata.size == len(LARGE)
    assert metadata.etag == hashlib.sha256(LARGE).hexdigest() and metadata.commit_hash == hub.commits(NAME)[0].oid
    path = api.hf_hub_download(NAME, "data/x.parquet", repo_type="dataset", token=hub.reader, local_dir=tmp_path)
    assert Path(path).read_bytes() == LARGE
    assert not any(one.authorized for one in hub.requests if one.storage)
    assert all(one.authorized for one in hub.requests if not one.storage)
    sent = httpx2.get(metadata.location, headers={"Authorization": f"Bearer {hub.reader}"})
    assert sent.status_code == 400


@pytest.mark.parametrize("path", ["README.md", "data/x.parquet"])
@pytest.mark.parametrize(
    ("asked", "part"), [("3-9", slice(3, 10)), ("5-", slice(5, None)), ("7-99999", slice(7, None))]
)
def test_parts_of_files_are_read(hub: Hub, api: HfApi, path: str, asked: str, part: slice) -> None:
    url = hf_hub_url(NAME, path, repo_type="dataset", endpoint=hub.address)
    answer = httpx2.get(url, headers={"Range": f"bytes={asked}"}, follow_redirects=True)
    assert (answer.status_code, answer.content) == (206, FILES[path][part])
    beyond = httpx2.get(url, headers={"Range": f"bytes={len(FILES[path])}-"}, follow_redirects=True)
    assert beyond.status_code == 416


def test_the_file_system_lists_reads_seeks_and_writes(hub: Hub, api: HfApi) -> None:
    files = HfFileSystem(endpoint=hub.address, token=hub.writer, skip_instance_cache=True)
    root = f"datasets/{NAME}"
    assert files.find(root) == [f"{root}/{path}" for path in sorted(FILES)]
    assert files.glob(f"{root}/**/*.txt") == [f"{root}/data/deep/b.txt"]
    assert files.info(f"{root}/data/x.parquet")["size"] == len(LARGE)
    with files.open(f"{root}/data/x.parquet", block_size=500) as stream:
        stream.seek(700)
        assert stream.read(9) == LARGE[700:709]
    assert files.cat_file(f"{root}/README.md") == README
    with files.open(f"{root}/new.parquet", "wb") as stream:
        stream.write(LARGE)
    files.rm(f"{root}/README.md")
    assert hub.files(NAME)["new.parquet"] == LARGE and "README.md" not in hub.files(NAME)


def test_a_snapshot_has_all_files(hub: Hub, api: HfApi, tmp_path: Path) -> None:
    folder = Path(api.snapshot_download(NAME, repo_type="dataset", cache_dir=tmp_path))
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == FILES


def test_models_have_repositories_too(hub: Hub) -> None:
    hub.add(NAME, {"config.json": b"{}"}, kind="models")
    api = HfApi(endpoint=hub.address, token=hub.writer)
    assert api.model_info(NAME).sha == hub.commits(NAME, kind="models")[0].oid
    assert Path(api.hf_hub_download(NAME, "config.json")).read_bytes() == b"{}"
    assert api.create_repo("user/made").endswith("/user/made")
    api.upload_file(path_or_fileobj=LARGE, path_in_repo="model.safetensors", repo_id="user/made")
    assert hub.files("user/made", kind="models")["model.safetensors"] == LARGE
