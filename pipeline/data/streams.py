"""Text of files, which must be UTF-8: what is not is refused with its place and with the command that converts it."""

import bz2
import codecs
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import pyarrow as pa
import zstandard

from pipeline.data.files import File, compression_of, filesystem_of, is_url, local_file, remedy, remote_file
from pipeline.data.remote import RemoteFile, reaching
from pipeline.messages import redacted

MARK = codecs.BOM_UTF8  # a byte order mark, which some editors put first
# By the longest first, since one begins with another.
MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# Without a mark: which of the first four bytes are zero where a text begins with ASCII.
ZEROS: Mapping[tuple[bool, ...], str] = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}


class MalformedError(ValueError):
    """What is wrong with the content of a file: the part of a sentence that follows the file's name."""


def require_narrow(beginning: bytes) -> None:
    """Refuses the content that begins so if it is UTF-16 or UTF-32.

    Raises:
        MalformedError: if it is.
    """
    marked = next((name for mark, name in MARKS.items() if beginning.startswith(mark)), None)
    if found := marked or ZEROS.get(tuple(not byte for byte in beginning[:4])):
        raise MalformedError(f"is {found}, not UTF-8; convert it, as with `iconv -f {found.lower()} -t utf-8`")


def decoded(content: bytes, line: int) -> str:
    """The text of content that begins in line number `line`, the first being 1.

    Raises:
        MalformedError: if it is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(error, line) from None


def not_utf8(error: UnicodeDecodeError, line: int) -> MalformedError:
    """The refusal of content that begins in line number `line`."""
    line += error.object.count(b"\n", 0, error.start)
    return MalformedError(f"is not UTF-8: see line {line:,} of it; convert it, as with `iconv -f latin1 -t utf-8`")


# So little is decompressed at a time that at most 140 MB come out: a byte of gzip becomes up to 1 kB, of xz 7 kB, of
# Zstandard 32 kB, and 45 bytes of bzip2 become 45 MB.
BYTES_AT_A_TIME: Mapping[str, int] = {"gzip": 2**16, "xz": 2**13, "zstd": 2**12, "bzip2": 2**6}
# A file says how much memory it takes to decompress. The commands `zstd` and `xz` go as far without being asked, and
# `xz -9` needs 65 MiB.
LARGEST_WINDOW = 2**27
TOO_MUCH = ("too much memory", "Memory usage limit exceeded")


class Member(Protocol):
    """One gzip member, Zstandard frame, bzip2 or xz stream, decompressed piece by piece."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


MEMBERS: Mapping[str, Callable[[], Member]] = {
    "gzip": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "zstd": lambda: zstandard.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj(),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=LARGEST_WINDOW),
}


class Decompressed(io.RawIOBase):
    """The content of a compressed file.

    Reading raises OSError, without a number, if the file is cut short or damaged, and MalformedError if that takes too
    much memory.
    """

    def __init__(self, stored: BinaryIO, compression: str) -> None:
        self._stored, self._compression = stored, compression
        self._member: Member | None = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and (data := self._stored.read(BYTES_AT_A_TIME[self._compression])):
            self._ready = memoryview(b"".join(self._contents(data)))
        if not self._ready and self._member is not None:
            raise OSError("Truncated compressed stream")
        into = memoryview(buffer)
        size = min(len(into), len(self._ready))
        into[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def close(self) -> None:
        self._stored.close()
        super().close()

    def _contents(self, data: bytes) -> list[bytes]:
        """What some stored bytes hold; between members and after the last there may be zeros, as tapes have them."""
        contents = []
        while data := data if self._member is not None else data.lstrip(b"\0"):
            self._member = self._member or MEMBERS[self._compression]()
            try:
                contents.append(self._member.decompress(data))
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:
                if any(told in str(error) for told in TOO_MUCH):
                    command = f"{'zstd --long=31' if self._compression == 'zstd' else self._compression} -d"
                    told = f"takes more than {LARGEST_WINDOW >> 20} MiB of memory to decompress"
                    raise MalformedError(f"{told}; decompress it first, as with `{command}`") from None
                raise OSError(f"damaged {self._compression} data: {error}") from None
            if not self._member.eof:
                break
            data, self._member = self._member.unused_data, None
        return contents


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
