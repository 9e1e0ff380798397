"""An iterator whose items are made ahead of their use, in a thread of its own."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")


@contextmanager
def prefetched(items: Generator[Item, None, None], depth: int) -> Iterator[Iterator[Item]]:
    """The items in their order; making them begins at once and stays at most `depth` items ahead of their use.

    What `items` raises is raised in its turn. At the end `items` is closed, when an item in the making is made.
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = deque(pool.submit(next, items, end) for _ in range(depth))

        def taken() -> Iterator[Item]:
            while (item := coming.popleft().result()) is not end:
                coming.append(pool.submit(next, items, end))
                yield item

        try:
            yield taken()
        finally:
            pool.shutdown(cancel_futures=True)
            items.close()


ROWS_PER_BATCH = 4096
BATCH_BYTES = 2**21


def batched_by_size(
    items: Iterable[Item], *, rows: Callable[[Item], int], size: Callable[[Item], int]
) -> Iterator[list[Item]]:
    """Consecutive items of at most ROWS_PER_BATCH rows and BATCH_BYTES bytes together, as far as single items allow."""
    held: list[Item] = []
    held_rows = held_bytes = 0
    for item in items:
        item_rows, item_bytes = rows(item), size(item)
        if held and (held_rows + item_rows > ROWS_PER_BATCH or held_bytes + item_bytes > BATCH_BYTES):
            yield held
            held, held_rows, held_bytes = [], 0, 0
        held.append(item)
        held_rows += item_rows
        held_bytes += item_bytes
    if held:
        yield held
