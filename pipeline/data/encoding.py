"""Fast encoding of text: texts are cut into pieces, and each distinct piece is encoded only once.

Cuts are placed where the joined encodings of the pieces equal the encoding of the whole text. There are two kinds of
such places: between an ASCII letter or digit and a following ASCII character of another kind, and before a space that
follows anything except whitespace.

Byte-level BPE encodes each match of its pre-tokenizer separately, and the patterns below always split at these places.
No match continues from a letter or digit into an ASCII character of another kind, and a space either begins a match or
lies within a run of whitespace. No pattern looks behind, and patterns look ahead only from whitespace, which never
precedes a cut. NFC changes nothing across the beginning of an ASCII character. Other tokenizers encode each text as a
whole.

Suffixes of array names: M documents, N bytes of all documents end to end, P pieces, U distinct pieces, T tokens, V
token ids.
"""

import json
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise, repeat
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer, models, pre_tokenizers

from pipeline.data.safe_tokenizers import tokenizer_errors

# The cache takes 37 MiB for English, where 7 million pieces include 2^18 distinct ones, and at most 210 MiB.
MOST_PIECES, MOST_CHARACTERS = 2**18, 32

# Encoding a new piece takes up to twice as long as encoding it within a whole text. In 2 MiB of English, a tenth of the
# pieces are distinct. In random numbers or base64, nearly all pieces are distinct, and caching them would only displace
# words. The share of distinct pieces in a shorter text predicts nothing.
MOST_UNIQUE, MEASURABLE_PIECES = 1 / 2, 2**16
RUN_BYTES = 2**21  # of text cut at a time: the pieces take 60 times this memory, and their encodings do too
RUN = 1024  # new pieces encoded as one text: encoding them separately would take three times as long
KEPT = "pieces"


class Encoded(NamedTuple):
    """Token ids of several texts or pieces, joined end to end as int32 [T].

    The ids of the text or piece with index k are `ids_T[borders[k] : borders[k + 1]]`.
    """

    ids_T: np.ndarray
    borders: np.ndarray


NOTHING = Encoded(np.empty(0, np.int32), np.zeros(1, np.int64))


@dataclass
class Pieces:
    """Cache of the pieces that a tokenizer has encoded.

    The cache is emptied when it holds MOST_PIECES pieces. Threads may share a cache.
    """

    beginnings: np.ndarray
    """Table of the bytes that may begin a piece, as returned by the function `beginnings`."""
    bytes_V: np.ndarray | None
    """Number of bytes of text that each token id represents, as returned by `token_bytes`."""
    places: dict[str, int] = field(default_factory=dict)
    encoded: Encoded = NOTHING
    lock: Lock = field(default_factory=Lock)

    def take(self, tokenizer: Tokenizer, pieces: pa.Array) -> Encoded | None:
        """Return the encodings of the pieces, in order, or None if too few pieces repeat for the cache to save time."""
        coded = pieces.dictionary_encode()
        if len(pieces) >= MEASURABLE_PIECES and len(coded.dictionary) > MOST_UNIQUE * len(pieces):
            return None
        unique = coded.dictionary.to_pylist()
        with self.lock:
            place_U = self._places(unique)
            new = np.flatnonzero(place_U < 0).tolist()
            new.sort(key=lambda place: len(unique[place]) > MOST_CHARACTERS)  # pieces too long for the cache come last
            place_U[new] = len(self.places) + np.arange(len(new))
            encoded = self._with([unique[place] for place in new], tokenizer)
        return _gathered(encoded, place_U[coded.indices.to_numpy()])

    def _places(self, pieces: Sequence[str]) -> np.ndarray:
        """Return the index of each piece in the cached encodings, or -1 for a piece that is not cached.

        A full cache is emptied first.
        """
        if len(self.places) >= MOST_PIECES:
            self.places, self.encoded = {}, NOTHING
        return np.fromiter(map(self.places.get, pieces, repeat(-1)), np.int64, len(pieces))

    def _with(self, pieces: Sequence[str], tokenizer: Tokenizer) -> Encoded:
        """Return the cached encodings, followed by the encodings of `pieces`, which are not in the cache yet.

        A piece is added to the cache if it is short and the cache has room.
        """
        before, new, known = self.encoded, self._encoded(pieces, tokenizer), len(self.places)
        kept = [piece for piece in pieces[: MOST_PIECES - known] if len(piece) <= MOST_CHARACTERS]
        self.places.update(zip(kept, range(known, MOST_PIECES), strict=False))
        self.encoded = _joined(before, Encoded(new.ids_T[: new.borders[len(kept)]], new.borders[: len(kept) + 1]))
        return self.encoded if len(kept) == len(pieces) else _joined(before, new)

    def _encoded(self, pieces: Sequence[str], tokenizer: Tokenizer) -> Encoded:
        """Return the encodings of pieces that are not in the cache.

        To save time, up to RUN consecutive pieces are joined into one text and encoded together. Two pieces are joined
        only if `cuts` would cut the joined text between them. Each token is then assigned to a piece by the number of
        bytes that the token represents. If these numbers are unknown, each piece is encoded separately.
        """
        if self.bytes_V is None:
            return _encoded(tokenizer, pieces)
        text_N, borders_U = utf8_bytes(pa.array(pieces, pa.large_string()))
        cut_N = np.zeros(len(text_N) + 1, dtype=bool)
        cut_N[cuts(text_N, self.beginnings)] = True
        begins_U = ~cut_N[borders_U[:-1]]
        begins_U[::RUN] = True
        runs = _texts(text_N, np.append(borders_U[:-1][begins_U], borders_U[-1]))
        ids_T, _ = _encoded(tokenizer, runs.to_pylist())
        ends_T = np.cumsum(self.bytes_V[ids_T])
        if not len(ends_T) or ends_T[-1] < len(text_N):  # bytes without a token were dropped
            return _encoded(tokenizer, pieces)
        return Encoded(ids_T, np.searchsorted(ends_T, borders_U, side="right"))


def encode_column(tokenizer: Tokenizer, column: pa.Array | pa.ChunkedArray) -> list[np.ndarray]:
    """Return an int32 array of token ids for each text of an Arrow column, without special tokens.

    The array for a null is empty.
    """
    pieces = pieces_of(tokenizer)
    texts = pc.fill_null(column, "") if column.null_count else column
    if pieces is None:
        encoded = _encoded(tokenizer, texts.to_pylist())
    else:
        encoded = _by_piece(tokenizer, texts.cast(pa.large_string()), pieces)
    return np.split(encoded.ids_T, encoded.borders[1:-1])[: len(texts)]  # np.split returns one array for no texts


def pieces_of(tokenizer: Tokenizer) -> Pieces | None:
    """Return a tokenizer's cache of pieces, or None if the tokenizer must encode each text as a whole.

    The cache is kept on the tokenizer, which is inspected only once and must not be changed afterwards.
    """
    attributes = vars(tokenizer)
    if KEPT not in attributes:
        allowed = beginnings(tokenizer)
        attributes[KEPT] = None if allowed is None else Pieces(allowed, token_bytes(tokenizer))
    kept: Pieces | None = attributes[KEPT]
    return kept


def token_bytes(tokenizer: Tokenizer) -> np.ndarray | None:
    """Return the number of bytes of text that each token id of byte-level BPE represents, int64 [V].

    Return None if an id may represent different numbers of bytes, because of a normalizer, a token for unknown bytes,
    or affixes of tokens.
    """
    model, vocabulary = tokenizer.model, tokenizer.get_vocab()
    covered = vocabulary.keys() >= set(pre_tokenizers.ByteLevel.alphabet())
    replaced = not covered and (model.unk_token is not None or model.byte_fallback)
    if tokenizer.normalizer is not None or replaced or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    bytes_V = np.zeros(max(vocabulary.values()) + 1, np.int64)
    bytes_V[list(vocabulary.values())] = list(map(len, vocabulary))
    return bytes_V


def utf8_bytes(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the UTF-8 bytes of all texts end to end, uint8 [N], and the borders of the texts, int64 [M + 1]."""
    _, offsets, data = texts.buffers()
    borders_M = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data, np.uint8)[borders_M[0] : borders_M[-1]], borders_M - borders_M[0]


def _by_piece(tokenizer: Tokenizer, texts: pa.Array | pa.ChunkedArray, pieces: Pieces) -> Encoded:
    """Encode texts piece by piece. About RUN_BYTES of text are processed at a time, or more if a piece is longer."""
    text_N, borders_M = utf8_bytes(texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts)
    begins_N = np.zeros(len(text_N) + 1, dtype=bool)
    begins_N[cuts(text_N, pieces.beginnings)] = True
    begins_N[borders_M] = True
    borders_P = np.flatnonzero(begins_N)
    starts = np.searchsorted(borders_P, np.arange(0, len(text_N), RUN_BYTES)).tolist()
    ids, places, lengths = [np.empty(0, np.int32)], [borders_P[:1]], [np.zeros(1, np.int64)]
    for start, stop in pairwise(dict.fromkeys([*starts, len(borders_P) - 1])):
        run_P = borders_P[start : stop + 1]
        inside = borders_M[(borders_M > run_P[0]) & (borders_M < run_P[-1])]
        parts = np.unique(np.concatenate([run_P[:1], inside, run_P[-1:]]))
        encoded = pieces.take(tokenizer, _texts(text_N, run_P))
        if encoded is None:
            encoded = _encoded(tokenizer, _texts(text_N, parts).to_pylist())
        else:
            encoded = Encoded(encoded.ids_T, encoded.borders[np.searchsorted(run_P, parts)])
        ids.append(encoded.ids_T)
        places.append(parts[1:])
        lengths.append(np.diff(encoded.borders))
    borders = np.cumsum(np.concatenate(lengths))[np.searchsorted(np.concatenate(places), borders_M)]
    return Encoded(np.concatenate(ids), borders)


def _texts(text_N: np.ndarray, borders: np.ndarray) -> pa.LargeStringArray:
    return pa.LargeStringArray.from_buffers(len(borders) - 1, pa.py_buffer(borders), pa.py_buffer(text_N))


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Encoded:
    with tokenizer_errors():
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    borders = _borders(np.fromiter(map(len, ids), np.int64, len(ids)))
    return Encoded(np.fromiter(chain.from_iterable(ids), np.int32, borders[-1]), borders)


def _gathered(encoded: Encoded, place_P: np.ndarray) -> Encoded:
    """Return the encodings with the indices `place_P`, in this order. An index may occur several times."""
    lengths_P = np.diff(encoded.borders)[place_P]
    borders = _borders(lengths_P)
    place_T = np.repeat(encoded.borders[place_P] - borders[:-1], lengths_P) + np.arange(borders[-1])
    return Encoded(encoded.ids_T[place_T], borders)


def _joined(first: Encoded, second: Encoded) -> Encoded:
    borders = np.concatenate([first.borders, first.borders[-1] + second.borders[1:]])
    return Encoded(np.concatenate([first.ids_T, second.ids_T]), borders)


def _borders(lengths: np.ndarray) -> np.ndarray:
    return np.append(0, np.cumsum(lengths))


GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")
PATTERNS = frozenset((GPT_2, LLAMA_3, QWEN_2))

SPACE = ord(" ")
ALPHANUMERIC = np.array([chr(byte) in string.ascii_letters + string.digits for byte in range(256)])
VISIBLE = np.array([0x21 <= byte <= 0x7E for byte in range(256)])
WHITESPACE = [chr(code) for code in range(128, 2**16) if chr(code).isspace()]
WHITESPACE_CODES = np.array([int.from_bytes(character.encode()) for character in WHITESPACE])

# A cut lies between two bytes if ENDS of the first and BEGINNINGS of the second have a bit in common.
WORD, OTHER, UNSURE = 1, 2, 4
ENDS = np.select([ALPHANUMERIC, VISIBLE, np.arange(256) >= 128], [WORD | OTHER, OTHER, UNSURE], 0).astype(np.uint8)
BEGINNINGS = np.where(~ALPHANUMERIC & (np.arange(256) < 128), WORD, 0).astype(np.uint8)
BEGINNINGS[SPACE] = WORD | OTHER | UNSURE


def cuts(text_N: np.ndarray, beginnings: np.ndarray) -> np.ndarray:
    """Return the index of each byte that begins a piece, except the first byte of the text."""
    shared_N = ENDS[text_N[:-1]] & beginnings[text_N[1:]]
    unsure = np.flatnonzero(shared_N == UNSURE)
    shared_N[unsure[_end_whitespace(text_N, unsure)]] = 0
    return np.flatnonzero(shared_N) + 1


def _end_whitespace(text_N: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return a bool for each index in `places`: True if a non-ASCII whitespace character ends at this index.

    A character has two or three bytes. At the beginning of the text, indices of earlier bytes are negative and select
    bytes at the end of the text. The result may then be a wrong True, which only prevents a cut.
    """
    two = text_N[places - 1].astype(np.int64) << 8 | text_N[places]
    three = text_N[places - 2].astype(np.int64) << 16 | two
    ended: np.ndarray = np.isin(two, WHITESPACE_CODES) | np.isin(three, WHITESPACE_CODES)
    return ended


def beginnings(tokenizer: Tokenizer) -> np.ndarray | None:
    """Return the table with which `cuts` finds pieces, or None if the tokenizer must encode each text as a whole.

    Added tokens are matched in the raw text before it is split, so no cut may fall inside an added token.
    """
    if not _splits_at_cuts(tokenizer):
        return None
    added = list(tokenizer.get_added_tokens_decoder().values())
    active = [token for token in added if not (token.special and tokenizer.encode_special_tokens)]
    if any(token.lstrip or token.rstrip or token.single_word for token in active):
        return None
    allowed: np.ndarray = BEGINNINGS.copy()
    if active:  # text that matches an inactive token is not searched for active tokens
        contents = [token.content for token in added]
        if not all(map(str.isascii, contents)):
            return None
        allowed[[ord(character) for content in contents for character in content[1:]]] = 0
    return allowed


def _splits_at_cuts(tokenizer: Tokenizer) -> bool:
    """True if every part of the tokenizer has the same effect on the separate pieces of a text as on the whole text."""
    return (
        isinstance(tokenizer.model, models.BPE)
        and not tokenizer.model.dropout
        and _state(tokenizer.normalizer) in (None, {"type": "NFC"})
        and _pre_tokenizers_split(_state(tokenizer.pre_tokenizer))
        and _keeps_ids(_state(tokenizer.post_processor))
        and tokenizer.truncation is None
        and tokenizer.padding is None
    )


def _pre_tokenizers_split(state: Any) -> bool:
    """True if the pre-tokenizers are known to split a text at every place where this module cuts it.

    The last stage must be ByteLevel without a prefix space. Each earlier stage must be Digits with any settings, or a
    Split by one of PATTERNS. If there is no Split stage, ByteLevel must use its own pattern.
    """
    if state is None:
        return False
    *first, last = state["pretokenizers"] if state["type"] == "Sequence" else [state]
    patterns = [_pattern(stage) for stage in first if stage["type"] != "Digits"]
    return (
        last["type"] == "ByteLevel"
        and not last["add_prefix_space"]
        and all(pattern in PATTERNS for pattern in patterns)
        and bool(last["use_regex"] or patterns)
    )


def _pattern(stage: dict[str, Any]) -> str | None:
    """Return the regex of a Split stage that keeps all text, or None for any other stage."""
    kept = stage["type"] == "Split" and stage["behavior"] == "Isolated" and not stage["invert"]
    return stage["pattern"].get("Regex") if kept else None


def _keeps_ids(state: Any) -> bool:
    """True if the post-processor adds only special tokens, which this module never requests."""
    if state is None or state["type"] == "ByteLevel":
        return True
    if state["type"] == "Sequence":
        return all(map(_keeps_ids, state["processors"]))
    return state["type"] == "TemplateProcessing" and sum("Sequence" in part for part in state["single"]) == 1


def _state(part: Any) -> Any:
    """Return the settings of a part of a tokenizer, as they are stored in `tokenizer.json`."""
    return None if part is None else json.loads(part.__getstate__())
