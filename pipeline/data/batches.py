"""How much is in memory at a time while documents are read."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

ROWS_PER_BATCH = 4096
BATCH_BYTES = 2**21

Item = TypeVar("Item")


def grouped(items: Iterable[Item], *, rows: Callable[[Item], int], size: Callable[[Item], int]) -> Iterator[list[Item]]:
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
