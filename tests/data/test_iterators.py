"""Prefetched items: their order, the depth, errors, and an early end."""

import threading
from collections.abc import Generator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.iterators import prefetched


class Source:
    """A source that counts to `items`, then stops or raises, and records what it yielded and whether it was closed."""

    def __init__(self, items: int, error: Exception | None = None) -> None:
        self.made, self.closed, self.items, self.error = 0, False, items, error
        self.threads: set[int] = set()

    def __iter__(self) -> Generator[int, None, None]:
        try:
            for item in range(self.items):
                self.threads.add(threading.get_ident())
                self.made += 1
                yield item
            if self.error:
                raise self.error
        finally:
            self.closed = True


@settings(max_examples=30, deadline=None)
@given(items=st.integers(0, 9), depth=st.integers(1, 4), taken=st.integers(0, 9))
def test_items_come_in_order_and_at_most_depth_ahead(items: int, depth: int, taken: int) -> None:
    source = Source(items)
    with prefetched(iter(source), depth) as coming:
        found = [item for item, _ in zip(coming, range(taken), strict=False)]
        assert source.made <= min(items, taken + 1 + depth)
    assert found == list(range(min(items, taken)))
    assert source.closed or not source.made
    assert threading.get_ident() not in source.threads


def test_prefetching_begins_before_the_first_request() -> None:
    begun = threading.Event()

    def items() -> Generator[int, None, None]:
        begun.set()
        yield 1

    with prefetched(items(), 1):
        assert begun.wait(5)


def test_an_error_is_raised_when_its_item_is_requested() -> None:
    source, found = Source(3, OSError("disk")), []
    with pytest.raises(OSError, match="disk"), prefetched(iter(source), 2) as coming:
        for item in coming:
            found.append(item)
    assert found == [0, 1, 2] and source.closed


def test_an_error_of_the_consumer_closes_the_source() -> None:
    source = Source(100)
    with pytest.raises(ValueError, match="taker"), prefetched(iter(source), 2) as coming:
        next(coming)
        raise ValueError("taker")
    assert source.closed and source.made <= 4
