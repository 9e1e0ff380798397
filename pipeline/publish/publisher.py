"""The publisher of a subset: its shards in few commits to a repository of the Hub, each with their receipts.

A single thread commits, so that no commit waits for another of the same run; whoever labelled a shard has sent its
content before. What lies on the disk stays until its commit is known to be in. Runs that publish the same subset at
once do no harm: of two shards of a unit the first one stays, with its receipt. A file in the place of a shard that no
receipt speaks of is replaced.
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

SHARDS_A_COMMIT, MOST_A_COMMIT = 200, 1000  # enough to commit at once; as many as may have come meanwhile
COMMIT_EVERY = 300.0  # seconds that a shard waits for others: the Hub takes 128 commits an hour

LOG = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """A shard that waits for its commit."""

    receipt: Receipt
    addition: CommitOperationAdd


class Publisher:
    """Of one subset. Errors of its thread are raised to whoever adds to it, or leaves it.

    `keeps` says whether shards stay on the disk after their commit, and the ledger there as it is.
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
        """Closes; not after an error: then the next run publishes what is left."""
        if error is None:
            self.close()

    def close(self) -> None:
        """Returns when all that was added is published."""
        self.waiting.put(None)
        self.thread.join()
        self._raise_failure()

    def add(self, receipt: Receipt, addition: CommitOperationAdd | None = None) -> bool:
        """Puts a shard in the next commit; it is uploaded here if there is no addition.

        False for a file that does not hold what its receipt says: nothing of it is sent.
        """
        self._raise_failure()
        if addition is None:
            addition = shard_addition(self.subset, receipt.shard)
            if addition.upload_info.sha256.hex() != receipt.sha256:
                return False
        self.waiting.put(Labelled(receipt, addition))
        return True

    def taken(self) -> list[str]:
        """Shards that were published since this was asked for."""
        return [self.published.get() for _ in range(self.published.qsize())]

    def _path(self, receipt: Receipt) -> str:
        return (self.subset.in_repository.data / receipt.shard).as_posix()

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise ValueError(f"{describe(self.failure)}; the same command goes on from here") from None

    def _work(self) -> None:
        try:
            while batch := self._next():
                self._commit(batch)
        except Exception as error:  # of any kind: the caller must hear of it
            LOG.debug("the publisher stops", exc_info=True)
            self.failure = error

    def _next(self) -> list[Labelled]:
        """Shards for a commit; none at the end."""
        batch: list[Labelled] = []
        deadline = 0.0
        while len(batch) < SHARDS_A_COMMIT or (len(batch) < MOST_A_COMMIT and not self.waiting.empty()):
            try:
                one = self.waiting.get(timeout=max(0.0, deadline - time.monotonic()) if batch else None)
            except queue.Empty:
                break
            if one is None:
                self.waiting.put(None)  # for the next time
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
                LOG.warning("%d files are replaced that no receipt speaks of: %s", len(replaced), replaced[0])
            self.repository.upload([one.addition for one in missing])
            return [*(one.addition for one in missing), *self._receipts(missing)]

        self.repository.commit(f"{self.subset.name}: {len(batch)} shards", operations)
        ours = [receipt for receipt, _ in batch if existing.get(self._path(receipt), receipt.sha256) == receipt.sha256]
        if len(ours) < len(batch):
            LOG.warning("%d shards were published by another run with other labels; those stay", len(batch) - len(ours))
        if not self.keeps:
            ledger = Ledger(self.subset)
            ledger.add_published(ours)
            ledger.delete(receipt for receipt, _ in batch)
        for receipt, _ in batch:
            self.published.put(receipt.shard)

    def _receipted(self, batch: Sequence[Labelled], files: Mapping[str, str], head: str) -> dict[str, str]:
        """Digests of those of the files whose receipts the repository has; these are read where there are files."""
        if not files:
            return {}
        units = shards_in_all(batch[0].receipt.shard)
        known = PublishedLedger(self.repository, self.subset).receipts(units, head)
        return {path: receipt.sha256 for receipt in known if (path := self._path(receipt)) in files}

    def _receipts(self, committed: Sequence[Labelled]) -> list[Operation]:
        """The ledger's lines of a commit, in a file of their own that no other commit touches."""
        if not committed:
            return []
        lines = as_lines(receipt for receipt, _ in committed).encode()
        name = f"{sha256(lines).hexdigest()[:16]}.jsonl"
        return [CommitOperationAdd((self.subset.in_repository.ledger / RECEIPTS / name).as_posix(), lines)]
