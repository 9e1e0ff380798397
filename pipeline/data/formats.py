"""What the name of a file of documents tells: how it is written, and whether it is compressed."""

from pathlib import PurePosixPath
from typing import Literal

Format = Literal["Parquet", "JSON lines", "text"]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
JSON_LINES = tuple(kind + end for kind in (".jsonl", ".json", ".ndjson") for end in ("", *COMPRESSIONS))
TEXT = tuple(kind + end for kind in (".txt", ".md", ".text") for end in ("", *COMPRESSIONS))
FOUND_IN_FOLDERS = (".parquet", *JSON_LINES)
"""Text is read where it is named or a glob names it: beside data lie a README.md and a LICENSE.txt."""


def format_of(name: str) -> Format:
    """As what a file is read; any name that tells nothing is taken for Parquet's."""
    if name.lower().endswith(JSON_LINES):
        return "JSON lines"
    return "text" if name.lower().endswith(TEXT) else "Parquet"


def compression_of(name: str) -> str | None:
    """Compression of a file of JSON lines or text; None where its name tells of none."""
    return COMPRESSIONS.get(PurePosixPath(name.lower()).suffix)
