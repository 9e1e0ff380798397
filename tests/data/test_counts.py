"""Count of documents with text that a tokenizer drops or replaces by its unknown token.

A document should be counted if its tokens do not decode to its text.
"""

from collections.abc import Callable

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.data.counts import documents_with_unknown_text
from pipeline.data.encoding import encode_column
from pipeline.data.safe_tokenizers import keep_text
from tests.data.test_safe_tokenizers import unigram, words

ALPHABET = "ab é\x04\U0001f642<s>ñ"


def byte_level(*, without: str = "") -> Tokenizer:
    """Make a byte-level BPE tokenizer. Some bytes may lack a token, as in the tokenizer of SmolLM2."""
    pieces = [character for character in sorted(pre_tokenizers.ByteLevel.alphabet()) if character not in without]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def letters(unknown: str | None) -> Tokenizer:
    """Make a BPE tokenizer of a few letters. Other letters are dropped, or become the unknown token if there is one."""
    pieces = [*"ab <s>", "?"]
    tokenizer = Tokenizer(models.BPE({piece: place for place, piece in enumerate(pieces)}, [], unk_token=unknown))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "every byte": byte_level,
    "some bytes": lambda: byte_level(without="\u0104\u00f1\u00c3"),  # the pieces of the bytes 0x04, 0xf1 and 0xc3
    "letters that vanish": lambda: letters(None),
    "letters that are unknown": lambda: letters("?"),
    "bytes for the unknown": lambda: unigram(byte_fallback=True),
    "unigram": lambda: unigram(byte_fallback=False),
    "words": words,
}


def counted(tokenizer: Tokenizer, texts: list[str | None]) -> int:
    column = pa.array(texts, pa.string())
    ids = pa.chunked_array([pa.array(encode_column(tokenizer, column), pa.list_(pa.int32()))])
    return documents_with_unknown_text(tokenizer, column, ids)


@pytest.mark.parametrize("kind", ["every byte", "some bytes", "letters that vanish", "letters that are unknown"])
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(st.sampled_from(ALPHABET), max_size=6), min_size=1, max_size=5))
def test_documents_whose_tokens_do_not_decode_to_their_text_are_counted(kind: str, texts: list[str]) -> None:
    tokenizer = KINDS[kind]()
    lost = [tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) != text for text in texts]
    assert counted(tokenizer, list(texts)) == sum(lost)


@pytest.mark.parametrize(
    ("kind", "text", "unknown"),
    [
        ("bytes for the unknown", "old é \U0001f642", 0),
        ("unigram", "old line", 0),
        ("unigram", "old é", 1),
        ("words", "was old", 0),
        ("words", "was new", 1),
        ("every byte", "\x04\U0001f642", 0),
        ("some bytes", "\x04", 1),
        ("some bytes", "é", 1),
        ("some bytes", "\U0001f642", 0),
    ],
)
def test_text_that_becomes_unknown_or_is_dropped_is_counted(kind: str, text: str, unknown: int) -> None:
    tokenizer = KINDS[kind]()
    keep_text(tokenizer)
    assert counted(tokenizer, [None, "", text, text, "old" if kind != "words" else "was"]) == 2 * unknown


def test_chunks_and_slices_are_counted_as_a_whole_column_is() -> None:
    tokenizer, texts = KINDS["some bytes"](), pa.array(["a", "\x04", None, "b\x04", "c"])
    assert counted(tokenizer, texts[1:4].to_pylist()) == 2
    ids = pa.array(encode_column(tokenizer, texts), pa.list_(pa.int32()))
    chunks = pa.chunked_array([ids[1:3], ids[3:5]])
    assert documents_with_unknown_text(tokenizer, texts[1:], chunks) == 2
