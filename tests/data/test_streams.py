"""Content of files is refused at the first byte that is not UTF-8, and if its compressed data is incomplete."""

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import subprocess
import tracemalloc
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.streams import MARKS, Decompressed, MalformedError, Utf8Decoder, decoded, require_narrow

WIDE = sorted({"utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"})


def decoded_by_piece(content: bytes) -> str:
    decoder = Utf8Decoder()
    pieces = [content[at : at + 2] for at in range(0, len(content), 2)]
    return "".join([decoder.decode(piece) for piece in pieces]) + decoder.decode(b"", final=True)


def valid(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.lists(st.binary(max_size=6) | st.text(max_size=6).map(str.encode), max_size=5).map(b"\n".join))
@example(b"a\n\xc3\xa4\xe4\n")
@example(b"a\n\nb\xc3")
def test_the_first_byte_that_is_not_utf8_is_found(content: bytes) -> None:
    if valid(content):
        assert decoded(content, line=1) == decoded_by_piece(content) == content.decode()
        return
    with pytest.raises(MalformedError, match=r"^is not UTF-8 in line .*; convert it, .* `iconv") as refusal:
        decoded(content, line=1)
    line = int(re.findall(r"line (\d+)", str(refusal.value))[0])
    lines = content.split(b"\n")
    assert all(map(valid, lines[: line - 1])) and not valid(lines[line - 1])
    with pytest.raises(MalformedError, match=f"^{re.escape(str(refusal.value))}$"):
        decoded_by_piece(content)


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("text", ['{"text": "größer"}\n', "Hallo, größer", "[{"])
def test_utf16_and_utf32_are_named_with_the_command_that_converts_them(encoding: str, text: str) -> None:
    content = text.encode(encoding)
    with pytest.raises(MalformedError, match=r"^is UTF-.*, not UTF-8; convert it, .* `iconv -f ") as refusal:
        require_narrow(content)
    command = str(refusal.value).partition("`")[2].partition("`")[0].split()
    assert subprocess.run(command, input=content, capture_output=True, check=True).stdout.decode() == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
@example("\ufeff")
@example("a")
def test_utf8_is_not_mistaken_for_another_encoding(text: str) -> None:
    require_narrow(text.encode())
    require_narrow(text.encode("utf-8-sig"))


def test_no_byte_order_mark_is_hidden_by_a_shorter_one() -> None:
    found = [next(name for mark, name in MARKS.items() if content.startswith(mark)) for content in MARKS]
    assert found == [*MARKS.values()] and codecs.BOM_UTF32_LE.startswith(codecs.BOM_UTF16_LE)


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
def test_truncated_content_is_refused(compression: str, first: bytes, last: bytes, data: st.DataObject) -> None:
    before, cut = WRITE[compression](first), WRITE[compression](last)
    length = data.draw(st.integers(1, len(cut) - 1))
    with pytest.raises(OSError, match="Truncated compressed stream") as refusal:
        content_of(before + cut[:length], compression)
    assert refusal.value.errno is None


@pytest.mark.parametrize("compression", sorted(WRITE))
@pytest.mark.parametrize("after", [b"junk", b"\0junk", b"\0\0PK"])
def test_uncompressed_bytes_are_refused_before_and_after_a_member(compression: str, after: bytes) -> None:
    whole = WRITE[compression](b"content")
    for stored in (whole + after + bytes(20), after + whole):
        with pytest.raises(OSError, match=f"damaged {compression} data"):
            content_of(stored, compression)


@pytest.mark.parametrize("compression", ["bzip2", "xz", "gzip"])
def test_damage_in_a_later_member_is_not_taken_for_the_end(compression: str) -> None:
    """If a later member is damaged, bz2.open and lzma.open return only the first member, without an error."""
    second = bytearray(WRITE[compression](b"two"))
    second[1] ^= 255
    with pytest.raises(OSError, match="damaged"):
        content_of(WRITE[compression](b"one") + bytes(second), compression)


def with_window(log: int) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=log, compression_level=1, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # its frame does not state the size
    return bytes(writer.compress(b"text " * 1000) + writer.flush())


def test_the_default_window_limit_of_zstd_is_read_and_a_larger_window_refused() -> None:
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


def test_skippable_frames_are_skipped() -> None:
    frames = [SKIPPABLE, WRITE["zstd"](b"one "), SKIPPABLE, WRITE["zstd"](b"two"), SKIPPABLE]
    assert content_of(b"".join(frames), "zstd") == b"one two"


@pytest.mark.long
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
