"""Large files by LFS: which files a client must send and where to, and the storage that receives and returns them.

Like an object store, the storage accepts any content. The content is compared with the announced SHA-256 and size when
the client asks for verification, and again when it commits.
"""

import hashlib
import time

from tests.hub.answers import Answer, RefusedError, as_json
from tests.hub.exchange import Exchange
from tests.hub.history import Blob, Repository
from tests.hub.hub import Hub


def large_file(hub: Hub, repository: Repository, sha256: str, size: int | None) -> Blob | None:
    """Return the uploaded file with this SHA-256 and size. Any size is right if `size` is None.

    Return None if the storage has no content with this SHA-256, or if the content has another size.
    """
    content, xet = repository.objects.get(sha256), None
    if hub.store is not None and (found := hub.store.by_sha256.get(sha256)):
        content, xet = hub.store.content(found), found.hash
    if content is None or hashlib.sha256(content).hexdigest() != sha256 or size not in (None, len(content)):
        return None
    repository.objects[sha256] = content
    return Blob(content, lfs=True, xet=xet)


def batch(exchange: Exchange, repository: Repository) -> Answer:
    """Answer where to upload each announced file. A file that the storage already has needs no upload."""
    hub, asked = exchange.hub, exchange.json
    if asked["operation"] != "upload":
        raise RefusedError(501, "this Hub tells of uploads alone")
    told, transfer = [], "basic"
    for object_ in asked["objects"]:
        if large_file(hub, repository, object_["oid"], object_["size"]) is None:
            parts = part_urls(hub, repository, object_["oid"], object_["size"])
            transfer = "multipart" if parts else transfer
            told.append({**object_, "actions": actions(hub, repository, object_["oid"], parts)})
        else:
            told.append(object_)
    return as_json({"transfer": transfer, "objects": told})


def actions(hub: Hub, repository: Repository, sha256: str, parts: dict[str, str]) -> dict[str, object]:
    """Return the URLs that upload and verify a file.

    If the file is sent in parts, the URL of the upload is the one that joins the parts.
    """
    url = f"{hub.storage}/{repository.kind}/{repository.name}/{sha256}"
    verify = f"{hub.address}/{repository.web_path}.git/info/lfs/objects/verify"
    upload = {"href": f"{url}/complete", "header": {"chunk_size": str(hub.part_size), **parts}}
    return {"upload": upload if parts else {"href": url}, "verify": {"href": verify}}


def part_urls(hub: Hub, repository: Repository, sha256: str, size: int) -> dict[str, str]:
    if size <= hub.part_size:
        return {}
    url = f"{hub.storage}/{repository.kind}/{repository.name}/{sha256}"
    return {str(part): f"{url}/{part}" for part in range(1, -(-size // hub.part_size) + 1)}


def verify(exchange: Exchange, repository: Repository) -> Answer:
    if large_file(exchange.hub, repository, exchange.json["oid"], exchange.json["size"]) is None:
        raise RefusedError(400, f"the object {exchange.json['oid']} is not what was announced")
    return as_json({"message": "Verification successful"})


def give(exchange: Exchange, repository: Repository, sha256: str) -> Answer:
    content = repository.objects.get(sha256)
    if content is None:
        raise RefusedError(404, "NoSuchKey")
    return Answer(200, content, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def take(exchange: Exchange, repository: Repository, key: str) -> Answer:
    """Store a large file under its SHA-256, or a part of a file under SHA-256/NUMBER."""
    time.sleep(exchange.hub.faults.seconds_per_upload)
    repository.objects[key] = exchange.body
    return Answer(200, headers={"ETag": f'"{hashlib.md5(exchange.body).hexdigest()}"'})


def complete(exchange: Exchange, repository: Repository, sha256: str) -> Answer:
    numbered = [(f"{sha256}/{part['partNumber']}", part["etag"]) for part in exchange.json["parts"]]
    parts = [repository.objects.pop(key, None) for key, _ in numbered]
    etags = [None if part is None else f'"{hashlib.md5(part).hexdigest()}"' for part in parts]
    if etags != [etag for _, etag in numbered]:
        raise RefusedError(400, "InvalidPart")
    repository.objects[sha256] = b"".join(part for part in parts if part is not None)
    return as_json({})
