"""State of the test server that stands for the Hub: repositories, users with their tokens, faults and past requests."""

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
    """Path without the query, with %-escapes decoded."""
    status: int
    """Status of the answer, or 0 if the connection was dropped without an answer."""
    authorized: bool
    """True if the request had an Authorization header."""
    storage: bool
    """True if the request was sent to the storage. The storage has its own address, as on the real Hub."""


@dataclass
class Hub:
    """A Hub for tests.

    The user `user` owns the repositories that begin with `user/`, and the user `other` those that begin with `other/`.
    A method that takes the kind of a repository assumes a dataset by default.
    """

    page: int
    """Maximum number of items in one answer of the server. Items are files and folders, or commits."""
    store: XetStore | None
    address: str = ""
    storage: str = ""
    part_size: int = 10_000_000
    """Maximum number of bytes in one upload by LFS. Larger files are uploaded in parts of this size."""
    writer: str = WRITER
    """Token with which the user `user` may read and write."""
    reader: str = READER
    """Token with which the user `user` may only read."""
    other: str = OTHER
    """Token with which the user `other` may read and write."""
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
        """Environment variables for processes whose clients use this Hub with the token `writer`.

        The caller adds HF_HOME, the folder for the files that these clients keep.
        """
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
        """Add files in one commit, and return the object name of the commit.

        The repository and the branch are created if they do not exist.
        """
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
        """Return the commits of a revision, oldest first."""
        repository = self.repositories[kind, name]
        return list(repository.ancestry(repository.at(revision)))[::-1]


def attributes_of(blobs: Mapping[str, Blob]) -> bytes:
    return blobs[".gitattributes"].content if ".gitattributes" in blobs else GIT_ATTRIBUTES
