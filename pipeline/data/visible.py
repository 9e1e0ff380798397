"""Strangers' text where people read it: in a terminal, in a log, in Markdown.

Columns, files, subsets, licences and notes have the names that somebody chose. Control characters in them would steer a
terminal, marks of direction would reorder a line, and markup would end a card's section. Letters of every script stay.
"""

import logging
import re
import sys
from html import escape
from typing import Any, TextIO

from pipeline.data.redaction import redacted

MOST_IN_LINE = 4000  # characters of an error: a column's name can have a megabyte
MOST_IN_MARKDOWN = 300
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# C0, DEL and C1; marks, embeddings, overrides and isolates of direction; line ends of Unicode; halves of characters,
# which stand for bytes that are not UTF-8; the byte order mark.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
UNENCODED = re.compile("[\ud800-\udfff]")  # bytes of a name that are not text in the locale
MARKDOWN = re.compile(r"([\\`*_\[\]|~$#!])")
PLAIN_NAME = re.compile(r"[\w.:/@-][\w.:/@ -]*")


def visible(text: str, keep: str = "") -> str:
    """The text with every unsafe character but those of `keep` as Python writes it: `\\x1b`, `\\u202e`, `\\n`."""
    return UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def one_line(text: str) -> str:
    """The text as a line of bounded length without credentials."""
    line = visible(" ".join(redacted(text).split()))
    end = MOST_IN_LINE // 4  # where an error says what to do
    return line if len(line) <= MOST_IN_LINE else f"{line[: MOST_IN_LINE - end]} … {line[-end:]}"


def say(*lines: str, file: TextIO | None = None) -> None:
    """Prints lines, on standard output by default, without credentials; no character in them ends a line."""
    for line in lines:
        print(visible(redacted(line)), file=file or sys.stdout, flush=True)


def in_markdown(text: str) -> str:
    """The text as words of a line of Markdown, bounded in length: it holds no markup and no HTML."""
    shown = text if len(text) <= MOST_IN_MARKDOWN else f"{text[:MOST_IN_MARKDOWN]}…"
    return MARKDOWN.sub(r"\\\1", escape(visible(shown.strip()), quote=False))


def name_in_markdown(name: str) -> str:
    """A name as code, or as in_markdown has it where code could not hold it."""
    is_plain = len(name) <= MOST_IN_MARKDOWN and PLAIN_NAME.fullmatch(name)
    return f"`{name}`" if is_plain else in_markdown(name)


class LineFormatter(logging.Formatter):
    """A record in a line, without credentials; a traceback below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return visible(redacted(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:
        return visible(redacted(super().formatException(ei)), keep="\n")


def log_to_stderr(level: int = logging.WARNING) -> None:
    """Logs in lines, unless somebody set up logging before."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(LOG_FORMAT))
    logging.basicConfig(level=level, handlers=[handler])


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
