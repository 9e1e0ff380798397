"""Compressed files read as a stream: gzip, Zstandard, bzip2 and xz, of any number of members, with padding.

What is cut short, damaged or followed by something else is an error: Python's own readers let a damaged second member
pass for the end of the file, and Arrow's takes no padding, no bzip2 and no xz.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

import zstandard

from pipeline.data.utf8 import MalformedError

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
