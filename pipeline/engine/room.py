"""Room in memory for the rows of a unit that are on their way through its stages."""

import threading
from collections.abc import Callable

LOOK_SECONDS = 0.1  # how often somebody who waits looks whether it is wanted still


class Room:
    """So many bytes; what is larger than all of it has it alone."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._change = threading.Condition()

    def take(self, size: int, stopped: Callable[[], bool]) -> None:
        """Waits until there is as much, or nobody wants it any more."""
        with self._change:
            while self._free < min(size, self._size) and not stopped():
                self._change.wait(LOOK_SECONDS)
            self._free -= min(size, self._size)

    def give_back(self, size: int) -> None:
        """Makes room for others."""
        with self._change:
            self._free += min(size, self._size)
            self._change.notify_all()
