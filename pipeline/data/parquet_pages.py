"""Sizes of Parquet's pages, as their own headers tell them: the footer, which may say less, does not have them.

A page is decompressed whole, and each of its dictionary's values may come again in every row.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.utf8 import MalformedError

MOST_PAGE_BYTES = 2**29  # of a page in memory; writers make pages of 1 MiB, or of a thousand values that are longer
HEADER_BYTES = 32  # in which the first three fields of a header are
INT32 = 0x15  # of Thrift's compact protocol: the next field, of this type
DICTIONARY = 2


def dictionary_bytes(stored: pa.NativeFile, column: pq.ColumnChunkMetaData) -> int:
    """Bytes in memory of a column chunk's dictionary; 0 where it begins with another page.

    Raises:
        MalformedError: if the first page is larger than MOST_PAGE_BYTES.
    """
    begins = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset is not None:
        begins = min(begins, column.dictionary_page_offset)
    stored.seek(begins)
    kind, size = _kind_and_size(stored.read(HEADER_BYTES))
    if size > MOST_PAGE_BYTES:
        told = f"has a page of {size:,} bytes in column `{column.path_in_schema}`, more than {MOST_PAGE_BYTES:,}"
        raise MalformedError(f"{told}; write it again in smaller ones")
    return size if kind == DICTIONARY else 0


def _kind_and_size(header: bytes) -> tuple[int, int]:
    """The first two fields; zeros of what is no header, which Arrow refuses when it reads the page."""
    fields, at = [0, 0], 0
    for field in range(2):
        if header[at : at + 1] != bytes([INT32]):
            return 0, 0
        value = shift = 0
        while (at := at + 1) < len(header):
            value |= (header[at] & 0x7F) << shift
            shift += 7
            if header[at] < 0x80:
                break
        fields[field] = (value >> 1) ^ -(value & 1)
        at += 1
    return fields[0], fields[1]
