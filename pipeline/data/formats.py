"""What the name of a file of documents tells: how it is written, and whether it is compressed."""

from pathlib import PurePosixPath
from typing import Literal

Format = Literal["Parquet", "JSON lines", "text", "Arrow"]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
JSON_ENDINGS, TEXT_ENDINGS = (".jsonl", ".json", ".ndjson"), (".txt", ".md", ".text")
JSON_LINES = tuple(kind + end for kind in JSON_ENDINGS for end in ("", *COMPRESSIONS))
TEXT = tuple(kind + end for kind in TEXT_ENDINGS for end in ("", *COMPRESSIONS))
TABLES = tuple(kind + end for kind in (".csv", ".tsv") for end in ("", ".gz", ".zst"))  # which DuckDB reads
ARROW = ".arrow"
FOUND_IN_FOLDERS = (".parquet", *JSON_LINES, ARROW)
"""Text is read where it is named or a glob names it: beside data lie a README.md and a LICENSE.txt."""


def format_of(name: str) -> Format:
    """As what a file is read; any name that tells nothing is taken for Parquet's."""
    if name.lower().endswith(ARROW):
        return "Arrow"
    if name.lower().endswith(JSON_LINES):
        return "JSON lines"
    return "text" if name.lower().endswith(TEXT) else "Parquet"


def compression_of(name: str) -> str | None:
    """Compression of a file of JSON lines or text; None where its name tells of none."""
    return COMPRESSIONS.get(PurePosixPath(name.lower()).suffix)


def remedy(name: str) -> str:
    """Advice for a file that cannot be read as what its name tells."""
    if name.lower().endswith((".parquet", *JSON_LINES, *TEXT)):
        return "write or fetch it again, or give it the ending of what it is"
    if name.lower().endswith(TABLES):
        return f"convert it, as with `duckdb -c \"COPY (FROM '{name}') TO 'documents.parquet'\"`"
    known = ", ".join((".parquet", *JSON_ENDINGS, *TEXT_ENDINGS))
    compressed = f"all but the first also with {', '.join(COMPRESSIONS)}"
    return f"convert it, or give it the ending of what it is: {known}, {compressed}"
