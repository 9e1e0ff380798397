"""Publisher of a subset: commits shards to a Hub repository, many per commit, together with their receipts.

A single thread makes all commits of a run, so that they do not conflict with each other. During annotation, the process
that labelled a shard uploads the shard's content before the commit. Files on the disk are kept until their commit has
succeeded. If several runs publish the same subset at once, the version of a shard that is committed first is kept, with
its receipt. If the repository has a file without a receipt at a shard's path, the file is replaced.
"""

import logging
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from hashlib import sha256
from types import TracebackType
from typing import NamedTuple, Self

from huggingface_hub import CommitOperationAdd

from pipeline.data.hub import Operation, Repository, shard_addition
from pipeline.data.ledger import Ledger, PublishedLedger
from pipeline.messages import describe
from schemas.layout import Subset, shards_in_all
from schemas.receipts import RECEIPTS, Receipt, as_lines

SHARDS_A_COMMIT, MOST_A_COMMIT = 200, 1000  # shards to wait for; cap if more shards are waiting already
COMMIT_EVERY = 300.0  # seconds that a shard waits for more shards, because the Hub takes 128 commits per hour

LOG = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """A shard waiting for its commit."""

    receipt: Receipt
    addition: CommitOperationAdd


class Publisher:
    """Publisher of one subset. Errors in the publisher's thread are raised by `add`, `close` and `__exit__`.

    With `keeps`, shards stay on the disk after their commit, and the ledger on the disk does not change. Without
    `keeps`, committed shards are deleted from the disk, and the ledger on the disk records them as published.
    """

    def __init__(self, repository: Repository, subset: Subset, *, keeps: bool) -> None:
        self.repository, self.subset, self.keeps = repository, subset, keeps
        self.waiting: queue.SimpleQueue[Labelled | None] = queue.SimpleQueue()
        self.published: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._work, name="publisher", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Close the publisher, unless there was an error. After an error, the next run publishes what remains."""
        if error is None:
            self.close()

    def close(self) -> None:
        """Wait until all added shards are published."""
        self.waiting.put(None)
        self.thread.join()
        self._raise_failure()

    def add(self, receipt: Receipt, addition: CommitOperationAdd | None = None) -> bool:
        """Queue a shard for the next commit. If no `addition` is given, the shard's file on the disk is sent.

        Return True if the shard is queued. If its file does not match the receipt, send nothing and return False.
        """
        self._raise_failure()
        if addition is None:
            addition = shard_addition(self.subset, receipt.shard)
            if addition.upload_info.sha256.hex() != receipt.sha256:
                return False
        self.waiting.put(Labelled(receipt, addition))
        return True

    def taken(self) -> list[str]:
        """Return the names of the shards that were published since the last call."""
        return [self.published.get() for _ in range(self.published.qsize())]

    def _path(self, receipt: Receipt) -> str:
        return (self.subset.in_repository.data / receipt.shard).as_posix()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise ValueError(f"{describe(self.failure)}; the same command resumes from here") from None

    def _work(self) -> None:
        try:
            while batch := self._next():
                self._commit(batch)
        except Exception as error:  # any error: the caller must see it
            LOG.debug("the publisher stops", exc_info=True)
            self.failure = error

    def _next(self) -> list[Labelled]:
        """Wait for shards, and return the shards for the next commit, or an empty list after the last shard."""
        batch: list[Labelled] = []
        deadline = 0.0
        while len(batch) < SHARDS_A_COMMIT or (len(batch) < MOST_A_COMMIT and not self.waiting.empty()):
            try:
                one = self.waiting.get(timeout=max(0.0, deadline - time.monotonic()) if batch else None)
            except queue.Empty:
                break
            if one is None:
                self.waiting.put(None)  # for the next call
                break
            deadline = deadline if batch else time.monotonic() + COMMIT_EVERY
            batch.append(one)
        return batch

    def _commit(self, batch: Sequence[Labelled]) -> None:
        existing: dict[str, str] = {}

        def operations(head: str) -> list[Operation]:
            nonlocal existing
            files = self.repository.digests([self._path(receipt) for receipt, _ in batch], head)
            existing = self._receipted(batch, files, head)
            missing = [one for one in batch if self._path(one.receipt) not in existing]
            if replaced := [path for one in missing if (path := self._path(one.receipt)) in files]:
                LOG.warning("%d files without a receipt are replaced: %s", len(replaced), replaced[0])
            self.repository.upload([one.addition for one in missing])
            return [*(one.addition for one in missing), *self._receipts(missing)]

        self.repository.commit(f"{self.subset.name}: {len(batch)} shards", operations)
        ours = [receipt for receipt, _ in batch if existing.get(self._path(receipt), receipt.sha256) == receipt.sha256]
        if len(ours) < len(batch):
            kept = len(batch) - len(ours)
            LOG.warning("%d shards were published by another run with other labels, which are kept", kept)
        if not self.keeps:
            ledger = Ledger(self.subset)
            ledger.add_published(ours)
            ledger.delete(receipt for receipt, _ in batch)
        for receipt, _ in batch:
            self.published.put(receipt.shard)

    def _receipted(self, batch: Sequence[Labelled], files: Mapping[str, str], head: str) -> dict[str, str]:
        """Return the digests in the repository's receipts, by path, for those paths in `files` that have a receipt.

        If `files` is empty, the receipts are not read.
        """
        if not files:
            return {}
        units = shards_in_all(batch[0].receipt.shard)
        known = PublishedLedger(self.repository, self.subset).receipts(units, head)
        return {path: receipt.sha256 for receipt in known if (path := self._path(receipt)) in files}

    def _receipts(self, committed: Sequence[Labelled]) -> list[Operation]:
        """Return the operation that adds the receipts of a commit, in a new file that no other commit touches."""
        if not committed:
            return []
        lines = as_lines(receipt for receipt, _ in committed).encode()
        name = f"{sha256(lines).hexdigest()[:16]}.jsonl"
        return [CommitOperationAdd((self.subset.in_repository.ledger / RECEIPTS / name).as_posix(), lines)]
