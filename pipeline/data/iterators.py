"""Iterators over the items of another iterator, which are prefetched in a thread or batched by size.

A `ByteBudget` bounds the memory of the items that threads hold.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")

ROWS_PER_BATCH = 4096
BATCH_BYTES = 2**21
LOOK_SECONDS = 0.1  # between a waiting thread's checks that its unit is not stopped


@contextmanager
def prefetched(items: Generator[Item, None, None], depth: int) -> Iterator[Iterator[Item]]:
    """Run the generator `items` in a thread that stays at most `depth` items ahead of the consumer.

    The context manager returns an iterator over the items, in order. An error of the generator is raised when the
    failed item is requested. On exit, the generator is closed once it has finished an item in progress.
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(depth))

        def items_in_order() -> Iterator[Item]:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, items, end))
                yield item

        try:
            yield items_in_order()
        finally:
            pool.shutdown(cancel_futures=True)
            items.close()


def batched_by_size(
    items: Iterable[Item], *, rows: Callable[[Item], int], size: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Group consecutive items into batches of at most ROWS_PER_BATCH rows and BATCH_BYTES bytes.

    An item that exceeds a limit is a batch by itself.
    """
    batch: list[Item] = []
    batch_rows = batch_bytes = 0
    for item in items:
        item_rows, item_bytes = rows(item), size(item)
        if batch and (batch_rows + item_rows > ROWS_PER_BATCH or batch_bytes + item_bytes > BATCH_BYTES):
            yield batch
            batch, batch_rows, batch_bytes = [], 0, 0
        batch.append(item)
        batch_rows += item_rows
        batch_bytes += item_bytes
    if batch:
        yield batch


class ByteBudget:
    """Limit in bytes on the memory that several threads use together.

    A request for more than the limit waits until no other bytes are in use.
    """

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._change = threading.Condition()

    def acquire(self, size: int, stopped: threading.Event) -> None:
        """Wait until `size` bytes are free or `stopped` is set, then take the bytes."""
        with self._change:
            while self._free < min(size, self._size) and not stopped.is_set():
                self._change.wait(LOOK_SECONDS)
            self._free -= min(size, self._size)

    def release(self, size: int) -> None:
        """Release `size` bytes that were acquired."""
        with self._change:
            self._free += min(size, self._size)
            self._change.notify_all()
