"""Early ends of a command: Ctrl-C, SIGTERM, SIGHUP, or a closed standard output, as after `| head`."""

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

CLOSED_OUTPUT = 128 + signal.SIGPIPE  # exit code, as shells report it
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 1.0  # seconds in which a second signal is ignored: `timeout` and a closing terminal send two signals


class Interrupted(KeyboardInterrupt):
    """Raised for Ctrl-C, for SIGTERM (which schedulers send before they kill) and for SIGHUP of a closing terminal.

    After a plain KeyboardInterrupt within an `exec`, Python ends itself with SIGINT, whatever the exit code. A subclass
    of KeyboardInterrupt does not have this effect.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def ending_in_a_line(*, resumes: bool) -> Iterator[None]:
    """Turn an interruption into one printed line and the exit code 128 + the signal's number (130 after Ctrl-C).

    The line includes the notes of the KeyboardInterrupt, which say how much of the work is done. If `resumes` is True,
    the line also says that the same command resumes. A second signal, more than ECHO seconds after the first, ends the
    process at once. A closed standard output ends the process silently.
    """
    with _signals_raise(resumes):
        try:
            yield
            if sys.stdout is not None:  # None if it was closed from the start
                sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
            _say_interrupted(resumes, "interrupted", *getattr(interrupt, "__notes__", ()))
            sys.exit(128 + number)
        except BrokenPipeError:
            if not output_is_closed():
                raise
            end_silently()


def _say_interrupted(resumes: bool, *parts: str) -> None:
    with suppress(OSError):  # a terminal that has closed
        say("; ".join([*parts, *(["the same command resumes"] if resumes else [])]), file=sys.stderr)


def output_is_closed() -> bool:
    """True if the reader of standard output is gone.

    A BrokenPipeError does not prove this, because it may come from another pipe, for example to a server.
    """
    poll = select.poll()
    if sys.stdout is None:
        return False
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # not a file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def end_silently() -> NoReturn:
    """Redirect standard output to /dev/null and exit. Otherwise Python would complain that its last flush failed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(CLOSED_OUTPUT)


@contextmanager
def _signals_raise(resumes: bool) -> Iterator[None]:
    """Raise Interrupted for every signal, if this is the main thread. Signals that are ignored stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _handler(resumes)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, earlier in before.items():
        if earlier is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, signal.SIG_DFL if earlier is None else earlier)


def _handler(resumes: bool) -> Callable[[int, FrameType | None], Any]:
    """Return a handler that raises Interrupted for the first signal.

    A second signal ends the process at once, unless it comes within ECHO seconds of the first: then it is ignored.
    """
    first: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise Interrupted(number)
        if time.monotonic() - first[0] > ECHO:
            _say_interrupted(resumes, "interrupted again, before everything was closed")
            os._exit(128 + number)

    return handle
