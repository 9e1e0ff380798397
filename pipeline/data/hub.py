"""Dataset repositories on the Hugging Face Hub: read at a commit, and written by commits that are retried.

The huggingface_hub library finds the credentials, in HF_TOKEN or from `hf auth login`. Its `create_commit` does not
retry, and a commit may succeed although its response is lost. Each retry here therefore commits only the files that are
still missing.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, parse_hf_uri
from huggingface_hub.errors import (
    HfHubHTTPError,
    HfUriError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import parse_ratelimit_headers, validate_repo_id  # type: ignore[attr-defined]

from pipeline.data.files import HUB
from pipeline.data.remote import PASSING_STATUSES
from pipeline.messages import describe
from schemas.layout import Subset

FIRST_PATIENCE, PATIENCE = 60.0, 3600.0  # seconds of retrying: before the Hub's first answer, and after it
LONGEST_PAUSE = 60.0  # seconds
CONFLICTS = (409, 412)  # HTTP statuses: another commit is in progress, or was made meanwhile
PATHS_A_REQUEST = 500

ANSWERED = threading.Event()
"""Event that is set when the Hub first answers this process. Failures after the event are treated as temporary, because
the network has worked. Failures before the event may mean that there is no network."""

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")
Operation = CommitOperationAdd | CommitOperationDelete


@dataclass(frozen=True)
class Repository:
    """Branch of a dataset repository on the Hub."""

    name: str
    revision: str = "main"

    @classmethod
    def at(cls, url: str) -> "Repository":
        """Return the branch in `hf://datasets/USER/NAME@BRANCH`, or the main branch of `hf://datasets/USER/NAME`.

        Raises:
            ValueError: if the URL names anything else.
        """
        try:
            uri = parse_hf_uri(url)
            validate_repo_id(uri.id)
        except (HfUriError, HFValidationError) as error:
            raise ValueError(f"{url} is not a dataset of the Hub: {error}; write {HUB}USER/NAME") from error
        if uri.type != "dataset" or uri.path_in_repo or "/" not in uri.id:
            raise ValueError(f"{url} is not a dataset of the Hub; write {HUB}USER/NAME")
        return cls(uri.id, uri.revision or "main")

    @property
    def url(self) -> str:
        branch = "" if self.revision == "main" else f"@{self.revision}"
        return f"{HUB}{self.name}{branch}"

    def prepare(self, *, private: bool) -> None:
        """Create the repository if it does not exist, and check that it is writable.

        Raises:
            ValueError: if the repository is not writable, or the branch does not exist.
        """
        api = HfApi()
        self._retried(lambda: api.create_repo(self.name, repo_type="dataset", private=private or None, exist_ok=True))
        self._retried(lambda: api.auth_check(self.name, repo_type="dataset", write=True))
        if self.head() is None:
            raise ValueError(f"{self.url}: there is no such branch; create it or leave @{self.revision} out")

    def head(self) -> str | None:
        """Return the id of the branch's current commit, or None if the repository or the branch does not exist."""
        try:
            return self._retried(lambda: HfApi().dataset_info(self.name, revision=self.revision).sha)
        except LookupError:
            return None

    def digests(self, paths: Sequence[str], at: str) -> dict[str, str]:
        """Return the digests, by path, of the files among `paths` that exist in the commit `at`.

        The digest of an LFS file is its sha256. The digest of any other file is the id of its git blob.
        """
        ask = partial(HfApi().get_paths_info, self.name, repo_type="dataset", revision=at)
        parts = [list(paths[start : start + PATHS_A_REQUEST]) for start in range(0, len(paths), PATHS_A_REQUEST)]
        return _digests(entry for part in parts for entry in self._retried(partial(ask, part)))

    def files(self, folder: str, at: str) -> dict[str, str]:
        """Return the digests, by path, of all files below a folder in the commit `at`.

        The result is empty if there is no such folder.
        """
        ask = partial(HfApi().list_repo_tree, self.name, folder, recursive=True, repo_type="dataset", revision=at)
        try:
            return _digests(self._retried(lambda: list(ask())))
        except LookupError:
            return {}

    def download(self, path: str, at: str) -> Path | None:
        """Download a file of the commit `at` and return its local path, or None if the commit lacks the file.

        The local copy must not be changed.
        """
        try:
            ask = partial(hf_hub_download, self.name, path, repo_type="dataset", revision=at)
            return Path(self._retried(ask))
        except LookupError:
            return None

    def text(self, path: str, at: str) -> str | None:
        """Return the text of a small file in the commit `at`, or None if there is no such file.

        Raises:
            ValueError: if the file is not UTF-8.
        """
        file = self.download(path, at)
        try:
            return file.read_text(encoding="utf-8") if file else None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} of {self.url} is not UTF-8 ({error.reason}); put a good copy there") from error

    def upload(self, additions: Iterable[CommitOperationAdd]) -> None:
        """Upload the content of files, so that a later commit can add them."""
        self._retried(
            lambda: HfApi().preupload_lfs_files(
                self.name, additions, repo_type="dataset", revision=self.revision, free_memory=False
            ),
            prepared=True,
        )

    def commit(self, title: str, missing: Callable[[str], Sequence[Operation]]) -> None:
        """Commit operations to the branch, with `title` as the commit's message.

        `missing` is called before each attempt with the id of the branch's current commit. It returns the operations
        that this commit still lacks. If `missing` returns no operations, no commit is made.
        """

        def once() -> None:
            head = self.head()
            if head is None:
                raise ValueError(f"{self.url} no longer exists")
            if operations := missing(head):
                HfApi().create_commit(
                    self.name,
                    operations,
                    commit_message=title,
                    repo_type="dataset",
                    revision=self.revision,
                    parent_commit=head,
                )

        self._retried(once, prepared=True)

    def _retried(self, request: Callable[[], Result], *, prepared: bool = False) -> Result:
        """Make a request, retry it after temporary failures, and return its result.

        `prepared` is True if this repository was reached before, by this process or by the process that started it.

        Raises:
            ValueError: if the Hub refuses the request.
            LookupError: if there is no such repository, revision, folder or file.
            ConnectionError: if temporary failures last longer than PATIENCE seconds, or longer than FIRST_PATIENCE
                seconds if `prepared` is False and the Hub has not yet answered this process.
        """
        started = time.monotonic()
        for attempt in count():
            try:
                result = request()
                ANSWERED.set()
                return result
            except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError) as error:
                ANSWERED.set()
                raise LookupError(f"no dataset at {self.url} that this token may see") from error
            except ValueError as error:  # raised by the client for a card that the Hub does not accept
                if not str(error).startswith("Invalid metadata"):
                    raise
                advice = "write those fields into the README.md of the repository yourself: existing fields are kept"
                raise ValueError(f"{self.url} does not accept the card: {describe(error)}; {advice}") from None
            except (HTTPError, LocalEntryNotFoundError) as error:  # LocalEntryNotFoundError: no answer to a download
                if isinstance(error, HfHubHTTPError):
                    ANSWERED.set()
                _require_passing(error, self.url)
                wait = pause(error, attempt)
                patience = PATIENCE if prepared or ANSWERED.is_set() else FIRST_PATIENCE
                if time.monotonic() - started + wait > patience:
                    tries = f"after {attempt + 1} tries in {time.monotonic() - started:.0f} s"
                    raise ConnectionError(f"cannot reach {self.url} {tries}: {describe(error)}") from None
                LOG.info("%s: %s; retrying in %.0f s", self.url, describe(error), wait)
                time.sleep(wait)
        raise AssertionError


def shard_addition(subset: Subset, shard: str) -> CommitOperationAdd:
    """Return the operation that adds a local shard to a commit."""
    return CommitOperationAdd((subset.in_repository.data / shard).as_posix(), subset.data / shard)


def pause(error: Exception, attempt: int) -> float:
    """Return the number of seconds to wait before the next try.

    If the Hub requests a time, return this time. Otherwise, the time doubles with each attempt up to LONGEST_PAUSE, and
    has random jitter.
    """
    headers = error.response.headers if isinstance(error, HfHubHTTPError) else {}
    limit = parse_ratelimit_headers(headers)
    retry_after = headers.get("Retry-After", "")
    if retry_after.isdigit():
        return float(retry_after)
    if limit is not None and not limit.remaining:
        return float(limit.reset_in_seconds)
    return min(LONGEST_PAUSE, 2.0**attempt) * random.uniform(0.5, 1.0)


def _require_passing(error: Exception, url: str) -> None:
    """Raise ValueError if the error is an answer from the Hub that will not change with time."""
    if not isinstance(error, HfHubHTTPError):
        return
    status = error.response.status_code
    if status in (*PASSING_STATUSES, *CONFLICTS) or status >= 500:
        return
    reason = {
        401: "the Hub does not know this token; log in with `hf auth login` or set HF_TOKEN",
        403: "this token may not write to it; make one with write access at https://huggingface.co/settings/tokens",
    }
    raise ValueError(f"{url}: {reason.get(status) or describe(error)}") from None


def _digests(entries: Iterable[object]) -> dict[str, str]:
    files = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
