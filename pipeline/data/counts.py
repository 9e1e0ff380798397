"""Counts for a shard's receipt: rows, tokens, labels, and documents with text for which the tokenizer has no token.

Depending on the tokenizer, text without a token becomes the unknown token or is dropped.

Suffixes of array names: M documents; N bytes or tokens of all documents, joined end to end.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer, pre_tokenizers

from pipeline.data.documents import Column
from pipeline.data.encoding import utf8_bytes
from pipeline.data.safe_tokenizers import readable_from_text, tokenizer_errors
from pipeline.data.skipped import empty_rows, replaced_rows, too_long_rows
from schemas.annotations import ENTROPY, INPUT_IDS, NUM_TOKENS
from schemas.receipts import BIN_NATS, BINS, Counts

KEPT = "unknown"


def count(source: pa.RecordBatch, annotated: pa.Table, column: Column, tokenizer: Tokenizer | None) -> Counts:
    """Count the rows, tokens and labels of a batch, and its defective documents.

    A document is defective if it is empty or too long, contains U+FFFD, or has text for which the tokenizer has no
    token. `source` has the rows before annotation, and `annotated` has the same rows after annotation. `tokenizer` is
    None if documents are already tokenized.
    """
    entropies = pc.list_flatten(annotated.column(ENTROPY)).drop_null().to_numpy()
    documents = source.column(column.name)
    unknown = documents_with_unknown_text(tokenizer, documents, annotated.column(INPUT_IDS)) if tokenizer else 0
    return Counts(
        rows=len(source),
        rows_without_text=empty_rows(documents),
        rows_too_long=too_long_rows(source),
        rows_with_replacements=replaced_rows(documents),
        rows_with_unknown_text=unknown,
        tokens=pc.sum(annotated.column(NUM_TOKENS)).as_py() or 0,
        labelled_tokens=len(entropies),
        text_bytes=0 if column.tokenized else pc.sum(pc.binary_length(documents)).as_py() or 0,
        arrow_bytes=annotated.nbytes,
        nats=float(entropies.sum(dtype=np.float64)),
        histogram=histogram(entropies),
    )


def histogram(entropies_N: np.ndarray) -> tuple[int, ...]:
    """Return the number of entropies in each of BINS bins: a bin below 0, then bins of BIN_NATS nats from 0 up.

    The last bin has no upper end.
    """
    bins_N = np.clip(np.floor(entropies_N / BIN_NATS) + 1, 0, BINS - 1).astype(np.int64)
    return tuple(np.bincount(bins_N, minlength=BINS).tolist())


@dataclass(frozen=True)
class Unknown:
    """Text for which a tokenizer has no token."""

    ids: Sequence[int]
    """Token ids that a tokenizer may return for text without a token, for example the id of the unknown token."""
    bytes_256: np.ndarray
    """Mask of the 256 bytes: True for a byte that byte-level BPE drops for lack of a token."""
    alphabet: frozenset[str] | None
    """Characters that have a token, if the tokenizer is not byte-level and drops all other characters; otherwise
    None."""


def unknown_text_of(tokenizer: Tokenizer) -> Unknown:
    """Return the ids, bytes and characters by which to recognise text for which a tokenizer has no token.

    The result is cached on the tokenizer, which must not be changed afterwards.
    """
    attributes = vars(tokenizer)
    if KEPT not in attributes:
        attributes[KEPT] = _find_unknown(tokenizer)
    kept: Unknown = attributes[KEPT]
    return kept


def documents_with_unknown_text(tokenizer: Tokenizer, texts: pa.Array, ids: pa.ChunkedArray) -> int:
    """Return the number of documents with text for which a tokenizer has no token.

    `ids` has a list of token ids for each document.
    """
    unknown = unknown_text_of(tokenizer)
    lists, strings = ids.combine_chunks(), pc.fill_null(texts, "").cast(pa.large_string())
    ids_N, offsets = lists.flatten().to_numpy(), lists.offsets.to_numpy()
    found_M = _any(np.isin(ids_N, unknown.ids), offsets - offsets[0])
    if unknown.bytes_256.any():
        text_N, borders = utf8_bytes(strings)
        found_M |= _any(unknown.bytes_256[text_N], borders)
    if unknown.alphabet is not None:
        found_M |= [not unknown.alphabet.issuperset(_characters(tokenizer, text)) for text in strings.to_pylist()]
    return int(found_M.sum())


def _find_unknown(tokenizer: Tokenizer) -> Unknown:
    settings, vocabulary = json.loads(tokenizer.to_str()), tokenizer.get_vocab(with_added_tokens=False)
    model = settings["model"]
    stand_ins = {tokenizer.token_to_id(token) for token in readable_from_text(tokenizer)}
    stand_ins |= {model.get("unk_id"), vocabulary.get(model.get("unk_token"))}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_level = any('"ByteLevel"' in json.dumps(settings[part]) for part in ("normalizer", "pre_tokenizer"))
    vanishing = model["type"] == "BPE" and model.get("unk_token") not in vocabulary and not model.get("byte_fallback")
    lacking = sorted(set(alphabet) - vocabulary.keys()) if byte_level and vanishing else []
    bytes_256 = np.zeros(256, dtype=bool)
    bytes_256[[_byte(character) for character in lacking]] = True
    characters = frozenset(piece for piece in vocabulary if len(piece) == 1) if vanishing and not byte_level else None
    return Unknown([token for token in stand_ins if token is not None], bytes_256, characters)


def _byte(character: str) -> int:
    """Return the byte that a character of byte-level BPE's alphabet represents.

    A printable character represents its own byte. Any other character represents an unprintable byte.
    """
    printable = {chr(byte) for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
    others = [byte for byte in range(256) if chr(byte) not in printable]
    return ord(character) if character in printable else others[ord(character) - 256]


def _characters(tokenizer: Tokenizer, text: str) -> set[str]:
    """Return the characters that the tokenizer's model must encode: those of the normalized and pre-tokenized text."""
    with tokenizer_errors():
        normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(normal) if tokenizer.pre_tokenizer else [(normal, None)]
    return set().union(*(piece for piece, _ in pieces))


def _any(marks_N: np.ndarray, borders: np.ndarray) -> np.ndarray:
    """Return a bool for each document: True if there is a mark between the document's borders."""
    marks = np.append(0, np.cumsum(marks_N))
    marked: np.ndarray = np.diff(marks[borders]) > 0
    return marked
