"""Repositories as in git: files with object names, commits that each hold a whole tree, branches and tags."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import PurePosixPath

from tests.hub.answers import RefusedError

BEGUN = datetime(2025, 1, 1, tzinfo=UTC)
SPECIAL = ("refs/convert/", "refs/pr/")


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


@dataclass(frozen=True)
class Blob:
    """The content of a file. If the file is large (`lfs`), git itself holds only a pointer to the content."""

    content: bytes
    lfs: bool = False
    xet: str | None = None

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        name, size = self.sha256, len(self.content)
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{name}\nsize {size}\n".encode()

    @cached_property
    def oid(self) -> str:
        return git_oid(self.pointer if self.lfs else self.content)


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    parent: str | None
    blobs: Mapping[str, Blob]
    message: str = ""
    author: str = ""
    date: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        return {path: blob.content for path, blob in self.blobs.items()}

    def below(self, folder: str) -> dict[str, Blob]:
        prefix = f"{folder}/" if folder else ""
        return {path: blob for path, blob in self.blobs.items() if path.startswith(prefix)}

    def folders(self) -> set[str]:
        return {str(parent) for path in self.blobs for parent in PurePosixPath(path).parents if str(parent) != "."}

    def oid_at(self, path: str) -> str | None:
        """Return the object name of a file or a folder, or None if there is no such path.

        A folder's object name differs from git's, but like git's it depends on all files below the folder.
        """
        if path in self.blobs:
            return self.blobs[path].oid
        below = [(name, blob.oid) for name, blob in self.below(path).items()]
        return hashlib.sha1(json.dumps(below).encode()).hexdigest() if below else None


@dataclass
class Repository:
    kind: str
    """`datasets` or `models`, as in URLs."""
    name: str
    private: bool = False
    history: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    """Object names of commits by the full names of refs: refs/heads/main, refs/tags/v1, refs/convert/parquet."""
    objects: dict[str, bytes] = field(default_factory=dict)
    """Contents of large files and of their uploaded parts. The key of a file is the SHA-256 that the client gave. The
    key of a part is SHA-256/NUMBER."""

    @property
    def owner(self) -> str:
        return self.name.split("/")[0]

    @property
    def web_path(self) -> str:
        return self.name if self.kind == "models" else f"{self.kind}/{self.name}"

    def at(self, revision: str) -> Commit:
        """Return the commit of a revision: a branch, a tag, another ref, or the first digits of an object name."""
        for name in (branch_ref(revision), f"refs/tags/{revision}"):
            if name in self.refs:
                return self.history[self.refs[name]]
        if re.fullmatch("[0-9a-f]{7,40}", revision):
            for oid, commit in self.history.items():
                if oid.startswith(revision):
                    return commit
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def has_branch(self, name: str) -> bool:
        return branch_ref(name) in self.refs

    def branch(self, revision: str) -> Commit:
        """Return the last commit of a branch. Refuse every other kind of revision."""
        if not self.has_branch(revision):
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.at(revision)

    def commit(self, branch: str, blobs: Mapping[str, Blob], title: str, message: str = "", author: str = "") -> Commit:
        """Add a commit to a branch, which is created if it does not exist, and return the commit."""
        parent = self.refs.get(branch_ref(branch))
        named = [parent, title, message, sorted((path, blob.oid) for path, blob in blobs.items()), len(self.history)]
        oid = hashlib.sha1(json.dumps(named).encode()).hexdigest()
        date = (BEGUN + timedelta(seconds=len(self.history))).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        commit = Commit(oid, title, parent, dict(sorted(blobs.items())), message, author, date)
        self.history[oid] = commit
        self.refs[branch_ref(branch)] = oid
        return commit

    def ancestry(self, commit: Commit) -> Iterator[Commit]:
        """Yield the commit and all commits before it, newest first."""
        at: Commit | None = commit
        while at is not None:
            yield at
            at = self.history[at.parent] if at.parent else None

    def last_change(self, commit: Commit, path: str) -> Commit:
        """Return the commit that last changed a file or folder, among `commit` and the commits before it."""
        last = commit
        for earlier in self.ancestry(commit):
            if earlier.oid_at(path) != commit.oid_at(path):
                break
            last = earlier
        return last


def branch_ref(branch: str) -> str:
    return branch if branch.startswith(SPECIAL) else f"refs/heads/{branch}"
