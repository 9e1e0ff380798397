"""How a command ends early: by Ctrl-C, by SIGTERM, or because nobody reads its output any more, as after `| head`."""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from pipeline.data.visible import say

CLOSED_OUTPUT = 128 + signal.SIGPIPE  # exit codes as shells report them


class Terminated(KeyboardInterrupt):
    """SIGTERM, as schedulers send it before they kill: cleaned up after like Ctrl-C."""


@contextmanager
def ending_in_a_line(*, resumes: bool) -> Iterator[None]:
    """Exits with one line and 130 after Ctrl-C, 143 after SIGTERM; in silence where standard output is closed.

    The line has the notes of the KeyboardInterrupt, which say how far the work is. `resumes` says whether the same
    command goes on from there.
    """
    with _sigterm_raises():
        try:
            yield
            sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            code = 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)
            parts = ["interrupted", *getattr(interrupt, "__notes__", ())]
            say("; ".join([*parts, *(["the same command goes on"] if resumes else [])]), file=sys.stderr)
            sys.exit(code)
        except BrokenPipeError:
            if not output_is_closed():
                raise
            end_silently()


def output_is_closed() -> bool:
    """True where standard output had a reader that has gone; another pipe, to a server, may have broken too."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # standard output is no file, or closed from the start
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def end_silently() -> NoReturn:
    """Exits; Python, which would complain when it flushes standard output at its end, finds one that takes all."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(CLOSED_OUTPUT)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Only a main thread can handle signals; what handled this one before is put back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    """The handler: raises where the main thread is."""
    raise Terminated
