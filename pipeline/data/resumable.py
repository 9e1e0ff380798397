"""Iterators that tell where they are in a few numbers, and go on from there in another process.

They have `state_dict` and `load_state_dict`, by which torchdata's StatefulDataLoader and torch's checkpoints know such
iterators; neither is needed here.
"""

import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar
from weakref import finalize

Item = TypeVar("Item")


class Position(NamedTuple):
    """Where an iterator is among the rows that it reads."""

    rows: int = 0
    """That are done with, of all epochs."""
    within: int = 0
    """What is done already of the rows that follow; what is counted is the iterator's own affair."""


class Resumable(Iterator[Item]):
    """Items with a position after each. It is used up at its end, as iterators are.

    After an error the next item is tried again, from where the last one ended: a store may be back.
    """

    def __init__(
        self,
        begin: Callable[[Position], Generator[tuple[Item, Position], None, None]],
        stream: Mapping[str, Any],
        position: Position = Position(),  # noqa: B008 (it cannot change)
    ) -> None:
        """`begin` makes the items from a position on; `stream` is all that they follow from, in JSON's types."""
        self._begin, self._stream = begin, dict(stream)
        self._position = position
        self._process = os.getpid()
        self._coming: Generator[tuple[Item, Position], None, None] | None = None
        self._end: Callable[[], object] | None = None

    def __next__(self) -> Item:
        if self._coming is None or os.getpid() != self._process:
            self._require_own_worker()
            self._process = os.getpid()
            self._coming = self._begin(self._position)
            self._end = finalize(self, self._coming.close)  # at the process's end, too, while threads can be ended
        try:
            item, self._position = next(self._coming)
        except BaseException:
            self.close()
            raise
        return item

    def _require_own_worker(self) -> None:
        """Refuses a copy in the worker of a torch DataLoader: each worker would give every item again.

        Raises:
            ValueError: if this is such a copy.
        """
        torch_data = sys.modules.get("torch.utils.data")  # which a worker has
        if os.getpid() != self._process and torch_data is not None and torch_data.get_worker_info() is not None:
            raise ValueError(
                "every worker of the DataLoader has a copy of this iterator and would give all of it again; read with"
                " pipeline.training.loader.LabelledWindows, or make an iterator in each worker"
            )

    def close(self) -> None:
        """Stops reading ahead; the next item is still the one that would have come."""
        if self._end is not None:
            self._end()
        self._coming = self._end = None

    def state_dict(self) -> dict[str, Any]:
        """Where it is, small and fit for JSON."""
        return {**self._stream, **self._position._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the iterator was whose state this is, with the same items to the bit.

        Raises:
            ValueError: if that iterator had other items.
        """
        expected = {**self._stream, **self._position._asdict()}
        missing = [name for name in expected if name not in state]
        if missing:
            raise ValueError(f"this is no state of a reader: it lacks {', '.join(missing)}")
        differing = [
            f"{name} {state[name]} there, {here} now" for name, here in self._stream.items() if state[name] != here
        ]
        if differing:
            raise ValueError(f"the state is of another stream ({'; '.join(differing)}); give what it was saved with")
        self.close()
        self._position = Position(*(int(state[name]) for name in Position._fields))
