"""How a command ends early: by Ctrl-C, by SIGTERM or SIGHUP, or because nobody reads its output, as after `| head`."""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from pipeline.messages import say

CLOSED_OUTPUT = 128 + signal.SIGPIPE  # exit codes as shells report them
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 1.0  # seconds: `timeout` sends a signal twice, and a terminal that closes sends two kinds


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM, as schedulers send it before they kill, or SIGHUP, of a terminal that closes.

    A subclass: of a KeyboardInterrupt within an `exec` Python keeps a note, and ends by SIGINT whatever its exit code.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ending_in_a_line(*, resumes: bool) -> Iterator[None]:
    """Exits with one line and 128 + the signal's number (130 after Ctrl-C); in silence where standard output is closed.

    The line has the notes of the KeyboardInterrupt, which say how far the work is. `resumes` says whether the same
    command goes on from there. A second signal ends the process at once, with what it leaves.
    """
    with _signals_raise(resumes):
        try:
            yield
            if sys.stdout is not None:  # as it is where it was closed from the start
                sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
            _tell(resumes, "interrupted", *getattr(interrupt, "__notes__", ()))
            sys.exit(128 + number)
        except BrokenPipeError:
            if not output_is_closed():
                raise
            end_silently()


def _tell(resumes: bool, *parts: str) -> None:
    with suppress(OSError):  # a terminal that has closed
        say("; ".join([*parts, *(["the same command goes on"] if resumes else [])]), file=sys.stderr)


def output_is_closed() -> bool:
    """True where standard output had a reader that has gone; another pipe, to a server, may have broken too."""
    poll = select.poll()
    if sys.stdout is None:
        return False
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # it is no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def end_silently() -> NoReturn:
    """Exits; Python, which would complain when it flushes standard output at its end, finds one that takes all."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(CLOSED_OUTPUT)


@contextmanager
def _signals_raise(resumes: bool) -> Iterator[None]:
    """Only a main thread can handle signals; what handled them before is put back. What is ignored stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _handler(resumes)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, earlier in before.items():
        if earlier is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _handler(resumes: bool) -> Callable[[int, FrameType | None], Any]:
    """Raises where the main thread is; a signal that comes again while all is being closed ends the process."""
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise Interrupted(number)
        if time.monotonic() - first[0] > ECHO:
            _tell(resumes, "interrupted again, before all was closed")
            os._exit(128 + number)

    return handle
