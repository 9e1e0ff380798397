"""Text of files, which must be UTF-8: what is not is refused with its place and with the command that converts it."""

import codecs
from collections.abc import Mapping

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
