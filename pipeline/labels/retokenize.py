"""Transfer of labels to another tokenizer's tokens: nats are divided among the tokens that cover the same bytes.

S tokens of the source, T tokens of a text or of the target, C characters of a text, B borders between source tokens, m
index of a document.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer, pre_tokenizers

from pipeline.data.corpus import Corpus
from pipeline.data.safe_tokenizers import tokenizer_errors

UNLABELLED_SHARE = 1e-9
"""Tolerated overlap of a target token with an unlabelled source token, as a share of the source token's bytes. A target
token with a larger overlap gets no label."""


class Tokens(NamedTuple):
    """Token ids, int32 [T], and the byte offset in UTF-8 where each token ends, float64 [T].

    Token k covers the bytes from ends[k-1] to ends[k].
    """

    ids_T: np.ndarray
    ends_T: np.ndarray


def encode_with_ends(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """Return each text's tokens: the ids of `pipeline.data.tokenizer.encode`, and the byte where each token ends.

    Bytes that no token covers, such as stripped whitespace, are added to the next token. At the end of a text, they are
    added to the last token. The ends of byte-level tokens are exact. If other tokens split a character, its bytes are
    divided evenly among these tokens, which may then end at fractions of a byte.

    Raises:
        UnicodeEncodeError: if a text has a lone surrogate, which UTF-8 and Parquet cannot hold. This is a ValueError.
    """
    for text in texts:
        text.encode()
    with tokenizer_errors():
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [
        Tokens(np.array(encoding.ids, dtype=np.int32), _ends(encoding, text))
        for encoding, text in zip(encodings, texts, strict=True)
    ]


def move_nats(nats_S: np.ndarray, ends_S: np.ndarray, ends_T: np.ndarray) -> np.ndarray:
    """Return the nats of each target token, float32 [T]. Each source token's nats are spread evenly over its bytes.

    The total is preserved. The nats of a source token without bytes are added to the source token before it or, at the
    start, to the first target token. A target token that overlaps an unlabelled (NaN) source token is NaN. All target
    tokens are NaN if the source has no tokens.

    Raises:
        ValueError: if the last tokens of source and target end at different bytes, because the texts then differ.
    """
    if np.array_equal(ends_S, ends_T):
        return nats_S.astype(np.float32)
    if not len(ends_S) or not len(ends_T):
        return np.full(len(ends_T), np.nan, np.float32)
    if ends_S[-1] != ends_T[-1]:
        raise ValueError(f"the source's tokens cover {ends_S[-1]:g} bytes, the target's {ends_T[-1]:g}; texts differ")
    unlabelled_S = np.isnan(nats_S)
    nats_T = _moved(np.where(unlabelled_S, 0, nats_S), ends_S, ends_T)
    nats_T[_moved(unlabelled_S, ends_S, ends_T) > UNLABELLED_SHARE] = np.nan
    return nats_T.astype(np.float32)


class Retokenized(NamedTuple):
    """Documents and labels in the tokens of another tokenizer, and the documents' indices in the source."""

    corpus: Corpus
    kept: list[int]
    """Index of each document of `corpus` among the documents of the source."""


def retokenized(corpus: Corpus, own: Tokenizer, other: Tokenizer) -> Retokenized:
    """Transfer documents and labels from the tokens of `own` to those of `other`.

    Each document is decoded with `own`, and its text is encoded again with `own`. If the encoding differs from the
    document's tokens, the bytes of these tokens are unknown, and the document is dropped. This happens if `own` drops
    characters, or has one token for all unknown text.
    """
    documents = corpus.by_document(corpus.tokens_N)
    texts = own.decode_batch([ids.tolist() for ids in documents], skip_special_tokens=False)
    before, after = encode_with_ends(own, texts), encode_with_ends(other, texts)
    kept = [m for m, ids in enumerate(documents) if np.array_equal(ids, before[m].ids_T)]
    labels = None
    if corpus.labels_N is not None:
        nats = corpus.by_document(corpus.labels_N)
        labels = [move_nats(nats[m], before[m].ends_T, after[m].ends_T) for m in kept]
    moved = Corpus.of([after[m].ids_T for m in kept], labels, [len(texts[m].encode()) for m in kept])
    return Retokenized(moved, kept)


def _moved(amounts_S: np.ndarray, ends_S: np.ndarray, ends_T: np.ndarray) -> np.ndarray:
    total_S = np.cumsum(amounts_S, dtype=np.float64)
    borders_B = np.unique(np.append(0, ends_S))
    before_B = np.append(0, total_S)[np.searchsorted(ends_S, borders_B, side="right")]
    return np.diff(np.interp(ends_T, borders_B, before_B), prepend=0)


def _ends(encoding: Encoding, text: str) -> np.ndarray:
    pieces = [bytes_of_token(token) for token in encoding.tokens]
    if b"".join(pieces) == text.encode():
        return np.cumsum([len(piece) for piece in pieces], dtype=np.float64)
    return _ends_of_offsets(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), text)


def _ends_of_offsets(offsets_T2: np.ndarray, text: str) -> np.ndarray:
    """Return the byte position where each token ends, float64 [T].

    `offsets_T2` has the range of characters that each token covers. If several tokens share a character, the ranges of
    all sharing tokens end with this character. The sharing tokens then divide some bytes evenly: the bytes from the
    start of the last sharing token's range to the end of the character.
    """
    if not len(offsets_T2):
        return np.empty(0)
    bytes_C = np.cumsum([0, *(len(character.encode()) for character in text)], dtype=np.float64)
    starts_T, stops_T = np.maximum.accumulate(offsets_T2).T
    first_T = np.searchsorted(stops_T, stops_T - 1, side="right")
    holders_T = np.maximum(np.searchsorted(starts_T, stops_T - 1, side="right") - first_T, 1)
    shared_from_T = bytes_C[np.minimum(starts_T[first_T + holders_T - 1], stops_T)]
    share_T = np.minimum((np.arange(len(stops_T)) + 1 - first_T) / holders_T, 1)
    ends_T = np.maximum.accumulate(shared_from_T + share_T * (bytes_C[stops_T] - shared_from_T))
    ends_T[-1] = bytes_C[-1]
    return ends_T


def bytes_of_token(token: str) -> bytes:
    """Return the bytes that a token of a byte-level vocabulary stands for."""
    return b"".join(BYTE_LEVEL.get(character, character.encode()) for character in token)


def _byte_level_alphabet() -> dict[str, bytes]:
    """Return a mapping from each character of a byte-level vocabulary to the byte that the character stands for.

    Printable Latin-1 characters stand for their own codes. The other characters, in order, stand for the remaining
    bytes.
    """
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = [ord(character) for character in characters if ord(character) < 256]
    others = sorted(set(range(256)) - set(own))
    return {character: bytes([byte]) for character, byte in zip(characters, own + others, strict=True)}


BYTE_LEVEL = _byte_level_alphabet()
