"""Stores behind URLs: their filesystems and open files, with three kinds of errors that say what to do.

Filesystems differ in the errors that they raise. Here, a ValueError means a fault of the caller or of the file. The
causes of a FileNotFoundError or a ConnectionError may be temporary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from pipeline.messages import describe

PASSING_STATUSES = (408, 425, 429)  # HTTP: the same request may succeed later, as after statuses from 500 on


class RemoteFile:
    """Remote file that is open for Arrow's readers. Its errors name the URL."""

    def __init__(self, stored: Any, url: str, size: int) -> None:
        self._stored, self._url, self._size = stored, url, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stored, name)

    def read(self, size: int) -> bytes:
        """Read exactly `size` bytes, or all remaining bytes if fewer remain.

        The number of bytes is checked, since a response of unknown length may end early without an error.
        """
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


def filesystem_of(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the filesystem of a URL and the path in it. Listings are not cached, since they could be outdated.

    Raises:
        ValueError: if the URL chains filesystems, or needs a package that is not installed.
    """
    if "::" in url:
        raise ValueError(f"{url} chains filesystems with `::`; name files in a single filesystem")
    try:
        filesystem, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ValueError(f"{url} needs a package that is not installed: {error}") from error
    return filesystem, path


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Convert all errors that a filesystem raises inside this context into three kinds of errors.

    The original errors are not chained, since they could show credentials.

    Raises:
        ValueError: if the filesystem cannot do what is requested, for example if a server does not serve parts of
            files.
        FileNotFoundError: if the store answers that there is no such file.
        ConnectionError: if the store does not answer, or its answer may change later.
    """
    try:
        yield
    except ValueError as error:
        reason = _describe(error)
        message = reason if url in reason else f"{url} cannot be read ({reason}); name a copy on a disk"
        raise ValueError(message) from None
    except Exception as error:
        if isinstance(error, FileNotFoundError) and is_answer(error):
            raise FileNotFoundError(f"no documents at {url}: {_describe(error)}") from None
        raise ConnectionError(f"cannot reach {url}: {_describe(error)}") from None


def is_answer(error: FileNotFoundError) -> bool:
    """True if a FileNotFoundError is the store's answer that there is no such file.

    fsspec's HTTP filesystem raises FileNotFoundError for any other failure, too.
    """
    from aiohttp import ClientError, ClientResponseError  # takes 0.2 s, and a file on a disk does not need it

    cause = error.__cause__
    if isinstance(cause, ClientResponseError):
        return cause.status < 500 and cause.status not in PASSING_STATUSES
    return isinstance(cause, ValueError) or not isinstance(cause, ClientError | TimeoutError)


def _describe(error: Exception) -> str:
    """Return the text of an error or, if it is a FileNotFoundError with a cause, the text of the cause."""
    return describe((isinstance(error, FileNotFoundError) and error.__cause__) or error)
