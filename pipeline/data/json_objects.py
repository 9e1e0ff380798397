"""Objects of a JSON file that has one object per line, or all objects in one array of any layout.

Files are read piece by piece, and the size of an object in memory is bounded. A line that exceeds the bound becomes an
empty object, marked as too long. A file is refused if an object in an array exceeds the bound, or if the file holds
anything except objects. The error names the line. Lines before the first requested object are skipped without parsing,
but objects in an array are always parsed.
"""

import itertools
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from pipeline.data.streams import MARK, MalformedError, Utf8Decoder, decoded, require_narrow

PIECE = 2**20  # bytes of an array read at a time
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SPACE = re.compile(r"[ \t\r\n]*")
STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
LONGEST_OBJECT = 2**25  # bytes
# A value takes at least 64 bytes of memory but may take only 2 bytes of JSON: 32 MiB of `[],` become a gigabyte.
BYTES_PER_VALUE = 16
LONGEST_TOKEN = 16  # characters: `-Infinity` and `\\ud83d\\ude00` are shorter; strings are handled separately
DECODER = json.JSONDecoder()
ADVICE = "write each object on a line of its own, as `jq -c .` does, or all in one array"


class Object(NamedTuple):
    """Parsed object, and the length of its JSON text in the file.

    All text in the object is valid Unicode, since U+FFFD replaces each unpaired half of a surrogate pair.
    """

    row: dict[str, Any]
    """Keys and values of the object; empty if the object is too long."""
    size: int
    """Length of the object's line, in bytes. For an object in an array, length of the object's text, in characters. A
    line that is too long is cut before it is measured."""
    too_long: bool = False


def objects(
    stream: BinaryIO, start: int = 0, stop: int | None = None, longest: int = LONGEST_OBJECT
) -> Iterator[Object]:
    """Return an iterator over objects `start` to `stop`, in order. Blank lines are skipped.

    A line is too long if it has more than `longest` bytes, or more than `longest` / BYTES_PER_VALUE values.

    Raises:
        MalformedError: if something before object `stop` is not an object, or if an object in an array is too long.
    """
    first, line = _first_piece(stream)
    if first.lstrip().startswith(b"["):
        pieces = itertools.chain([first], iter(partial(stream.read, PIECE), b""))
        return itertools.islice(_of_array(ArrayText(pieces, line, longest)), start, stop)
    lines = ((at, each) for at, each in enumerate(_lines(stream, first, longest), line) if not _is_blank(each, longest))
    return (_of_line(each, number, longest) for number, each in itertools.islice(lines, start, stop))


def _lines(stream: BinaryIO, beginning: bytes, longest: int) -> Iterator[bytes]:
    """Yield the lines of a stream from which `beginning`, the start of the first line, was already read.

    A line of more than `longest` bytes is cut after `longest` + 1 bytes.
    """
    line = beginning + (b"" if beginning.endswith(b"\n") else stream.readline(max(0, longest + 1 - len(beginning))))
    while line:
        ended = line.endswith(b"\n") or len(line) <= longest
        while not ended:
            ended = not (piece := stream.readline(PIECE)) or piece.endswith(b"\n")
        yield line
        line = stream.readline(longest + 1)


def _is_blank(line: bytes, longest: int) -> bool:
    """True if a line has only white space. A line that was cut is not blank, since its rest is unknown."""
    return line.isspace() and len(line) <= longest


def _of_line(line: bytes, number: int, longest: int) -> Object:
    if len(line) <= longest and not _crowded(line, longest):
        return Object(parsed(line, number), len(line))
    if not line.removeprefix(MARK).lstrip().startswith(b"{"):
        raise _no_object(line[:PIECE].decode(errors="replace"), number)
    return Object({}, len(line), too_long=True)


def _crowded(content: bytes, longest: int) -> bool:
    """True if JSON content has more than `longest` / BYTES_PER_VALUE values.

    Values are counted by punctuation marks. Strings may contain such marks too. If the marks of the whole content are
    too many, the marks are therefore counted again without the strings.
    """
    most = longest // BYTES_PER_VALUE
    if len(content) <= most or _marks(content) <= most:
        return False
    return _marks(STRING.sub("", content.decode(errors="replace")).encode()) > most


def _marks(content: bytes) -> int:
    """Count the characters after which a value may begin."""
    return sum(map(content.count, (b",", b":", b"[", b"{")))


def parsed(content: bytes, line: int = 1) -> dict[str, Any]:
    """Parse a line that holds one object. `line` is the line's number, for error messages.

    Raises:
        MalformedError: if the line does not hold exactly one object.
    """
    text = decoded(content.removeprefix(MARK), line)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        column = f", column {error.pos + 1:,}" if isinstance(error, json.JSONDecodeError) else ""
        raise _not_json(error, f"line {line:,}{column}") from None
    if not isinstance(value, dict):
        raise _no_object(text, line)
    return _valid_unicode(value, text)


class ArrayText:
    """Sliding window over the text of a JSON array."""

    def __init__(self, pieces: Iterator[bytes], line: int, longest: int) -> None:
        self._pieces, self._longest = pieces, longest
        self._decoder = Utf8Decoder(line)
        self._text, self._at = "", 0

    def peek(self) -> str:
        """Return the next character that is not white space, or an empty string at the end of the file."""
        while True:
            space = SPACE.match(self._text, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Advance by one character."""
        self._at += 1

    def object(self) -> Object:
        """Parse the object that begins at the current position, and advance to the end of the object.

        Raises:
            MalformedError: if there is no valid object, or the object is too long.
        """
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut_short = error.pos + LONGEST_TOKEN >= len(self._text) or error.msg.startswith("Unterminated string")
                if not (cut_short and self._grow()):
                    raise _not_json(error, f"line {self.line(error.pos):,}") from None
                self._require_room()
            except (ValueError, RecursionError) as error:
                raise _not_json(error, f"line {self.line():,}") from None
            else:
                text, self._at = self._text[self._at : end], end
                return Object(_valid_unicode(value, text), len(text))

    def line(self, at: int | None = None) -> int:
        """Return the line number of position `at` in the window's text, by default of the current position."""
        return self._decoder.line - self._text.count("\n", self._at if at is None else at)

    def _require_room(self) -> None:
        """Check the size of an object whose end is not in the text read so far.

        Raises:
            MalformedError: if the object is too long.
        """
        size = len(self._text) - self._at
        if size > 2 * max(self._longest, PIECE) or _crowded(self._text[self._at :].encode(), 2 * self._longest):
            raise MalformedError(
                f"has an object in line {self.line():,} that is too long to be read from an array; write each object "
                "on a line of its own, as `jq -c .[]` does"
            )

    def _grow(self) -> bool:
        """Read more text, as much as the window already holds. Return False at the end of the file.

        Because the text doubles, the parsing of a long object is tried only a few times.
        """
        parts, missing = [self._text[self._at :]], max(1, len(self._text) - self._at)
        while missing > 0 and (piece := next(self._pieces, None)) is not None:
            parts.append(self._decoder.decode(piece))
            missing -= len(parts[-1])
        if missing > 0:
            self._decoder.decode(b"", final=True)
        self._text, self._at = "".join(parts), 0
        return len(parts) > 1


def _of_array(text: ArrayText) -> Iterator[Object]:
    text.peek()
    text.skip()
    follows = "," if text.peek() != "]" else "]"
    while follows == ",":
        if (begins := text.peek()) != "{":
            raise MalformedError(f"has {_excerpt(begins)} in line {text.line():,} where an object must begin; {ADVICE}")
        yield text.object()
        if (follows := text.peek()) not in (",", "]"):
            raise MalformedError(f"has {_excerpt(follows)} in line {text.line():,} where `,` or `]` must be; {ADVICE}")
        if follows == ",":
            text.skip()
    text.skip()
    if after := text.peek():
        raise MalformedError(f"has {_excerpt(after)} in line {text.line():,} after the end of its array; {ADVICE}")


def _first_piece(stream: BinaryIO) -> tuple[bytes, int]:
    """Return the first line that is not blank, and its line number.

    A long line is read only in part. A byte order mark is removed.

    Raises:
        MalformedError: if the file is in UTF-16 or UTF-32.
    """
    piece, line = stream.readline(PIECE), 1
    require_narrow(piece)
    piece = piece.removeprefix(MARK)
    while piece.isspace():
        line += piece.endswith(b"\n")
        piece = stream.readline(PIECE)
    return piece, line


def _valid_unicode(value: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the object `value`, parsed from `text`, with U+FFFD for each unpaired half of a surrogate pair."""
    if not SURROGATE_ESCAPE.search(text):
        return value
    valid: dict[str, Any] = json.loads(LONE_SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
    return valid


def _no_object(text: str, line: int) -> MalformedError:
    return MalformedError(f"holds no JSON object in line {line:,}, but {_excerpt(text)}; {ADVICE}")


def _not_json(error: Exception, place: str) -> MalformedError:
    if isinstance(error, RecursionError):
        return MalformedError(f"is nested too deeply at {place}; leave that object out")
    reason = error.msg if isinstance(error, json.JSONDecodeError) else error
    return MalformedError(f"is not JSON at {place} ({reason}); {ADVICE}")


def _excerpt(text: str) -> str:
    """Quote the beginning of a text, for messages."""
    start = text.strip()
    return f"`{start[:20]}{'…' * (len(start) > 20)}`" if start else "the end of the file"
