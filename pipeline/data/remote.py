"""What stores behind URLs raise, each filesystem its own, as three kinds of error that say what to do.

A ValueError is the caller's or the file's fault; FileNotFoundError and ConnectionError may pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from aiohttp import ClientError, ClientResponseError

from pipeline.messages import describe

PASSING_STATUSES = (408, 425, 429)  # of HTTP: the same request may be answered later, as after one of 500 and above


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Makes three kinds of error of all that filesystems raise; no chain, which would show what `redacted` hides.

    Raises:
        ValueError: if the filesystem cannot do what it is asked for: of a URL, a server that gives no parts of files.
        FileNotFoundError: if the store's answer is that it gives no such file.
        ConnectionError: if it gives no answer, or one that may be another later.
    """
    try:
        yield
    except ValueError as error:
        reason = _describe(error)
        named = reason if url in reason else f"{url} cannot be read ({reason}); name a copy on a disk"
        raise ValueError(named) from None
    except Exception as error:
        if isinstance(error, FileNotFoundError) and is_answer(error):
            raise FileNotFoundError(f"no Parquet or JSON lines file at {url}: {_describe(error)}") from None
        raise ConnectionError(f"cannot reach {url}: {_describe(error)}") from None


def is_answer(error: FileNotFoundError) -> bool:
    """Whether the store says that there is no file. fsspec's HTTP filesystem raises this error whatever has failed."""
    cause = error.__cause__
    if isinstance(cause, ClientResponseError):
        return cause.status < 500 and cause.status not in PASSING_STATUSES
    return isinstance(cause, ValueError) or not isinstance(cause, ClientError | TimeoutError)


def _describe(error: Exception) -> str:
    """What an error says, or what led to it."""
    return describe((isinstance(error, FileNotFoundError) and error.__cause__) or error)


class RemoteFile:
    """A filesystem's open file, as Arrow takes one, with errors that name it."""

    def __init__(self, stored: Any, url: str, size: int) -> None:
        self._stored, self._url, self._size = stored, url, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stored, name)

    def read(self, size: int) -> bytes:
        """So many bytes, or all to the end. A body whose length is not told is cut short without an error."""
        parts: list[bytes] = []
        with reaching(self._url):
            left = min(size, self._size - self._stored.tell())
            while left > 0:
                parts.append(self._stored.read(left))
                left -= len(parts[-1])
                if not parts[-1]:
                    raise EOFError(f"the connection ended {left} bytes early")
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0) -> int:
        with reaching(self._url):
            return cast(int, self._stored.seek(offset, whence))
