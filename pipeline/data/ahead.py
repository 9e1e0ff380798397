"""An iterator whose items are made ahead of their use, in a thread of its own."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

Item = TypeVar("Item")


@contextmanager
def ahead(items: Generator[Item, None, None], depth: int) -> Iterator[Iterator[Item]]:
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
