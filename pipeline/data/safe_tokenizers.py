"""Limits for tokenizers that strangers made: no chance, no work and no memory beyond what a text asks for, no panic.

A tokenizer is a program that runs on every document. Patterns that take long without ever being given up, as many
searches each just below the library's limit do, are not found out.
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

MOST_IDS, IDS_A_TOKEN = 2**20, 4
"""Ids may be left out, as where tokens have round numbers; an embedding has a row for each that is."""
MOST_GROWTH = 64  # of a text, by what is put in place of others: 1 in the usual ones, which exchange single characters
MOST_WORD = 10**4  # characters; WordPiece takes their square
MOST_AFFIX = 64  # characters, which BPE and WordPiece put around every one that they look up


@contextmanager
def failures_told(doing: str) -> Iterator[None]:
    """Raises failures of the tokenizers library, bare Exceptions and panics, as ValueErrors of one line.

    A panic is no Exception: nothing that catches errors would catch it.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())
        raise ValueError(f"{doing}: {reason}") from None


def require_bounded(tokenizer: Tokenizer, file: Path) -> None:
    """Checks what a tokenizer may ask of memory and time.

    Raises:
        ValueError: if it asks for more.
    """
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    if max(ids, default=0) >= max(MOST_IDS, IDS_A_TOKEN * len(ids)):
        raise _refused(file, f"has {len(ids):,} tokens with ids up to {max(ids):,}")
    normalizer = None if tokenizer.normalizer is None else json.loads(tokenizer.normalizer.__getstate__())
    if _growth(normalizer) > MOST_GROWTH:
        raise _refused(file, f"has a normalizer that can make a text more than {MOST_GROWTH} times as long")
    model = tokenizer.model
    if (longest := getattr(model, "max_input_chars_per_word", 0)) > MOST_WORD:
        raise _refused(file, f"has max_input_chars_per_word {longest}, above {MOST_WORD}")
    affixes = [getattr(model, name, None) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix")]
    if max(map(len, affixes)) > MOST_AFFIX:
        raise _refused(file, f"puts more than {MOST_AFFIX} characters around each of a text")


def without_chance(tokenizer: Tokenizer, file: Path) -> None:
    """Turns off the dropout of merges, which is for training: a document would have other tokens each time."""
    if getattr(tokenizer.model, "dropout", None):
        _note_dropout(file, tokenizer.model.dropout)
        tokenizer.model.dropout = None


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


def _refused(file: Path, told: str) -> ValueError:
    return ValueError(f"{file} {told}, which no sound tokenizer does; name another folder with --tokenizer")


BYTE_TOKENS = tuple(f"<0x{byte:02X}>" for byte in range(256))
PLACES = ("{}", "a {} b", "a{}b")


def keep_text(tokenizer: Tokenizer) -> None:
    """Changes a tokenizer, if it must, so that no text is encoded as a control token."""
    if readable := readable_from_text(tokenizer):
        cut = pre_tokenizers.Split(Regex(_first_characters(readable)), "isolated")
        before = [tokenizer.pre_tokenizer] if tokenizer.pre_tokenizer else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, cut])


def readable_from_text(tokenizer: Tokenizer) -> list[str]:
    """The control tokens, special ones and those of bytes, whose own text the tokenizer encodes as them.

    Alone, as a word or within one; more often than without it, as it may stand for unknown characters there.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special and token.content]
    ids = {token: tokenizer.token_to_id(token) for token in (*special, *BYTE_TOKENS)}
    known = {token: token_id for token, token_id in ids.items() if token_id is not None}
    without = [each.ids for each in _encoded(tokenizer, [""])]
    found = iter(_encoded(tokenizer, known))
    reads = {token: [next(found).ids.count(known[token]) for _ in PLACES] for token in known}
    return [
        token
        for token, counts in reads.items()
        if any(count > ids.count(known[token]) for count, ids in zip(counts, without, strict=True))
    ]


def _encoded(tokenizer: Tokenizer, tokens: Iterable[str]) -> list[Encoding]:
    """Each of the tokens' texts in all places, one after the other."""
    texts = [place.format(token) for token in tokens for place in PLACES]
    return tokenizer.encode_batch_fast(texts, add_special_tokens=False)


def _first_characters(tokens: list[str]) -> str:
    """A pattern of the first characters of tokens where the others follow."""
    rest = defaultdict(list)
    for token in tokens:
        rest[token[0]].append(re.escape(token[1:]))
    return "|".join(f"{re.escape(first)}(?=(?:{'|'.join(others)}))" for first, others in rest.items())
