"""Compression of a text by classical compressors, and the table that compares models with them.

Each compressor runs on all documents at once and on every document by itself. The fair comparison is by document, since
a model starts over with every window. It favours the compressor where a window is shorter than a document, and the
model in that a compressor has learned nothing before.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

import zstandard

from pipeline.experiments.results import markdown_table

if TYPE_CHECKING:  # imports torch, which takes seconds
    from pipeline.training.evaluation import Accounting

COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = MappingProxyType(
    {
        "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
        "zstd -19": lambda data: zstandard.ZstdCompressor(level=19).compress(data),
        "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    }
)
"""Compressors at their strongest usual settings. Each takes bytes and returns a whole compressed file."""


@dataclass(frozen=True, kw_only=True)
class Compression:
    """A row of the table; only models have losses."""

    compressor: str
    embedding: str = ""
    """Storage format of the window embeddings; empty if there are none."""
    sees: str
    """Amount of text that the compressor sees at a time."""
    loss: float | None = None
    """Nats per token, without the cost of embeddings."""
    normalized_loss: float | None = None
    """Nats per token, with the cost of embeddings."""
    bits_per_byte: float

    @classmethod
    def of(cls, account: Accounting, *, compressor: str, embedding: str = "", window: int) -> Self:
        """Return a model's row; its documents must have come as text."""
        assert account.bits_per_byte is not None
        return cls(
            compressor=compressor,
            embedding=embedding,
            sees=f"{window} tokens",
            loss=account.loss,
            normalized_loss=account.normalized_loss,
            bits_per_byte=account.bits_per_byte,
        )


def classical(texts: Sequence[str]) -> Iterator[Compression]:
    """Yield the bits per byte of each compressor on all documents end to end, then on each document by itself.

    Raises:
        ValueError: if there is no text.
    """
    documents = [text.encode() for text in texts]
    whole = b"".join(documents)
    if not whole:
        raise ValueError(f"the last {len(texts)} documents are empty; hold out more with `held_out`")
    for name, compress in COMPRESSORS.items():
        for sees, parts in (("the whole text", [whole]), ("a document", documents)):
            bits = 8 * sum(len(compress(part)) for part in parts)
            yield Compression(compressor=name, sees=sees, bits_per_byte=bits / len(whole))


def markdown(results: Sequence[Compression], texts: Sequence[str]) -> str:
    """Return the results as a table, with a note on fair comparisons."""
    losses = ["nats per token", "with the embedding", "bits per byte"]
    head = ["compressor", "embedding stored as", "sees at a time", *losses]
    rows: list[list[str]] = []
    for result in results:
        numbers = (result.loss, result.normalized_loss, result.bits_per_byte)
        shown = ["" if number is None else f"{number:.4f}" for number in numbers]
        rows.append([result.compressor, result.embedding, result.sees, *shown])
    size = sum(len(text.encode()) for text in texts)
    return f"""{markdown_table(head, rows)}
Measured on the last {len(texts):,} documents, {size:,} bytes. A model starts over with every window, and its weights
are not counted: compare models with compressors that see one document. A compressor has learned nothing before the
document, but sees more of it than a model with a shorter window.
"""
