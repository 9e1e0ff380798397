"""Safe use of untrusted tokenizers: bounded time and memory, deterministic results, and errors of one line.

A tokenizer file is in effect a program that runs on every document, so its use of time and memory is bounded. Text is
never encoded as a control token. One danger is not detected: a regex pattern that is slow without reaching the limit of
the regex library, for example because each of many searches stays just below the limit.
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

FAILURE = "the tokenizer fails on a document; leave the document out, or use another tokenizer"

MOST_IDS, IDS_A_TOKEN = 2**20, 4
"""Bounds on token ids. All ids must be below the larger of two numbers: MOST_IDS, and the number of tokens times
IDS_A_TOKEN. A tokenizer may skip ids, for example to place tokens at round numbers, but an embedding has a row for each
skipped id."""
MOST_GROWTH = 64  # factor by which replacements lengthen a text; 1 for usual normalizers, which replace characters
MOST_WORD = 10**4  # characters; WordPiece takes time in proportion to their square
MOST_AFFIX = 64  # characters that BPE and WordPiece add to each piece that they look up
BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
PLACES = ("{}", "a {} b", "a{}b")


@contextmanager
def tokenizer_errors(failure: str = FAILURE) -> Iterator[None]:
    """Convert errors of the tokenizers library into a ValueError whose message begins with `failure`.

    The library raises bare Exceptions and panics. A panic is not an Exception, so ordinary handlers would miss it.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{failure}: {reason}") from None


def require_bounded(tokenizer: Tokenizer, file: Path) -> None:
    """Check that a tokenizer's use of memory and time is bounded.

    Raises:
        ValueError: if the tokenizer may need too much memory or time.
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
        raise _unsound(file, f"adds more than {MOST_AFFIX} characters to each piece of a text")


def without_dropout(tokenizer: Tokenizer, file: Path) -> None:
    """Turn off a tokenizer's BPE dropout and log a warning.

    BPE dropout is meant for training: with it, a document gets different tokens each time.
    """
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
    """Return the names of the special tokens and byte tokens that a text can produce by spelling their names.

    Each name is encoded by itself, as a word and within a word. The same texts are also encoded without the name,
    because the token may also stand for unknown characters of the surrounding text. A name is returned only if its
    token occurs more often with the name than without it.
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
    LOG.warning("%s drops merges at random (dropout %g); turned off here, so that all merges are made", file, dropout)


def _growth(normalizer: Any) -> float:
    """Return the largest factor by which a normalizer can lengthen a text. `normalizer` is its JSON object, or None."""
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
    return ValueError(f"{file} {property_}, unlike any sound tokenizer; name another folder with `tokenizer`")


def _encoded(tokenizer: Tokenizer, tokens: Iterable[str]) -> list[Encoding]:
    """Insert the text of each token into each template in PLACES, and return the encodings of these texts.

    All encodings for one token come before those for the next token.
    """
    texts = [place.format(token) for token in tokens for place in PLACES]
    return tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def _first_characters(tokens: list[str]) -> str:
    """Return a regex for the first characters of tokens.

    The regex matches a first character only where the other characters of the token follow.
    """
    rest = defaultdict(list)
    for token in tokens:
        rest[token[0]].append(re.escape(token[1:]))
    return "|".join(f"{re.escape(first)}(?=(?:{'|'.join(others)}))" for first, others in rest.items())
