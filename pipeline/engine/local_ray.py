"""Private Ray that a run starts on this machine. Only this user can read its token and its files.

This Ray listens only on loopback. By default, Ray puts its sockets and logs into `/tmp/ray`, where everybody may read
and write.
"""

import fcntl
import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from ray._private import ray_constants, utils, worker

from pipeline.interruptions import ECHO, SIGNALS

PREFIX = "ray-of-a-run-"
LONGEST = 40
"""Maximum length in bytes of the path of the temporary folder. The path of a socket in the folder has at most 107
bytes, and Ray itself needs up to 67 of them."""
YOUNG = 60.0  # seconds in which a new folder may not have its lock yet
STACK_TRACE = b"*** SIGTERM received"
TRIES = 5  # attempts to remove a folder: a process that is ending may still add to a log


@contextmanager
def private_folder() -> Iterator[str]:
    """Yield a path in a new temporary folder that only this user can read.

    The folder is removed on exit. Folders that killed runs left behind are removed first.

    Raises:
        OSError: if no writable folder for temporary files has a path that is short enough.
    """
    parent = _short_folder()
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    lock = _lock(folder)  # the system releases it when this process ends, even if it is killed
    try:
        yield str(folder / "ray")  # Ray opens this folder to everybody; its parent stays closed
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def _short_folder() -> Path:
    """Return the first folder for temporary files that is writable and whose path is short enough for Ray's sockets."""
    folders = [os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"]
    for folder in (Path(name).absolute() for name in folders if name):
        short = len(os.fsencode(folder / PREFIX)) + 8 <= LONGEST  # mkdtemp adds 8 characters
        if short and folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise OSError("no folder for temporary files has a short path and can be written to; set TMPDIR=/tmp")


def _lock(folder: Path) -> int | None:
    """Lock a folder, and return its file descriptor. Return None if another process has locked the folder."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def _sweep(parent: Path) -> None:
    """Remove the folders that killed runs of this user left behind."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            status = folder.lstat()
            old = time.time() - status.st_mtime > YOUNG
            lock = _lock(folder) if status.st_uid == os.geteuid() and folder.is_dir() and old else None
        except FileNotFoundError:  # another run was faster
            continue
        if lock is not None:
            _remove(folder)
            os.close(lock)


def _remove(folder: Path) -> None:
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def local_settings(folder: str) -> dict[str, Any]:
    """Set the environment variables that a private Ray's processes need, and return the arguments for `ray.init`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a local run sends nothing from this machine
    # Without this variable Ray would write a token to ~/.ray, readable for everybody, and every cluster that is started
    # later would require it. A process's environment is readable only for its user.
    if not os.environ.get("RAY_AUTH_TOKEN"):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.pop("RAY_AUTH_MODE", None)  # Ray then requires a token; `disabled` would let in other users
    # Ray replaces 127.0.0.1 by an outside address and listens there, unless clusters are disabled as on a laptop.
    ray_constants.ENABLE_RAY_CLUSTER = False
    return {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "_temp_dir": folder}


@contextmanager
def signals_wait() -> Iterator[None]:
    """Context manager inside which Ray starts. A signal waits until the start has succeeded or failed.

    An interrupted start would leave processes behind. A second signal takes effect at once if it comes more than ECHO
    seconds after the first signal. An earlier second signal is ignored. Ray's own handlers of SIGTERM are not used:
    Ray's Python code would install a handler that ends the process with exit code 15, and Ray's C++ core installs a
    handler that prints a stack trace.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, float]] = []
    before: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        handler = before.get(number)
        if came and time.monotonic() - came[0][1] > ECHO and callable(handler):
            handler(number, frame)
        came.append((number, time.monotonic()))
        signal.alarm(0)  # if C++ had the signal first, it set an alarm to abort the process in three seconds

    def install(handlers: Mapping[int, Any]) -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    handled = {number: note if callable(handler) else handler for number, handler in before.items()}
    connect, set_handler = worker.connect, utils.set_sigterm_handler

    def connected(*arguments: Any, **named: Any) -> None:
        with _without_stack_trace():
            connect(*arguments, **named)
            install(handled)

    install(handled)
    worker.connect, utils.set_sigterm_handler = connected, lambda handler: None
    try:
        yield
    finally:
        worker.connect, utils.set_sigterm_handler = connect, set_handler
        install(before)
        if came:
            signal.raise_signal(came[0][0])


@contextmanager
def _without_stack_trace() -> Iterator[None]:
    """Hold back everything that Python or C++ code writes to standard error.

    On exit, print the text that was held back, unless it contains the stack trace of a SIGTERM.
    """
    try:
        standard_error = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
            aside.seek(0)
            text = aside.read()
            if STACK_TRACE not in text:
                os.write(2, text)
