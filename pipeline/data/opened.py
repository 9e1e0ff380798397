"""Files opened where they lie: the content that was found, or an error that says what has become of it."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa

from pipeline.data.compressed import Decompressed
from pipeline.data.formats import compression_of, remedy
from pipeline.data.locations import File, filesystem_of, is_url, local_file, remote_file
from pipeline.data.reaching import RemoteFile, reaching
from pipeline.data.utf8 import MalformedError
from pipeline.messages import redacted

READ_BYTES = 2**20


class DamagedError(ValueError):
    """A file that cannot be read as what its name tells; the message has the damage, and what to do about it."""

    def __init__(self, damage: str, advice: str) -> None:
        super().__init__(damage, advice)  # both, from which another process makes the same error
        self.damage, self.advice = damage, advice

    def __str__(self) -> str:
        return f"{self.damage}; {self.advice}"


@contextmanager
def reading(file: File) -> Iterator[None]:
    """Names the file that is malformed or cannot be decoded; an error of the disk or the store passes as it is.

    Raises:
        DamagedError: if the file cannot be decoded.
        ValueError: if its text is malformed.
    """
    try:
        yield
    except MalformedError as error:
        raise ValueError(f"{file.url} {error}") from None
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # Of damaged data too Arrow raises OSError, but bare and without a number, as a disk's and a store's never is.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        reason = redacted(" ".join(str(error).split()))
        damage = f"{file.url} is not a readable {file.format} file: {reason}"
        raise DamagedError(damage, remedy(file.name)) from error


def open_file(file: File) -> BinaryIO:
    """The file's content from its beginning, decompressed if its name ends as that of a compressed file.

    Reading raises OSError itself if the compressed data is cut short or damaged, and otherwise as `open_stored` says.

    Raises:
        ValueError, OSError: as open_stored does.
    """
    stored = cast(BinaryIO, io.BufferedReader(open_stored(file), READ_BYTES))
    compression = compression_of(file.name)
    return stored if compression is None else io.BufferedReader(Decompressed(stored, compression), READ_BYTES)


class Digested(io.RawIOBase):
    """A stream whose content is digested while it is read to its end, through `buffered`."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._digest = stream, hashlib.sha256()
        self.buffered = cast(BinaryIO, io.BufferedReader(self, READ_BYTES))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(memoryview(buffer)))
        self._digest.update(data)
        memoryview(buffer)[: len(data)] = data
        return len(data)

    @property
    def sha256(self) -> str:
        """Of what has been read."""
        return self._digest.hexdigest()


def open_stored(file: File, read_ahead: int | None = None) -> pa.NativeFile:
    """The file's bytes as they are stored, for Arrow's readers; seekable wherever the filesystem can seek.

    Beyond what is asked for, a remote file is read `read_ahead` bytes ahead, or as far as its filesystem likes. Reading
    it raises ConnectionError where the store fails, never OSError itself, which Arrow raises for damaged data.

    Raises:
        ValueError: if the file is another than was found.
        FileNotFoundError: if it is gone, at least from where this is called.
        ConnectionError: if its store cannot be reached now.
    """
    try:
        now, stream = _opened_remotely(file.url, read_ahead) if is_url(file.url) else _opened(Path(file.url))
    except FileNotFoundError:
        raise FileNotFoundError(f"{file.url} is gone since it was found; put it back or start a new run") from None
    if now.version != file.version:
        stream.close()
        raise ValueError(f"{file.url} has changed since the run was planned; put it back or start a new run")
    return stream


def _opened(path: Path) -> tuple[File, pa.NativeFile]:
    stream = pa.OSFile(str(path))
    return local_file(path), stream


def _opened_remotely(url: str, read_ahead: int | None) -> tuple[File, pa.NativeFile]:
    with reaching(url):
        filesystem, path = filesystem_of(url)
        now = remote_file(filesystem, filesystem.info(path))
        return now, pa.PythonFile(
            RemoteFile(filesystem.open(path, "rb", block_size=read_ahead), now.url, now.size), "r"
        )
