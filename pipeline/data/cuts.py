"""Where text may be cut so that the encodings of its pieces, one after the other, are the encoding of the whole.

Text is cut between an ASCII letter or digit and any other ASCII character, and between anything but whitespace and a
space. Byte-level BPE encodes what its pre-tokenizer splits off without a look at the rest, and pre-tokenizers with the
patterns below split there themselves: no match continues from a letter or digit into another ASCII character, and a
space begins a match or lies within a run of whitespace. No pattern looks behind, and patterns look ahead only from
whitespace, which never precedes a cut. NFC changes nothing across an ASCII character's beginning.

N bytes.
"""

import json
import string
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

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

# A cut is where what ends with a byte and what begins with the next have a bit in common.
WORD, OTHER, UNSURE = 1, 2, 4
ENDS = np.select([ALPHANUMERIC, VISIBLE, np.arange(256) >= 128], [WORD | OTHER, OTHER, UNSURE], 0).astype(np.uint8)
BEGINNINGS = np.where(~ALPHANUMERIC & (np.arange(256) < 128), WORD, 0).astype(np.uint8)
BEGINNINGS[SPACE] = WORD | OTHER | UNSURE


def beginnings(tokenizer: Tokenizer) -> np.ndarray | None:
    """Table of the bytes that may begin a piece, for `cuts`; None if the tokenizer's text must not be cut.

    Added tokens are matched in the raw text before it is split, so no cut may fall inside one.
    """
    if not _splits_at_cuts(tokenizer):
        return None
    added = list(tokenizer.get_added_tokens_decoder().values())
    active = [token for token in added if not (token.special and tokenizer.encode_special_tokens)]
    if any(token.lstrip or token.rstrip or token.single_word for token in active):
        return None
    allowed: np.ndarray = BEGINNINGS.copy()
    if active:  # of these too that are not: text that looks like one of them is not searched for others
        contents = [token.content for token in added]
        if not all(map(str.isascii, contents)):
            return None
        allowed[[ord(character) for content in contents for character in content[1:]]] = 0
    return allowed


def cuts(text_N: np.ndarray, beginnings: np.ndarray) -> np.ndarray:
    """Places of the bytes, in UTF-8, that begin a piece; none of the first byte."""
    shared_N = ENDS[text_N[:-1]] & beginnings[text_N[1:]]
    unsure = np.flatnonzero(shared_N == UNSURE)
    shared_N[unsure[_end_whitespace(text_N, unsure)]] = 0
    return np.flatnonzero(shared_N) + 1


def _end_whitespace(text_N: np.ndarray, places: np.ndarray) -> np.ndarray:
    """True at each place where a non-ASCII whitespace character ends.

    Before the text's first byte its last ones are read: what then looks like whitespace is only not cut after.
    """
    two = text_N[places - 1].astype(np.int64) << 8 | text_N[places]
    three = text_N[places - 2].astype(np.int64) << 16 | two
    ended: np.ndarray = np.isin(two, WHITESPACE_CODES) | np.isin(three, WHITESPACE_CODES)
    return ended


def _splits_at_cuts(tokenizer: Tokenizer) -> bool:
    """True where every part of the tokenizer is known to treat pieces as it treats the whole."""
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
    """True for ByteLevel, after any number of Digits, which look at single characters, and known Splits."""
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
    """Regex of a Split that keeps all of the text; None for any other stage."""
    kept = stage["type"] == "Split" and stage["behavior"] == "Isolated" and not stage["invert"]
    return stage["pattern"].get("Regex") if kept else None


def _keeps_ids(state: Any) -> bool:
    """True for post-processors that add nothing but special tokens, which nobody asks for."""
    if state is None or state["type"] == "ByteLevel":
        return True
    if state["type"] == "Sequence":
        return all(map(_keeps_ids, state["processors"]))
    return state["type"] == "TemplateProcessing" and sum("Sequence" in part for part in state["single"]) == 1


def _state(part: Any) -> Any:
    """A part of a tokenizer as `tokenizer.json` has it."""
    return None if part is None else json.loads(part.__getstate__())
