"""The objects of a JSON file: one a line, or all of them in one array, whose layout does not matter.

Both are read piece by piece, and no object is larger in memory than a bound allows: a line beyond it is an object that
is passed over, an array with one is refused. Whatever else stands in a file is refused with its line. Lines before the
first wanted one are passed over without being parsed, those of an array are not.
"""

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO, NamedTuple

from pipeline.data.streams import MARK, MalformedError, decoded, not_utf8, require_narrow

PIECE = 2**20  # bytes of an array that are read at a time
SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
SPACE = re.compile(r"[ \t\r\n]*")
STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
LONGEST_OBJECT = 2**25  # bytes
# A value takes 64 bytes or more where two in JSON are enough: of 32 MiB of `[],` a gigabyte.
BYTES_PER_VALUE = 16
LONGEST_TOKEN = 16  # characters: `-Infinity` and `\\ud83d\\ude00` are shorter; a string is as long as it is
DECODER = json.JSONDecoder()
ADVICE = "write each object on a line of its own, as `jq -c .` does, or all in one array"


class Object(NamedTuple):
    """An object with all its text valid Unicode (U+FFFD for half a surrogate pair), and its length as it is stored."""

    row: dict[str, Any]
    """Nothing where it is too long."""
    size: int
    too_long: bool = False


def objects(
    stream: BinaryIO, start: int = 0, stop: int | None = None, longest: int = LONGEST_OBJECT
) -> Iterator[Object]:
    """Objects number `start` to `stop`, in order; blank lines are none.

    A line of more than `longest` bytes, or of more values than one in BYTES_PER_VALUE of these, is an object too long.

    Raises:
        MalformedError: if anything else comes before number `stop`, or an object of an array is too long.
    """
    first, line = _first_piece(stream)
    if first.lstrip().startswith(b"["):
        pieces = itertools.chain([first], iter(partial(stream.read, PIECE), b""))
        return itertools.islice(_of_array(Window(pieces, line, longest)), start, stop)
    lines = ((at, each) for at, each in enumerate(_lines(stream, first, longest), line) if not _is_blank(each, longest))
    return (_of_line(each, number, longest) for number, each in itertools.islice(lines, start, stop))


def _lines(stream: BinaryIO, beginning: bytes, longest: int) -> Iterator[bytes]:
    """The lines, the first with its beginning; of one that is too long a byte more than may be."""
    line = beginning + (b"" if beginning.endswith(b"\n") else stream.readline(max(0, longest + 1 - len(beginning))))
    while line:
        ended = line.endswith(b"\n") or len(line) <= longest
        while not ended:
            ended = not (piece := stream.readline(PIECE)) or piece.endswith(b"\n")
        yield line
        line = stream.readline(longest + 1)


def _is_blank(line: bytes, longest: int) -> bool:
    """False too where nothing is known of the rest."""
    return line.isspace() and len(line) <= longest


def _of_line(line: bytes, number: int, longest: int) -> Object:
    if len(line) <= longest and not _crowded(line, longest):
        return Object(parsed(line, number), len(line))
    if not line.removeprefix(MARK).lstrip().startswith(b"{"):
        told = _shown(line[:PIECE].decode(errors="replace"))
        raise MalformedError(f"holds no JSON object in line {number:,}, but {told}; {ADVICE}")
    return Object({}, len(line), too_long=True)


def _crowded(content: bytes, longest: int) -> bool:
    """True if there are more values than may be; strings are looked into only where commas in them could matter."""
    most = longest // BYTES_PER_VALUE
    if len(content) <= most or _marks(content) <= most:
        return False
    return _marks(STRING.sub("", content.decode(errors="replace")).encode()) > most


def _marks(content: bytes) -> int:
    """Number of characters after which a value stands."""
    return sum(map(content.count, (b",", b":", b"[", b"{")))


def parsed(content: bytes, line: int = 1) -> dict[str, Any]:
    """The object of line number `line`.

    Raises:
        MalformedError: if it holds no object, or more than one.
    """
    text = decoded(content.removeprefix(MARK), line)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        column = f", column {error.pos + 1:,}" if isinstance(error, json.JSONDecodeError) else ""
        raise _refusal(error, f"line {line:,}{column}") from None
    if not isinstance(value, dict):
        raise MalformedError(f"holds no JSON object in line {line:,}, but {_shown(text)}; {ADVICE}")
    return _mended(value, text)


class Window:
    """The part of an array's text that is looked at."""

    def __init__(self, pieces: Iterator[bytes], line: int, longest: int) -> None:
        self._pieces, self._last_line = pieces, line  # of the text
        self._longest = longest
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at = "", 0

    def peek(self) -> str:
        """The next character that is no white space; none at the end of the file."""
        while True:
            space = SPACE.match(self._text, self._at)
            assert space is not None
            self._at = space.end()
            if self._at < len(self._text) or not self._grow():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Passes over a character."""
        self._at += 1

    def object(self) -> Object:
        """The object that begins here.

        Raises:
            MalformedError: if it is none, or too long.
        """
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut_short = error.pos + LONGEST_TOKEN >= len(self._text) or error.msg.startswith("Unterminated string")
                if not (cut_short and self._grow()):
                    raise _refusal(error, f"line {self.line(error.pos):,}") from None
                self._require_room()
            except (ValueError, RecursionError) as error:
                raise _refusal(error, f"line {self.line():,}") from None
            else:
                text, self._at = self._text[self._at : end], end
                return Object(_mended(value, text), len(text))

    def line(self, place: int | None = None) -> int:
        """The number of the line that a place in the text is in."""
        return self._last_line - self._text.count("\n", self._at if place is None else place)

    def _require_room(self) -> None:
        """Looks at what has grown since the object did not end in its first half."""
        size = len(self._text) - self._at
        if size > 2 * max(self._longest, PIECE) or _crowded(self._text[self._at :].encode(), 2 * self._longest):
            told = f"has an object in line {self.line():,} that is too long to be read from an array"
            raise MalformedError(f"{told}; write each object on a line of its own, as `jq -c .[]` does")

    def _grow(self) -> bool:
        """Reads at least as much as there is, so that a long object is not parsed again and again; False at the end."""
        parts, wanted = [self._text[self._at :]], max(1, len(self._text) - self._at)
        while wanted > 0 and (piece := next(self._pieces, None)) is not None:
            parts.append(self._decoded(piece))
            wanted -= len(parts[-1])
        if wanted > 0:
            self._decoded(b"", final=True)
        self._text, self._at = "".join(parts), 0
        return len(parts) > 1

    def _decoded(self, piece: bytes, *, final: bool = False) -> str:
        try:
            text = self._decoder.decode(piece, final)
        except UnicodeDecodeError as error:
            raise not_utf8(error, self._last_line) from None
        self._last_line += text.count("\n")
        return text


def _of_array(window: Window) -> Iterator[Object]:
    window.peek()
    window.skip()
    found = "," if window.peek() != "]" else "]"
    while found == ",":
        if (begins := window.peek()) != "{":
            raise MalformedError(f"has {_shown(begins)} in line {window.line():,} where an object must begin; {ADVICE}")
        yield window.object()
        if (found := window.peek()) not in (",", "]"):
            raise MalformedError(f"has {_shown(found)} in line {window.line():,} where `,` or `]` must be; {ADVICE}")
        if found == ",":
            window.skip()
    window.skip()
    if after := window.peek():
        raise MalformedError(f"has {_shown(after)} in line {window.line():,} after the end of its array; {ADVICE}")


def _first_piece(stream: BinaryIO) -> tuple[bytes, int]:
    """The first line that is not blank, or the beginning of it, and its number; the byte order mark left out.

    Raises:
        MalformedError: if it is not UTF-8 but UTF-16 or UTF-32.
    """
    piece, line = stream.readline(PIECE), 1
    require_narrow(piece)
    piece = piece.removeprefix(MARK)
    while piece.isspace():
        line += piece.endswith(b"\n")
        piece = stream.readline(PIECE)
    return piece, line


def _mended(value: dict[str, Any], text: str) -> dict[str, Any]:
    if not SURROGATE_ESCAPE.search(text):
        return value
    whole: dict[str, Any] = json.loads(LONE_SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
    return whole


def _refusal(error: Exception, place: str) -> MalformedError:
    if isinstance(error, RecursionError):
        return MalformedError(f"is nested too deep: see {place} of it; leave that object out")
    reason = error.msg if isinstance(error, json.JSONDecodeError) else error
    return MalformedError(f"is not JSON: see {place} of it ({reason}); {ADVICE}")


def _shown(text: str) -> str:
    """What stands there, cut short."""
    start = text.strip()
    return f"`{start[:20]}{'…' * (len(start) > 20)}`" if start else "the end of the file"
