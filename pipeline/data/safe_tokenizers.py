"""Tokenizers that strangers made, made safe: bounded in time and memory, deterministic, with errors of one line.

A tokenizer is a program that runs on every document. Text is never encoded as a control token. Patterns that are slow
without ever reaching the library's limit, as many searches just below it are, are not detected.
"""

import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Encoding, Regex, Tokenizer, pre_tokenizers

LOG = logging.getLogger(__name__)

FAILURE = "the tokenizer fails on a document; leave it out, or take another tokenizer"

MOST_IDS, IDS_A_TOKEN = 2**20, 4
"""Ids may be skipped, as by tokens at round numbers; an embedding has a row for each skipped id."""
MOST_GROWTH = 64  # of a text by replacements: 1 in the usual normalizers, which exchange single characters
MOST_WORD = 10**4  # characters; WordPiece takes time in proportion to their square
MOST_AFFIX = 64  # characters, which BPE and WordPiece add to each piece that they look up
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
PLACES = ("{}", "a {} b", "a{}b")


@contextmanager
def tokenizer_errors(failure: str = FAILURE) -> Iterator[None]:
    """Convert errors of the tokenizers library, bare Exceptions and panics, into a ValueError that begins so.

    A panic is not an Exception: nothing that catches errors would catch it.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{failure}: {reason}") from None


def require_bounded(tokenizer: Tokenizer, file: Path) -> None:
    """Check the memory and time that a tokenizer may take.

    Raises:
        ValueError: if it takes too much.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if max(ids, default=0) >= max(MOST_IDS, IDS_A_TOKEN * len(ids)):
        raise _unsound(file, f"has {len(ids):,} tokens with ids up to {max(ids):,}")
    normalizer = None if tokenizer.normalizer is None else json.loads(tokenizer.normalizer.__getstate__())
    if _growth(normalizer) > MOST_GROWTH:
        raise _unsound(file, f"has a normalizer that can make a text more than {MOST_GROWTH} times as long")
    model = tokenizer.model
    if (longest := getattr(model, "max_input_chars_per_word", 0)) > MOST_WORD:
        raise _unsound(file, f"has max_input_chars_per_word {longest}, above {MOST_WORD}")
    affixes = [getattr(model, name, None) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix")]
    if max(map(len, affixes)) > MOST_AFFIX:
        raise _unsound(file, f"puts more than {MOST_AFFIX} characters around each of a text")


def without_dropout(tokenizer: Tokenizer, file: Path) -> None:
    """Turn off dropout of merges, which is for training: a document would have different tokens each time."""
    if getattr(tokenizer.model, "dropout", None):
        _note_dropout(file, tokenizer.model.dropout)
        tokenizer.model.dropout = None


def keep_text(tokenizer: Tokenizer) -> None:
    """Change a tokenizer, if necessary, so that no text is encoded as a control token."""
    if readable := readable_from_text(tokenizer):
        split = pre_tokenizers.Split(Regex(_first_characters(readable)), "isolated")
        existing = [tokenizer.pre_tokenizer] if tokenizer.pre_tokenizer else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*existing, split])


def readable_from_text(tokenizer: Tokenizer) -> list[str]:
    """The control tokens, special ones and those of bytes, whose own text the tokenizer encodes as them.

    Their text is tried alone, as a word and within one. Only tokens count that are absent without it, as a token may
    stand for unknown characters of the surrounding text.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special and token.content]
    ids = {token: tokenizer.token_to_id(token) for token in (*special, *BYTE_TOKENS)}
    known = {token: token_id for token, token_id in ids.items() if token_id is not None}
    without = [each.ids for each in _encoded(tokenizer, [""])]
    encodings = iter(_encoded(tokenizer, known))
    counts = {token: [next(encodings).ids.count(known[token]) for _ in PLACES] for token in known}
    return [
        token
        for token in known
        if any(count > ids.count(known[token]) for count, ids in zip(counts[token], without, strict=True))
    ]


@cache
def _note_dropout(file: Path, dropout: float) -> None:
    LOG.warning("%s drops merges of tokens at random (dropout %g); turned off here, all merges are made", file, dropout)


def _growth(normalizer: Any) -> float:
    """Factor by which replacements can lengthen a text."""
    if normalizer is None:
        return 1
    if normalizer["type"] == "Sequence":
        return math.prod(_growth(each) for each in normalizer["normalizers"])
    if normalizer["type"] == "Prepend":
        return max(1, len(normalizer["prepend"]))
    if normalizer["type"] != "Replace":
        return 1
    content, pattern = normalizer["content"], normalizer["pattern"].get("String")
    if not content:
        return 1
    return max(1, len(content) / len(pattern)) if pattern else 1 + len(content)  # a regex may match between characters


def _unsound(file: Path, property_: str) -> ValueError:
    return ValueError(f"{file} {property_}, which no sound tokenizer does; name another folder with `tokenizer`")


def _encoded(tokenizer: Tokenizer, tokens: Iterable[str]) -> list[Encoding]:
    """Each of the tokens' texts in all PLACES, one after the other."""
    texts = [place.format(token) for token in tokens for place in PLACES]
    return tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def _first_characters(tokens: list[str]) -> str:
    """A pattern of the first characters of tokens, if their other characters follow."""
    rest = defaultdict(list)
    for token in tokens:
        rest[token[0]].append(re.escape(token[1:]))
    return "|".join(f"{re.escape(first)}(?=(?:{'|'.join(others)}))" for first, others in rest.items())
