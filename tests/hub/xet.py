"""Storage of Xet: blocks of compressed chunks (xorbs), and for each file the list of the chunks that it consists of.

Shards have the layout of version 2, and chunks have the layout of version 0. These are the versions that hf_xet writes.
A hash is written as its four 64-bit words in hexadecimal.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from tests.hub.answers import RefusedError

HEADER = 48
FILE = struct.Struct("<32s2I8x")
SEGMENT = struct.Struct("<32s4I")
END = b"\xff" * 32
VERIFIED, WITH_SHA256 = 1 << 31, 1 << 30
UNCOMPRESSED, LZ4, GROUPED_LZ4 = range(3)


@dataclass(frozen=True)
class Segment:
    """Consecutive chunks of the block `xorb`, from the chunk `start` up to but not including the chunk `end`.

    `size` is the total size of these chunks in bytes after decompression.
    """

    xorb: str
    start: int
    end: int
    size: int


@dataclass(frozen=True)
class XetFile:
    hash: str
    sha256: str
    segments: tuple[Segment, ...]

    @property
    def size(self) -> int:
        return sum(segment.size for segment in self.segments)


@dataclass
class XetStore:
    """Blocks, stored in `folder` under their hashes, and the files that consist of chunks of these blocks."""

    folder: Path
    by_hash: dict[str, XetFile] = field(default_factory=dict)
    by_sha256: dict[str, XetFile] = field(default_factory=dict)

    def put_xorb(self, name: str, content: bytes) -> bool:
        """Store a block, and return whether it is new."""
        if (self.folder / name).exists():
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_bytes(content)
        return True

    def xorb(self, name: str) -> bytes:
        if not (self.folder / name).is_file():
            raise RefusedError(404, f"no xorb {name}")
        return (self.folder / name).read_bytes()

    def put_shard(self, shard: bytes) -> None:
        for file in files_of(shard):
            for segment in file.segments:
                if segment.end > len(list(chunks_of(self.xorb(segment.xorb)))):
                    raise RefusedError(400, f"the xorb {segment.xorb} has no chunk {segment.end - 1}")
            self.by_hash[file.hash] = self.by_sha256[file.sha256] = file

    def content(self, file: XetFile) -> bytes:
        return b"".join(self._segment(segment) for segment in file.segments)

    def _segment(self, segment: Segment) -> bytes:
        xorb = self.xorb(segment.xorb)
        return b"".join(chunk.content(xorb) for chunk in list(chunks_of(xorb))[segment.start : segment.end])

    def bytes_of(self, segment: Segment) -> tuple[int, int]:
        """Return the positions of a segment's first and last byte, counted from the beginning of its block."""
        chunks = list(chunks_of(self.xorb(segment.xorb)))[segment.start : segment.end]
        return chunks[0].at, chunks[-1].at + Chunk.HEADER + chunks[-1].compressed_size - 1


@dataclass(frozen=True)
class Chunk:
    """A compressed chunk. `at` is the position of its header's first byte, counted from the beginning of the block."""

    HEADER = 8
    at: int
    compressed_size: int
    scheme: int
    size: int

    def content(self, xorb: bytes) -> bytes:
        start = self.at + self.HEADER
        compressed = xorb[start : start + self.compressed_size]
        if self.scheme == UNCOMPRESSED:
            return compressed
        plain = bytes(pa.decompress(compressed, self.size, codec="lz4"))
        return plain if self.scheme == LZ4 else ungrouped(plain)


def chunks_of(xorb: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a block, up to the footer or the end of the block.

    The first byte of a footer is not 0, and the first byte of every chunk is 0.
    """
    at = 0
    while at < len(xorb) and xorb[at] == 0:
        compressed, scheme, size = xorb[at + 1 : at + 4], xorb[at + 4], xorb[at + 5 : at + 8]
        chunk = Chunk(at, int.from_bytes(compressed, "little"), scheme, int.from_bytes(size, "little"))
        yield chunk
        at += Chunk.HEADER + chunk.compressed_size


def ungrouped(grouped: bytes) -> bytes:
    """Restore the order of bytes that were grouped by their position modulo 4."""
    plain, at = bytearray(len(grouped)), 0
    for remainder in range(4):
        size = len(range(remainder, len(grouped), 4))
        plain[remainder::4] = grouped[at : at + size]
        at += size
    return bytes(plain)


def files_of(shard: bytes) -> Iterator[XetFile]:
    at = HEADER
    while shard[at : at + 32] != END:
        name, flags, count = FILE.unpack_from(shard, at)
        at += FILE.size
        segments = []
        for name_of_xorb, _, size, start, end in SEGMENT.iter_unpack(shard[at : at + count * SEGMENT.size]):
            segments.append(Segment(written(name_of_xorb), start, end, size))
        at += SEGMENT.size * count * (2 if flags & VERIFIED else 1)
        if not flags & WITH_SHA256:
            raise RefusedError(400, "a file without its SHA-256 cannot be committed")
        yield XetFile(written(name), written(shard[at : at + 32]), tuple(segments))
        at += HEADER


def written(hash_: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", hash_))
