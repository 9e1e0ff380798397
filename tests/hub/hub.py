"""All that the server keeps: repositories, users by their tokens, faults, and the requests so far."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tests.hub.attributes import GIT_ATTRIBUTES, is_large
from tests.hub.faults import Faults
from tests.hub.history import Blob, Commit, Repository
from tests.hub.xet import XetStore

WRITER, READER, OTHER = (f"hf_{name * 34:.34}" for name in ("writer", "reader", "other"))


@dataclass(frozen=True)
class User:
    name: str
    role: Literal["read", "write"]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    """Without the query, and with no %-escapes."""
    status: int
    """0 where the connection was dropped instead of an answer."""
    authorized: bool
    """It had an Authorization header."""
    storage: bool
    """It came to the storage, which has an address of its own as the real one does."""


@dataclass
class Hub:
    """`user` owns user/..., `other` owns other/...; repositories are of datasets where nothing else is said."""

    page: int
    """Entries of a tree, or commits, in an answer."""
    store: XetStore | None
    address: str = ""
    storage: str = ""
    part_size: int = 10_000_000
    """Larger LFS files are uploaded in parts of so many bytes."""
    writer: str = WRITER
    """A token of `user` that may write."""
    reader: str = READER
    """A token of `user` that may not."""
    other: str = OTHER
    """A token of `other` that may write."""
    faults: Faults = field(default_factory=Faults)
    requests: list[Request] = field(default_factory=list)
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def users(self) -> dict[str, User]:
        return {
            self.writer: User("user", "write"),
            self.reader: User("user", "read"),
            self.other: User("other", "write"),
        }

    @property
    def environment(self) -> dict[str, str]:
        """For processes of the writer's; HF_HOME, a folder for what they keep, is the caller's to add."""
        xet = {} if self.store else {"HF_HUB_DISABLE_XET": "1"}
        return {"HF_ENDPOINT": self.address, "HF_TOKEN": self.writer, "HF_HUB_DISABLE_TELEMETRY": "1", **xet}

    def add(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        kind: str = "datasets",
        revision: str = "main",
        title: str = "files",
        private: bool = False,
    ) -> str:
        """Adds files in one commit, which it names; makes the repository and the branch where there are none."""
        with self.lock:
            repository = self.repositories.setdefault((kind, name), Repository(kind, name, private))
            blobs = dict(repository.branch(revision).blobs) if repository.has_branch(revision) else {}
            attributes = attributes_of(blobs)
            for path, content in files.items():
                blobs[path] = blob = Blob(content, is_large(path, len(content), attributes))
                if blob.lfs:
                    repository.objects[blob.sha256] = content
            return repository.commit(revision, blobs, title, author=repository.owner).oid

    def files(self, name: str, revision: str = "main", *, kind: str = "datasets") -> dict[str, bytes]:
        return self.repositories[kind, name].at(revision).files

    def commits(self, name: str, revision: str = "main", *, kind: str = "datasets") -> list[Commit]:
        """Of a branch, oldest first."""
        repository = self.repositories[kind, name]
        return list(repository.ancestry(repository.at(revision)))[::-1]


def attributes_of(blobs: Mapping[str, Blob]) -> bytes:
    return blobs[".gitattributes"].content if ".gitattributes" in blobs else GIT_ATTRIBUTES
