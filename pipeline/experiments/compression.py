"""Compression of a text by classical compressors, and a table that compares language models with the compressors.

Each compressor runs on all documents joined together, and on every document separately. Models are compared with the
results per document, since a model starts over with every window. If windows are shorter than documents, compressors
have the advantage that they see more text at a time. Models always have the advantage that they were trained before,
while a compressor starts every document without any knowledge of text.
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
"""Compression functions by name, at the strongest usual settings. Each function returns a whole compressed file."""


@dataclass(frozen=True, kw_only=True)
class Compression:
    """Result of a compressor or of a language model on documents. Only language models have losses in nats."""

    compressor: str
    embedding: str = ""
    """Storage format of the window embeddings; empty for compressors and for models without embeddings."""
    sees: str
    """Name of the unit of text that is compressed independently of other text, for example `a document`."""
    loss: float | None = None
    """Loss in nats per token, without the cost of storing embeddings."""
    normalized_loss: float | None = None
    """Loss in nats per token, with the cost of storing embeddings."""
    bits_per_byte: float
    worth: float | None = None
    """Nats per token by which the loss is lower with a document's own embeddings than with another document's; None
    without embeddings."""
    worth_error: float | None = None
    """Half the width of the 95% confidence interval of `worth` over documents."""

    @classmethod
    def of(cls, account: Accounting, *, compressor: str, embedding: str = "", window: int) -> Self:
        """Return the result of a language model. The accounting must include the size of the documents in bytes."""
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
    """Yield two results per compressor: all documents compressed together, then every document separately.

    Raises:
        ValueError: if all documents are empty.
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
    """Return the results as a Markdown table. A note states the size of the documents, and which results to compare."""
    losses = ["nats per token", "with the embedding", "bits per byte"]
    head = ["compressor", "embedding stored as", "sees at a time", *losses, "worth of the embedding"]
    rows: list[list[str]] = []
    for result in results:
        numbers = (result.loss, result.normalized_loss, result.bits_per_byte)
        shown = ["" if number is None else f"{number:.4f}" for number in numbers]
        worth = "" if result.worth is None else f"{result.worth:.4f} ({result.worth_error:.4f})"
        rows.append([result.compressor, result.embedding, result.sees, *shown, worth])
    size = sum(len(text.encode()) for text in texts)
    return f"""{markdown_table(head, rows)}
Measured on the last {len(texts):,} documents, {size:,} bytes. A model starts over with every window, and its weights
are not counted: compare models with compressors that see one document. A compressor has learned nothing before the
document, but sees more of it than a model with a shorter window. An embedding is worth the nats per token that it
saves, compared with that of another document (in brackets: half the width of the 95% interval over documents).
"""
