"""Answers to requests that change a repository: creation, announced uploads, commits, tags and branches."""

import base64
import json
import re
from collections.abc import Callable
from typing import Any

import yaml

from tests.hub.answers import Answer, RefusedError, as_json
from tests.hub.attributes import GIT_ATTRIBUTES, LARGE, is_ignored, is_large
from tests.hub.exchange import Exchange
from tests.hub.history import Blob, Repository
from tests.hub.hub import attributes_of
from tests.hub.metadata import metadata_errors
from tests.hub.storage import large_file

NAME = r"(?!.*(--|\.\.))[A-Za-z0-9_]([\w.-]{0,94}[A-Za-z0-9_])?(?<!\.git)(?<!\.ipynb)"


def create(exchange: Exchange) -> Answer:
    asked, hub = exchange.json, exchange.hub
    owner, kind = asked.get("organization") or exchange.known_user.name, asked.get("type", "model")
    if not re.fullmatch(NAME, asked["name"]):
        raise RefusedError(400, f"Invalid repository name: {asked['name']}")
    if kind not in ("dataset", "model"):
        raise RefusedError(501, f"this Hub has no repositories of kind {kind}")
    exchange.check_may_write(owner)
    private = asked.get("private", False) or asked.get("visibility") == "private"
    repository = Repository(f"{kind}s", f"{owner}/{asked['name']}", private)
    told = {"url": f"{hub.address}/{repository.web_path}", "name": repository.name, "id": repository.name}
    with hub.lock:
        if (repository.kind, repository.name) in hub.repositories:
            raise RefusedError(409, f"You already created this {kind} repo", told=told)
        repository.commit("main", {".gitattributes": Blob(GIT_ATTRIBUTES)}, "initial commit", author=owner)
        hub.repositories[repository.kind, repository.name] = repository
    return as_json(told)


def validate_yaml(exchange: Exchange) -> Answer:
    content = exchange.json["content"]
    if not content.startswith("---\n"):
        return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    try:
        data = yaml.safe_load(content[4:].split("\n---")[0])
    except yaml.YAMLError as error:
        return as_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    errors = list(metadata_errors(data if isinstance(data, dict) else {}))
    told = {"errors": [{"message": error} for error in errors], "warnings": []}
    return as_json(told, 400 if errors else 200)


def preupload(exchange: Exchange, repository: Repository, revision: str) -> Answer:
    """Tell the client how to send each file, and which files to leave out.

    If the repository already has a file at the path, the answer includes the object name of the repository's file.
    """
    blobs = repository.branch(revision).blobs
    ignored = exchange.json.get("gitIgnore")
    if ignored is None:
        ignored = blobs[".gitignore"].content.decode() if ".gitignore" in blobs else ""
    told = []
    for file in exchange.json["files"]:
        path = file["path"]
        mode = "lfs" if is_large(path, file["size"], attributes_of(blobs)) else "regular"
        one = {"path": path, "uploadMode": mode, "shouldIgnore": is_ignored(path, ignored)}
        if path in blobs:
            one["oid"] = blobs[path].sha256 if blobs[path].lfs else blobs[path].oid
        told.append(one)
    return as_json({"files": told, "commitOid": repository.at(revision).oid})


def commit(exchange: Exchange, repository: Repository, revision: str) -> Answer:
    """Make a commit from the lines of the body: a header, then one line for each file or folder to write or delete."""
    if exchange.says("create_pr"):
        raise RefusedError(501, "this Hub has no pull requests")
    header, *changes = (json.loads(line) for line in exchange.body.splitlines())
    with exchange.hub.lock:
        parent = repository.branch(revision)
        if not parent.oid.startswith(header["value"].get("parentCommit") or ""):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        blobs = dict(parent.blobs)
        for change in changes:
            if change["key"] not in CHANGES:
                raise RefusedError(400, f"unknown change {change['key']}")
            CHANGES[change["key"]](exchange, repository, blobs, change["value"])
        title, message = header["value"]["summary"], header["value"].get("description", "")
        made = repository.commit(revision, blobs, title, message, exchange.known_user.name)
    url = f"{exchange.hub.address}/{repository.web_path}/commit/{made.oid}"
    return as_json({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


Change = Callable[[Exchange, Repository, dict[str, Blob], dict[str, Any]], None]


def write_file(exchange: Exchange, repository: Repository, blobs: dict[str, Blob], value: dict[str, Any]) -> None:
    content = base64.b64decode(value["content"]) if value.get("encoding") == "base64" else value["content"].encode()
    if len(content) > LARGE:
        raise RefusedError(400, f"{value['path']} has more than {LARGE} bytes, which LFS alone takes")
    blobs[value["path"]] = Blob(content)


def write_large_file(exchange: Exchange, repository: Repository, blobs: dict[str, Blob], value: dict[str, Any]) -> None:
    blob = large_file(exchange.hub, repository, value["oid"], value.get("size"))
    if blob is None:
        raise RefusedError(400, f"an LFS pointer points to a file that was not uploaded: {value['path']}")
    blobs[value["path"]] = blob


def delete_file(exchange: Exchange, repository: Repository, blobs: dict[str, Blob], value: dict[str, Any]) -> None:
    if blobs.pop(value["path"], None) is None:
        raise RefusedError(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")


def delete_folder(exchange: Exchange, repository: Repository, blobs: dict[str, Blob], value: dict[str, Any]) -> None:
    below = [path for path in blobs if path.startswith(value["path"].rstrip("/") + "/")]
    if not below:
        raise RefusedError(404, f"A folder with this name doesn't exist: {value['path']}", "EntryNotFound")
    for path in below:
        del blobs[path]


CHANGES: dict[str, Change] = {
    "file": write_file,
    "lfsFile": write_large_file,
    "deletedFile": delete_file,
    "deletedFolder": delete_folder,
}


def create_tag(exchange: Exchange, repository: Repository, revision: str) -> Answer:
    return make_ref(exchange, repository, f"refs/tags/{exchange.json['tag']}", revision)


def create_branch(exchange: Exchange, repository: Repository, name: str) -> Answer:
    return make_ref(exchange, repository, f"refs/heads/{name}", exchange.json.get("startingPoint") or "main")


def make_ref(exchange: Exchange, repository: Repository, ref: str, revision: str) -> Answer:
    with exchange.hub.lock:
        if ref in repository.refs:
            raise RefusedError(409, f"Reference already exists: {ref}")
        repository.refs[ref] = repository.at(revision).oid
    return as_json({})


def delete_tag(exchange: Exchange, repository: Repository, name: str) -> Answer:
    return delete_ref(exchange, repository, f"refs/tags/{name}")


def delete_branch(exchange: Exchange, repository: Repository, name: str) -> Answer:
    if name == "main":
        raise RefusedError(403, "the default branch cannot be deleted")
    return delete_ref(exchange, repository, f"refs/heads/{name}")


def delete_ref(exchange: Exchange, repository: Repository, ref: str) -> Answer:
    if repository.refs.pop(ref, None) is None:
        raise RefusedError(404, f"Invalid rev id: {ref}", "RevisionNotFound")
    return as_json({})
