"""Accesses to files as the kernel reports them, including those of libraries in other languages."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ACCESSED, MODIFIED, CHANGED, OPENED, MOVED, CREATED, DELETED = 0x1, 0x2, 0x4, 0x20, 0xC0, 0x100, 0x200
OF_A_FILE = ACCESSED | MODIFIED | OPENED
OF_A_FOLDER = MODIFIED | MOVED | CREATED | DELETED  # not OPENED: a name in it may be looked up
EVENT_BYTES = 16


@contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """Record which files below a folder are opened, changed, created or removed.

    The context manager yields an empty list, and adds the names of these files to it when the `with` block ends.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    names: dict[int, Path] = {}
    for place in [folder, *folder.rglob("*")]:
        watch = libc.inotify_add_watch(descriptor, os.fsencode(place), OF_A_FOLDER if place.is_dir() else OF_A_FILE)
        assert watch >= 0, place
        names[watch] = place
    touched: list[str] = []
    try:
        yield touched
        touched += sorted({names[watch].name for watch in _watches(descriptor)})
    finally:
        os.close(descriptor)


def _watches(descriptor: int) -> Iterator[int]:
    """Yield the number of the inotify watch of each pending event."""
    while True:
        try:
            events = os.read(descriptor, 2**16)
        except BlockingIOError:
            return
        while events:
            yield int.from_bytes(events[:4], "little")
            length = int.from_bytes(events[12:16], "little")
            events = events[EVENT_BYTES + length :]
