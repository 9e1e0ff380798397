"""Answers to requests that read a repository: information, trees, files, commits and refs."""

from urllib.parse import parse_qs, quote

import yaml

from tests.hub.answers import Answer, RefusedError, as_json
from tests.hub.exchange import Exchange
from tests.hub.history import Blob, Commit, Repository

EXPANDED_PAGE = 50
PATHS = 1000


def whoami(exchange: Exchange) -> Answer:
    user = exchange.known_user
    token = {"displayName": "test", "role": user.role, "createdAt": "2025-01-01T00:00:00.000Z"}
    auth = {"type": "access_token", "accessToken": token}
    return as_json(
        {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": [], "auth": auth}
    )


def information(exchange: Exchange, repository: Repository, revision: str | None) -> Answer:
    commit = repository.at(revision or "main")
    card = (
        front_matter(commit.blobs["README.md"].content.decode(errors="replace"))
        if "README.md" in commit.blobs
        else None
    )
    oldest = list(repository.ancestry(commit))[-1]
    told: dict[str, object] = {
        "_id": repository.name,
        "id": repository.name,
        "author": repository.owner,
        "sha": commit.oid,
        "createdAt": oldest.date,
        "lastModified": commit.date,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": (card or {}).get("tags", []),
        "siblings": [sibling(path, blob, exchange.says("blobs")) for path, blob in commit.blobs.items()],
    } | ({"cardData": card} if card is not None else {})
    expanded = exchange.query.get("expand", []) + exchange.query.get("expand[]", [])
    return as_json({name: told[name] for name in told if not expanded or name in ("_id", "id", *expanded)})


def front_matter(readme: str) -> dict[str, object] | None:
    """Return the YAML between the first two lines of dashes, or None if it is missing or unreadable."""
    if not readme.startswith("---\n") or "\n---" not in readme[3:]:
        return None
    try:
        loaded = yaml.safe_load(readme[4 : readme.index("\n---", 3) + 1])
    except yaml.YAMLError:
        return None
    return loaded if isinstance(loaded, dict) else None


def sibling(path: str, blob: Blob, detailed: bool) -> dict[str, object]:
    if not detailed:
        return {"rfilename": path}
    lfs = {"lfs": {"sha256": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}}
    return {"rfilename": path, "blobId": blob.oid, "size": len(blob.content)} | (lfs if blob.lfs else {})


def entry(repository: Repository, commit: Commit, path: str, expand: bool) -> dict[str, object]:
    """Return the description of a file or folder for the Hub's answers on trees and on lists of paths.

    With `expand`, the description includes the last commit that changed the file or folder.
    """
    told: dict[str, object] = {"type": "directory", "oid": commit.oid_at(path), "size": 0, "path": path}
    blob = commit.blobs.get(path)
    if blob is not None:
        told |= {"type": "file", "size": len(blob.content)}
        if blob.lfs:
            told["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
        if blob.xet:
            told["xetHash"] = blob.xet
    if expand:
        last = repository.last_change(commit, path)
        told["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return told


def tree(exchange: Exchange, repository: Repository, revision: str, folder: str | None) -> Answer:
    """Answer with the entries directly in the folder, or with all entries below it if the query says `recursive`."""
    commit = repository.at(revision)
    prefix = f"{folder}/" if folder else ""
    below = sorted(path for path in {*commit.blobs, *commit.folders()} if path.startswith(prefix))
    if folder and not below:
        raise RefusedError(
            404, f"{folder} does not exist on {revision}", "EntryNotFound", {"X-Repo-Commit": commit.oid}
        )
    shown = [path for path in below if exchange.says("recursive") or "/" not in path[len(prefix) :]]
    expand = exchange.says("expand")
    limit = min(exchange.hub.page, EXPANDED_PAGE) if expand else exchange.hub.page
    return exchange.paged([entry(repository, commit, path, expand) for path in shown], limit)


def paths_info(exchange: Exchange, repository: Repository, revision: str) -> Answer:
    """Answer with a description of each requested file or folder. Requested paths that do not exist are left out."""
    commit, form = repository.at(revision), parse_qs(exchange.body.decode())
    paths, expand = form.get("paths", []), form.get("expand", ["false"])[0].lower() == "true"
    if len(paths) > PATHS:
        raise RefusedError(413, "too many parameters")
    there = {*commit.blobs, *commit.folders()}
    return as_json([entry(repository, commit, path, expand) for path in paths if path in there])


def commits(exchange: Exchange, repository: Repository, revision: str) -> Answer:
    listed: list[dict[str, object]] = [
        {"id": one.oid, "title": one.title, "message": one.message, "authors": [{"user": one.author}], "date": one.date}
        for one in repository.ancestry(repository.at(revision))
    ]
    return exchange.paged(listed, exchange.hub.page)


def refs(exchange: Exchange, repository: Repository) -> Answer:
    def under(prefix: str) -> list[dict[str, str]]:
        names = sorted(name for name in repository.refs if name.startswith(prefix))
        return [{"name": n.removeprefix(prefix), "ref": n, "targetCommit": repository.refs[n]} for n in names]

    kinds = {"branches": "refs/heads/", "converts": "refs/convert/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
    return as_json({kind: under(prefix) for kind, prefix in kinds.items()})


def access(exchange: Exchange, repository: Repository, write: str | None) -> Answer:
    if write:
        exchange.check_may_write(repository.owner)
    return as_json({})


def resolve(exchange: Exchange, repository: Repository, revision: str, path: str) -> Answer:
    """Answer with the content of a small file, or redirect to the address of a large file in the storage."""
    commit = repository.at(revision)
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
    blob = commit.blobs.get(path)
    if blob is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound", headers)
    if not blob.lfs:
        return Answer(200, blob.content, {**headers, "ETag": f'"{blob.oid}"'})
    location = f"{exchange.hub.storage}/{repository.kind}/{repository.name}/{blob.sha256}"
    headers |= {"Location": location, "X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
    if blob.xet:
        token = f"/api/{repository.kind}/{quote(repository.name)}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": blob.xet, "Link": f'<{exchange.hub.address}{token}>; rel="xet-auth"'}
    return Answer(302, f"Found. Redirecting to {location}".encode(), headers)
