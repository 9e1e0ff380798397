"""The compression of a text: classical compressors on it, and the table that compares models with them.

Compressors get all documents at once, and each document by itself. The latter is the fair comparison, since a model
begins anew with every window. Yet a window may be shorter than a document, and a compressor has learned nothing before.
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
"""At their strongest usual settings: bytes in, a whole file out."""


@dataclass(frozen=True, kw_only=True)
class Compression:
    """A line of the table; losses are of models alone."""

    compressor: str
    embedding: str = ""
    """How the embeddings of windows are stored, where there are any."""
    sees: str
    """How much of the text it has before it at a time."""
    loss: float | None = None
    """Nats a token, without the embeddings."""
    normalized_loss: float | None = None
    """With them."""
    bits_per_byte: float

    @classmethod
    def of(cls, account: Accounting, *, compressor: str, embedding: str = "", window: int) -> Self:
        """Of a model, on documents that came as text."""
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
    """Each compressor on all documents end to end, and on each by itself: all their bits over all their bytes.

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
    """The results as a table, and what to compare with what."""
    head = ["compressor", "embedding stored as", "sees at a time", "nats a token", "with the embedding", "bits a byte"]
    rows: list[list[str]] = []
    for result in results:
        numbers = (result.loss, result.normalized_loss, result.bits_per_byte)
        shown = ["" if number is None else f"{number:.4f}" for number in numbers]
        rows.append([result.compressor, result.embedding, result.sees, *shown])
    size = sum(len(text.encode()) for text in texts)
    return f"""{markdown_table(head, rows)}
On the last {len(texts):,} documents, {size:,} bytes. A model begins anew with every window, and its weights are not
counted: compare it with compressors that see a document. They have learned nothing before it, and see more of it than
a model whose window is shorter.
"""
