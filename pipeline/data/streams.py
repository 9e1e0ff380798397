"""Content of local and remote files: unchanged since they were found, decompressed in bounded memory, and in UTF-8.

A malformed or damaged file causes an error that names the file and says what to do. Errors of disks and stores are
raised unchanged, since such failures may be temporary.
"""

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

from pipeline.data.files import File, compression_of, is_url, local_file, remedy, remote_file
from pipeline.data.remote import RemoteFile, filesystem_of, reaching
from pipeline.messages import redacted

READ_BYTES = 2**20

MARK = codecs.BOM_UTF8  # byte order mark, which some editors write at the beginning

# The longest first, since the mark of UTF-32LE begins with that of UTF-16LE.
MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

# Encodings of text without a mark. True in a key means a zero among the first four bytes if the text begins with ASCII.
ZEROS: Mapping[tuple[bool, ...], str] = {
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}

# Bytes to decompress at a time, few enough for an output of at most 140 MB: a byte of gzip becomes up to 1 kB, of xz
# 7 kB, of Zstandard 32 kB, and 45 bytes of bzip2 become 45 MB.
BYTES_AT_A_TIME: Mapping[str, int] = {"gzip": 2**16, "xz": 2**13, "zstd": 2**12, "bzip2": 2**6}

# A file declares how much memory its decompression needs. This limit is the default of the commands `zstd` and `xz`;
# a file of `xz -9` needs 65 MiB.
LARGEST_WINDOW = 2**27
TOO_MUCH = ("too much memory", "Memory usage limit exceeded")


class MalformedError(ValueError):
    """Error for malformed content of a file. Its message continues a sentence that begins with the file's name."""


class DamagedError(ValueError):
    """Error for a file that cannot be read in the format that its name indicates.

    The message describes the damage and gives advice.
    """

    def __init__(self, damage: str, advice: str) -> None:
        super().__init__(damage, advice)  # both, so that the error can be pickled
        self.damage, self.advice = damage, advice

    def __str__(self) -> str:
        return f"{self.damage}; {self.advice}"


@contextmanager
def reading(file: File) -> Iterator[None]:
    """Add the file's name to errors of malformed or undecodable content that are raised inside this context.

    Errors of disks and stores pass unchanged.

    Raises:
        DamagedError: if the file cannot be decoded.
        ValueError: if the file's content is malformed.
    """
    try:
        yield
    except MalformedError as error:
        raise ValueError(f"{file.url} {error}") from None
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        # Arrow also raises OSError for damaged data, but bare and without a number, unlike errors of disks and stores.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        reason = redacted(" ".join(str(error).split()))
        damage = f"{file.url} is not a readable {file.format} file: {reason}"
        raise DamagedError(damage, remedy(file.name)) from error


def open_file(file: File) -> BinaryIO:
    """Open the content of a file. It is decompressed if the file's name has the extension of a compressed file.

    Reading raises an OSError without an errno if the compressed data is truncated or damaged. It also raises the errors
    that `open_stored` describes.

    Raises:
        ValueError, OSError: as open_stored does.
    """
    stored = cast(BinaryIO, io.BufferedReader(open_stored(file), READ_BYTES))
    compression = compression_of(file.name)
    return stored if compression is None else io.BufferedReader(Decompressed(stored, compression), READ_BYTES)


def open_stored(file: File, read_ahead: int | None = None) -> pa.NativeFile:
    """Open the stored bytes of a file, without decompression, for Arrow's readers.

    The stream is seekable if the filesystem can seek. A remote file is read `read_ahead` bytes ahead, or as far as its
    filesystem chooses if `read_ahead` is None. If the store fails, reading a remote file raises ConnectionError. An
    OSError without an errno means damaged data.

    Raises:
        ValueError: if the file has changed since it was found.
        FileNotFoundError: if the file has disappeared since it was found, or does not exist on this machine.
        ConnectionError: if the file's store cannot be reached now.
    """
    try:
        now, stream = _opened_remotely(file.url, read_ahead) if is_url(file.url) else _opened_locally(Path(file.url))
    except FileNotFoundError:
        advice = "put it back or start a new run"
        raise FileNotFoundError(f"{file.url} has disappeared since it was found; {advice}") from None
    if now.version != file.version:
        stream.close()
        raise ValueError(f"{file.url} has changed since the run was planned; put it back or start a new run")
    return stream


def _opened_locally(path: Path) -> tuple[File, pa.NativeFile]:
    stream = pa.OSFile(str(path))
    return local_file(path), stream


def _opened_remotely(url: str, read_ahead: int | None) -> tuple[File, pa.NativeFile]:
    with reaching(url):
        filesystem, path = filesystem_of(url)
        now = remote_file(filesystem, filesystem.info(path))
        stream = filesystem.open(path, "rb", block_size=read_ahead)
        return now, pa.PythonFile(RemoteFile(stream, now.url, now.size), "r")


class Digested(io.RawIOBase):
    """Stream that computes the sha256 of its content while `buffered` is read."""

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
        """Digest of the content read so far."""
        return self._digest.hexdigest()


class Member(Protocol):
    """Piecewise decompressor of one gzip member, Zstandard frame, bzip2 stream or xz stream."""

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
    """Stream of the decompressed content of a file.

    Reading raises an OSError without an errno if the file is truncated or damaged. It raises MalformedError if
    decompression takes too much memory.
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
        """Decompress the next stored bytes.

        Zero bytes between members and after the last member are skipped, since files from tapes have them.
        """
        contents = []
        while data := data if self._member is not None else data.lstrip(b"\0"):
            self._member = self._member or MEMBERS[self._compression]()
            try:
                contents.append(self._member.decompress(data))
            except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:
                if any(message in str(error) for message in TOO_MUCH):
                    command = "zstd --long=31 -d" if self._compression == "zstd" else f"{self._compression} -d"
                    raise MalformedError(
                        f"takes more than {LARGEST_WINDOW >> 20} MiB of memory to decompress; decompress it first, "
                        f"for example with `{command}`"
                    ) from None
                raise OSError(f"damaged {self._compression} data: {error}") from None
            if not self._member.eof:
                break
            data, self._member = self._member.unused_data, None
        return contents


class Utf8Decoder:
    """Decoder of UTF-8 content that arrives in pieces. It counts lines for error messages."""

    def __init__(self, line: int = 1) -> None:
        self.line = line
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def decode(self, piece: bytes, *, final: bool = False) -> str:
        """Decode a piece. An incomplete character at the end of the piece is kept for the next call.

        Raises:
            MalformedError: if the piece is not UTF-8.
        """
        try:
            text = self._decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            raise _not_utf8(error, self.line) from None
        self.line += text.count("\n")
        return text


def decoded(content: bytes, line: int) -> str:
    """Decode UTF-8. `line` is the number of the content's first line, counted from 1, for error messages.

    Raises:
        MalformedError: if the content is not UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise _not_utf8(error, line) from None


def _not_utf8(error: UnicodeDecodeError, line: int) -> MalformedError:
    """Return an error that names the bad line. `line` is the number of the content's first line, counted from 1."""
    line += error.object.count(b"\n", 0, error.start)
    return MalformedError(f"is not UTF-8 in line {line:,}; convert it, for example with `iconv -f latin1 -t utf-8`")


def require_narrow(beginning: bytes) -> None:
    """Check that content is not in UTF-16 or UTF-32, judging by its beginning.

    Raises:
        MalformedError: if the content is in one of these encodings.
    """
    marked = next((name for mark, name in MARKS.items() if beginning.startswith(mark)), None)
    if encoding := marked or ZEROS.get(tuple(not byte for byte in beginning[:4])):
        advice = f"convert it, for example with `iconv -f {encoding.lower()} -t utf-8`"
        raise MalformedError(f"is {encoding}, not UTF-8; {advice}")
