"""Sizes of Parquet's pages, as their own headers tell them: the footer, which may say less, does not have them.

A page is decompressed whole, and each of its dictionary's values may come again in every row. Places and headers of
pages are read here, in Thrift's compact protocol, and not with pyarrow's metadata of a column, which in version 26
aborts the process where a footer is damaged.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

from pipeline.data.utf8 import MalformedError

MOST_PAGE_BYTES = 2**29  # of a page in memory; writers make pages of 1 MiB, or of a thousand values that are longer
HEADER_BYTES = 32  # in which the first three fields of a header are
TAIL_BYTES = 8  # the footer's length, and Parquet's mark
DICTIONARY = 2
TRUE, FALSE, BYTE, SHORT, INTEGER, LONG, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


class FirstPage(NamedTuple):
    """The beginning of a column chunk, and its column in the schema."""

    column: str
    offset: int


def first_pages(stored: pa.NativeFile, groups: int) -> list[list[FirstPage]]:
    """The first page of every column chunk, by row group.

    Raises:
        MalformedError: if the footer does not tell, or of another number of groups.
    """
    stored.seek(stored.size() - TAIL_BYTES)
    length = int.from_bytes(stored.read(4), "little")
    stored.seek(stored.size() - TAIL_BYTES - length)
    footer = _Compact(stored.read(length))
    try:
        found = [
            [_first_page(footer) for chunks in footer.fields_of(1) for _ in footer.items(chunks)]
            for listed in footer.fields_of(4)
            for _ in footer.items(listed)
        ]
    except (IndexError, KeyError, RecursionError):
        found = []
    if len(found) != groups:
        raise MalformedError("has a footer that does not tell where its columns begin; write it again")
    return found


def dictionary_bytes(stored: pa.NativeFile, page: FirstPage) -> int:
    """Bytes in memory of a column chunk's dictionary; 0 where it begins with another page.

    Raises:
        MalformedError: if the first page is larger than MOST_PAGE_BYTES.
    """
    stored.seek(page.offset)
    kind, size = _kind_and_size(stored.read(HEADER_BYTES))
    if size > MOST_PAGE_BYTES:
        told = f"has a page of {size:,} bytes in column `{page.column}`, more than {MOST_PAGE_BYTES:,}"
        raise MalformedError(f"{told}; write it again in smaller ones")
    return size if kind == DICTIONARY else 0


def _first_page(footer: "_Compact") -> FirstPage:
    """The first page of the next column chunk."""
    found: dict[int, int] = {}
    column = ""
    for _ in footer.fields_of(3):
        for field, kind in footer.fields():
            if field == 3:
                column, *_ = [footer.text() for _ in footer.items(kind)]
            elif field in (9, 11):  # of the first page of data, and of the dictionary where there is one
                found[field] = footer.integer()
            else:
                footer.skip(kind)
    return FirstPage(column, min(found[9], found.get(11) or found[9]))


def _kind_and_size(header: bytes) -> tuple[int, int]:
    """The first two fields; zeros of what is no header, which Arrow refuses when it reads the page."""
    read, values = _Compact(header), {1: 0, 2: 0}
    try:
        for field, kind in read.fields():
            if field not in values or kind != INTEGER:
                break
            values[field] = read.integer()
    except IndexError:
        return 0, 0
    return values[1], values[2]


class _Compact:
    """Thrift's compact protocol. Whoever is given a field reads its value, or skips it, before the next."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Number and type of each field of a structure."""
        field = 0
        while byte := self._byte():
            field = field + (byte >> 4) if byte >> 4 else self.integer()
            yield field, byte & 0x0F

    def fields_of(self, number: int) -> Iterator[int]:
        """The type of the field of that number; others are skipped."""
        for field, kind in self.fields():
            if field == number:
                yield kind
            else:
                self.skip(kind)

    def items(self, kind: int) -> Iterator[int]:
        """The type of each item of a list."""
        if kind != LIST:
            raise KeyError(kind)
        byte = self._byte()
        count = byte >> 4 if byte >> 4 < 15 else self._unsigned()
        for _ in range(count):
            yield byte & 0x0F

    def integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def text(self) -> str:
        length = self._unsigned()
        self.at += length
        return self.content[self.at - length : self.at].decode(errors="replace")

    def skip(self, kind: int) -> None:
        """Goes past a value."""
        if kind in (BYTE, DOUBLE):
            self.at += 1 if kind == BYTE else 8
        elif kind in (SHORT, INTEGER, LONG):
            self._unsigned()
        elif kind == BINARY:
            self.text()
        elif kind in (LIST, SET):
            for item in self.items(LIST):
                self.skip(BYTE if item in (TRUE, FALSE) else item)
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner)
        elif kind not in (TRUE, FALSE):  # the value of these is their type; Parquet has no maps
            raise KeyError(kind)

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._byte()) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]
