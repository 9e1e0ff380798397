"""Compressed content: read whole whatever its members and padding, or refused; never cut short in silence."""

import bz2
import gzip
import io
import lzma
import os
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.streams import Decompressed, MalformedError

WRITE: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
NAMES = st.sampled_from(sorted(WRITE))
SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"any."


def content_of(stored: bytes, compression: str) -> bytes:
    return io.BufferedReader(Decompressed(io.BytesIO(stored), compression)).read()


@settings(max_examples=100, deadline=None)
@given(NAMES, st.lists(st.tuples(st.binary(max_size=20_000), st.integers(0, 9)), max_size=4))
@example("gzip", [(os.urandom(2**17), 512), (b"", 0), (b"more", 2**16)])
@example("xz", [(os.urandom(2**17), 4), (b"more", 0)])
def test_any_members_are_read_with_any_padding(compression: str, members: list[tuple[bytes, int]]) -> None:
    stored = b"".join(WRITE[compression](content) + bytes(padding) for content, padding in members)
    assert content_of(stored, compression) == b"".join(content for content, _ in members)


@settings(max_examples=100, deadline=None)
@given(NAMES, st.binary(max_size=2000), st.binary(max_size=2000), st.data())
def test_whatever_is_cut_short_is_refused(compression: str, first: bytes, last: bytes, data: st.DataObject) -> None:
    before, cut = WRITE[compression](first), WRITE[compression](last)
    length = data.draw(st.integers(1, len(cut) - 1))
    with pytest.raises(OSError, match="Truncated compressed stream") as refusal:
        content_of(before + cut[:length], compression)
    assert refusal.value.errno is None


@pytest.mark.parametrize("compression", sorted(WRITE))
@pytest.mark.parametrize("after", [b"junk", b"\0junk", b"\0\0PK"])
def test_what_is_not_compressed_is_refused_wherever_it_stands(compression: str, after: bytes) -> None:
    whole = WRITE[compression](b"content")
    for stored in (whole + after + bytes(20), after + whole):
        with pytest.raises(OSError, match=f"damaged {compression} data"):
            content_of(stored, compression)


@pytest.mark.parametrize("compression", ["bzip2", "xz", "gzip"])
def test_damage_in_a_later_member_is_not_its_end(compression: str) -> None:
    """bz2.open and lzma.open give the first member and say nothing."""
    second = bytearray(WRITE[compression](b"two"))
    second[1] ^= 255
    with pytest.raises(OSError, match="damaged"):
        content_of(WRITE[compression](b"one") + bytes(second), compression)


def with_window(log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=log, compression_level=1, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # which tells no size in its frame
    return bytes(writer.compress(b"text " * 1000) + writer.flush())


def test_a_window_that_a_command_takes_unasked_is_read_and_a_larger_one_refused() -> None:
    assert content_of(with_window(27), "zstd") == b"text " * 1000
    for log in (28, 31):
        assert zstandard.get_frame_parameters(with_window(log)).window_size == 2**log
        with pytest.raises(MalformedError, match=r"takes more than 128 MiB of memory.* `zstd --long=31 -d`"):
            content_of(with_window(log), "zstd")


def test_the_strongest_xz_is_read_and_a_larger_dictionary_refused() -> None:
    assert content_of(lzma.compress(b"text", preset=9 | lzma.PRESET_EXTREME), "xz") == b"text"
    large = lzma.compress(b"text", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 2**28}])
    with pytest.raises(MalformedError, match=r"takes more than 128 MiB of memory.* `xz -d`"):
        content_of(large, "xz")


def test_frames_to_be_skipped_are() -> None:
    frames = [SKIPPABLE, WRITE["zstd"](b"one "), SKIPPABLE, WRITE["zstd"](b"two"), SKIPPABLE]
    assert content_of(b"".join(frames), "zstd") == b"one two"


@pytest.mark.parametrize("compression", sorted(WRITE))
def test_memory_is_bounded_whatever_a_file_expands_to(compression: str) -> None:
    stored = WRITE[compression](bytes(300_000_000))
    content = io.BufferedReader(Decompressed(io.BytesIO(stored), compression), 2**20)
    tracemalloc.start()
    try:
        assert sum(len(content.read(2**20)) for _ in range(286)) == 286 * 2**20
        assert tracemalloc.get_traced_memory()[1] < 300_000_000  # once in parts, once joined
    finally:
        tracemalloc.stop()
