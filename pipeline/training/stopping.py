"""SIGTERM, as schedulers and clusters send it before they kill: the training ends between two steps."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM
"""Of a command that a signal ended, as shells report it."""


class StoppedError(SystemExit):
    """Ends the command; the state is saved."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come since. What handled it before is put back.

    Only a process's main thread can handle signals: elsewhere, as in Ray's workers, the answer is always no.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def handle(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
