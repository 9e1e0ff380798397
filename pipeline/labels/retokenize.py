"""Labels moved from one tokenizer's tokens to another's, through the bytes that both cover.

S tokens of the source, T tokens of a text or of the target, C characters of a text, B borders between source tokens;
document m.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer, pre_tokenizers

from pipeline.data.corpus import Corpus
from pipeline.data.safe_tokenizers import tokenizer_errors

UNLABELLED_SHARE = 1e-9
"""Below this share of a token, an overlap is rounding."""


class Tokens(NamedTuple):
    """Ids, int32 [T], and the UTF-8 byte at which each token ends, float64 [T]: token k covers ends[k-1] to ends[k]."""

    ids_T: np.ndarray
    ends_T: np.ndarray


def encode_with_ends(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tokens]:
    """The ids of `pipeline.data.tokenizer.encode`, and where in each text's bytes the tokens end.

    Bytes of no token, such as stripped whitespace, go to the token after them, trailing ones to the last. Byte-level
    tokens end where they do; of others, those that cut a character share it evenly, at fractions of a byte.

    Raises:
        UnicodeEncodeError: a ValueError, for a lone surrogate; it has no UTF-8 bytes, and Parquet cannot hold it.
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
    """Nats of each target token, float32 [T]: every source token's are spread evenly over its bytes.

    The total stays. A source token of no bytes adds to the one before it, or at the start to the first target token.
    A target token with a byte of an unlabelled (NaN) source token is NaN; so are all where the source has no tokens.

    Raises:
        ValueError: if the two sides end at different bytes: they are not of one text.
    """
    if np.array_equal(ends_S, ends_T):
        return nats_S.astype(np.float32)
    if not len(ends_S) or not len(ends_T):
        return np.full(len(ends_T), np.nan, np.float32)
    if ends_S[-1] != ends_T[-1]:
        raise ValueError(f"the source's tokens cover {ends_S[-1]:g} bytes, the target's {ends_T[-1]:g}: two texts")
    unlabelled_S = np.isnan(nats_S)
    nats_T = _moved(np.where(unlabelled_S, 0, nats_S), ends_S, ends_T)
    nats_T[_moved(unlabelled_S, ends_S, ends_T) > UNLABELLED_SHARE] = np.nan
    return nats_T.astype(np.float32)


def retokenized(corpus: Corpus, own: Tokenizer, other: Tokenizer) -> Corpus:
    """The documents and labels in the tokens of another tokenizer, by way of their text.

    A document is left out where its tokens are not those that its tokenizer makes of their text, as may be where that
    drops characters or has one token for whatever it does not know: where their bytes lie cannot be told.
    """
    documents = corpus.by_document(corpus.tokens_N)
    texts = own.decode_batch([ids.tolist() for ids in documents], skip_special_tokens=False)
    before, after = encode_with_ends(own, texts), encode_with_ends(other, texts)
    kept = [m for m, ids in enumerate(documents) if np.array_equal(ids, before[m].ids_T)]
    labels = None
    if corpus.labels_N is not None:
        nats = corpus.by_document(corpus.labels_N)
        labels = [move_nats(nats[m], before[m].ends_T, after[m].ends_T) for m in kept]
    return Corpus.of([after[m].ids_T for m in kept], labels, [len(texts[m].encode()) for m in kept])


def _moved(amounts_S: np.ndarray, ends_S: np.ndarray, ends_T: np.ndarray) -> np.ndarray:
    total_S = np.cumsum(amounts_S, dtype=np.float64)
    borders_B = np.unique(np.append(0, ends_S))
    before_B = np.append(0, total_S)[np.searchsorted(ends_S, borders_B, side="right")]
    return np.diff(np.interp(ends_T, borders_B, before_B), prepend=0)


def _ends(encoding: Encoding, text: str) -> np.ndarray:
    pieces = [_byte_level(token) for token in encoding.tokens]
    if b"".join(pieces) == text.encode():
        return np.cumsum([len(piece) for piece in pieces], dtype=np.float64)
    return _ends_of_offsets(np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2), text)


def _ends_of_offsets(offsets_T2: np.ndarray, text: str) -> np.ndarray:
    """Byte ends of tokens known by the characters from which and up to which they reach.

    The n tokens that hold a token's last character all hold what is from the last one's start on: 1/n of it is each's.
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


def _byte_level(token: str) -> bytes:
    return b"".join(BYTE_LEVEL.get(character, character.encode()) for character in token)


def _byte_level_alphabet() -> dict[str, bytes]:
    """A printable Latin-1 character stands for the byte of its code, those from 256 on for the other bytes in order."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = [ord(character) for character in characters if ord(character) < 256]
    others = sorted(set(range(256)) - set(own))
    return {character: bytes([byte]) for character, byte in zip(characters, own + others, strict=True)}


BYTE_LEVEL = _byte_level_alphabet()
