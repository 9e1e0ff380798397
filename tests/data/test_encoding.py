"""Texts encoded piece by piece, compared with the tokenizer's own encoding of the whole."""

import os
import pickle
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.data import encoding
from pipeline.data.encoding import (
    GPT_2,
    LLAMA_3,
    PATTERNS,
    QWEN_2,
    Pieces,
    beginnings,
    cuts,
    encode_column,
    pieces_of,
    token_bytes,
)
from pipeline.data.tokenizer import load_tokenizer, train_byte_pairs
from pipeline.models.checkpoint import SHIPPED
from tests.builders import sample_texts

WHITESPACE = list(
    " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2003\u200a\u200b\u2028\u2029\u202f\u205f\u3000\ufeff"
)
WORDS = [
    "the",
    "don't",
    "'S",
    "'",
    "'ll",
    "ſ",
    "İx",
    "naïve",
    "日本",
    "Москва",
    "e\u0301",
    "\u0301",
    "Å",
    "각",
    "\u1100\u1161",
]
NUMBERS = ["1", "23", "4567", "²", "٣", "Ⅷ", "½"]
SIGNS = [".", "!!", "<", "=", "\u0338", "\u037e", "“", "”", "…", "_", "\0", "\x7f", "😀", "👨‍👩‍👧", "\u1fef"]
ADDED = ["<tool_call>", "<|im_start|>", "<|a b|>", "b|>", "  ", "\n\n", "a b", "###"]
ATOMS = [*[" "] * 20, *["  ", "\r\n", "\n\n"] * 2, *WHITESPACE, *WORDS, *NUMBERS, *SIGNS, *ADDED, "a", "b", "Z"]
TEXTS = st.lists(st.sampled_from(ATOMS) | st.characters(exclude_categories=["Cs"]), max_size=40).map("".join)


def byte_level(use_regex: bool = True, add_prefix_space: bool = False) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=use_regex)


def split(pattern: str, behavior: str = "isolated") -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior)


def trained(
    *stages: pre_tokenizers.PreTokenizer,
    normalizer: normalizers.Normalizer | None = None,
    every_byte: bool = True,
    **model: Any,
) -> Tokenizer:
    """Train a BPE tokenizer with merges for all texts that the library hypothesis generates, especially whitespace."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(stages)) if len(stages) > 1 else stages[0]
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if every_byte else []
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=alphabet,
        special_tokens=[model["unk_token"]] if "unk_token" in model else [],
        end_of_word_suffix=model.get("end_of_word_suffix", ""),
        show_progress=False,
    )
    random = np.random.default_rng(0)
    tokenizer.train_from_iterator(["".join(random.choice(ATOMS, 60)) for _ in range(200)] + sample_texts(3), trainer)
    return tokenizer


def with_added(tokenizer: Tokenizer, *tokens: AddedToken, encode_special: bool = True) -> Tokenizer:
    tokenizer.add_tokens([token for token in tokens if not token.special])
    tokenizer.add_special_tokens([token for token in tokens if token.special])
    tokenizer.encode_special_tokens = encode_special
    return tokenizer


def added(content: str, special: bool = False, **flags: bool) -> AddedToken:
    return AddedToken(content, special=special, normalized=flags.pop("normalized", False), **flags)


def with_template(tokenizer: Tokenizer, single: str) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("a", 0)])
    return tokenizer


def truncating(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.enable_truncation(3)
    return tokenizer


CUT: dict[str, Callable[[], Tokenizer]] = {
    "shipped": lambda: load_tokenizer(SHIPPED / "tokenizer"),
    "trained here": lambda: train_byte_pairs(sample_texts(3), 400),
    "GPT-2": lambda: trained(byte_level()),
    "GPT-2 as a split": lambda: trained(split(GPT_2), byte_level(use_regex=False)),
    "Llama 3": lambda: trained(split(LLAMA_3), byte_level(use_regex=False)),
    "Llama 3, then GPT-2": lambda: trained(split(LLAMA_3), byte_level()),
    "Qwen 2": lambda: trained(split(QWEN_2), byte_level(use_regex=False), normalizer=normalizers.NFC()),
    "NFC": lambda: trained(byte_level(), normalizer=normalizers.NFC()),
    "digits one by one": lambda: trained(pre_tokenizers.Digits(individual_digits=True), byte_level()),
    "digits together": lambda: trained(pre_tokenizers.Digits(individual_digits=False), byte_level()),
    "digits and Qwen 2": lambda: trained(pre_tokenizers.Digits(True), split(QWEN_2), byte_level(use_regex=False)),
    "added": lambda: with_added(trained(byte_level()), *map(added, ADDED)),
    "added, normalized": lambda: with_added(
        trained(byte_level(), normalizer=normalizers.NFC()), *(added(content, normalized=True) for content in ADDED)
    ),
    "special, as text": lambda: with_added(trained(byte_level()), *(added(content, special=True) for content in ADDED)),
    "special, as themselves": lambda: with_added(
        trained(split(LLAMA_3), byte_level()),
        *(added(content, special=True) for content in ADDED),
        encode_special=False,
    ),
    "special around added": lambda: with_added(trained(byte_level()), added("<|a b|>", special=True), added("b|>")),
    "not every byte": lambda: trained(byte_level(), every_byte=False),
    "unknown bytes": lambda: trained(byte_level(), every_byte=False, unk_token="<unk>"),
    "unknown bytes together": lambda: trained(byte_level(), every_byte=False, unk_token="<unk>", fuse_unk=True),
    "a suffix": lambda: trained(byte_level(), end_of_word_suffix="</w>"),
    "template": lambda: with_template(trained(byte_level()), "a $A"),
}
WHOLE: dict[str, Callable[[], Tokenizer]] = {
    "a space before": lambda: trained(byte_level(add_prefix_space=True)),
    "no split": lambda: trained(byte_level(use_regex=False)),
    "digits alone": lambda: trained(pre_tokenizers.Digits(True), byte_level(use_regex=False)),
    "another pattern": lambda: trained(split(r"\w+ \w+"), byte_level()),
    "another behaviour": lambda: trained(split(LLAMA_3, "merged_with_next"), byte_level(use_regex=False)),
    "another normalizer": lambda: trained(byte_level(), normalizer=normalizers.Lowercase()),
    "another pre-tokenizer": lambda: trained(pre_tokenizers.Whitespace(), byte_level()),
    "not in bytes": lambda: trained(pre_tokenizers.Whitespace()),
    "not BPE": lambda: Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")),
    "strips what follows": lambda: with_added(trained(byte_level()), added("###", rstrip=True)),
    "strips what precedes": lambda: with_added(trained(byte_level()), added("###", lstrip=True)),
    "a word alone": lambda: with_added(trained(byte_level()), added("a b", single_word=True)),
    "added, not ASCII": lambda: with_added(trained(byte_level()), added("日 本")),
    "the text twice": lambda: with_template(trained(byte_level()), "$A $A"),
    "truncation": lambda: truncating(trained(byte_level())),
}
TOKENIZERS: dict[str, Tokenizer] = {}


def tokenizer_of(name: str) -> Tokenizer:
    if name not in TOKENIZERS:
        TOKENIZERS[name] = {**CUT, **WHOLE}[name]()
    return TOKENIZERS[name]


def require_same(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Check that encoding texts piece by piece gives the same ids as the tokenizer itself."""
    found = encode_column(tokenizer, pa.array(texts, pa.string()))
    expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    assert [ids.tolist() for ids in found] == expected
    assert all(ids.dtype == np.int32 for ids in found)


@pytest.fixture(params=CUT)
def cut(request: pytest.FixtureRequest) -> Tokenizer:
    return tokenizer_of(request.param)


@pytest.mark.parametrize("name", [*CUT, *WHOLE])
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXTS, max_size=4))
def test_encoding_by_pieces_equals_encoding_of_the_whole(name: str, texts: list[str]) -> None:
    require_same(tokenizer_of(name), texts)


@pytest.mark.parametrize("name", [*CUT, *WHOLE])
def test_only_known_tokenizers_encode_pieces(name: str) -> None:
    assert (beginnings(tokenizer_of(name)) is None) == (name in WHOLE)


def test_a_tokenizer_with_dropout_encodes_whole_texts() -> None:
    tokenizer = trained(byte_level())
    tokenizer.model.dropout = 0.5
    assert beginnings(tokenizer) is None


def test_the_three_patterns_differ() -> None:
    assert len(PATTERNS) == 3


@pytest.mark.parametrize(
    "text", ["", " ", "   ", "\0", "a\0 b", " \0 ", "a\r\nb\r\n", "\n", "é", "\xa0", "\xa0 a", "x" * 3000]
)
def test_very_short_and_unusual_texts(cut: Tokenizer, text: str) -> None:
    require_same(cut, [text])
    require_same(cut, [text, text, "", text])


def test_characters_that_become_longer_and_shorter(cut: Tokenizer) -> None:
    """NFC makes the first word three bytes longer, and the second word three bytes shorter."""
    longer, shorter = " \u0958", " e\u0301e\u0301e\u0301"
    require_same(cut, [f"a{longer}{shorter} b", f"a{shorter}{longer} b"])


@pytest.mark.long
def test_every_pair_of_neighbours(cut: Tokenizer) -> None:
    require_same(cut, [f"a{first}{second}b {second} {first}." for first, second in product(set(ATOMS), repeat=2)])


def test_sample_texts_twice(cut: Tokenizer) -> None:
    for _ in range(2):
        require_same(cut, sample_texts(20))


@pytest.mark.long
@pytest.mark.fineweb
def test_rows_of_fineweb(cut: Tokenizer) -> None:
    require_same(cut, pq.read_table(os.environ["FINEWEB"], columns=["text"]).column("text").to_pylist()[::8])


def columns() -> Iterator[pa.Array | pa.ChunkedArray]:
    texts = ["the end", None, "", " of it", None]
    for kind in (pa.string(), pa.large_string()):
        yield pa.array(texts, kind)
        yield pa.array(["before", *texts, "after"], kind).slice(1, len(texts))
        yield pa.chunked_array([texts[:2], [], texts[2:]], kind)


@pytest.mark.parametrize("column", columns(), ids=str)
@pytest.mark.parametrize("name", ["shipped", "a space before"])
def test_nulls_slices_and_chunks(name: str, column: pa.Array | pa.ChunkedArray) -> None:
    tokenizer = tokenizer_of(name)
    for part in (column, column.slice(1, 3), column.slice(2, 0)):
        expected = [tokenizer.encode(text or "", add_special_tokens=False).ids for text in part.to_pylist()]
        assert [ids.tolist() for ids in encode_column(tokenizer, part)] == expected


def test_pieces_begin_at_spaces_and_after_words() -> None:
    text = "It's 2 o'clock, “Émile”  said.\n\nÀ bientôt\u3000 é \xa0 x".encode()
    allowed = beginnings(tokenizer_of("shipped"))
    assert allowed is not None
    places = cuts(np.frombuffer(text, np.uint8), allowed)
    pieces = [text[start:stop].decode() for start, stop in zip([0, *places], [*places, len(text)], strict=True)]
    said = ["It", "'s", " 2", " o", "'clock", ",", " “Émile”", "  said", ".\n\nÀ", " bientôt\u3000 é", " \xa0 x"]
    assert pieces == said


@pytest.mark.parametrize("name", ["shipped", "NFC"])
def test_the_cache_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MOST_PIECES", 10)
    monkeypatch.setattr(encoding, "MOST_CHARACTERS", 5)
    monkeypatch.setattr(encoding, "RUN", 3)
    tokenizer, kept = tokenizer_of(name), []
    allowed = beginnings(tokenizer)
    assert allowed is not None
    pieces = Pieces(allowed, token_bytes(tokenizer))
    for start in range(0, 60, 3):
        given = [f" {number}" * (1 + number % 4) for number in range(start, start + 7)]
        found = pieces.take(tokenizer, pa.array(given, pa.large_string()))
        expected = [encoding.ids for encoding in tokenizer.encode_batch_fast(given, add_special_tokens=False)]
        assert found is not None and found.ids_T.tolist() == list(chain.from_iterable(expected))
        assert len(pieces.encoded.borders) == len(pieces.places) + 1
        assert pieces.encoded.borders[-1] == len(pieces.encoded.ids_T)
        assert all(len(text) <= 5 for text in pieces.places)
        kept.append(len(pieces.places))
    assert max(kept) == 10 and kept[-1] < sum(kept)


def test_words_are_not_displaced_by_text_that_never_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MEASURABLE_PIECES", 100)
    tokenizer = load_tokenizer(SHIPPED / "tokenizer")
    require_same(tokenizer, ["the end of it"])
    numbers = " ".join(map(str, range(10**6, 10**6 + 200)))
    require_same(tokenizer, [numbers, ""])
    pieces = pieces_of(tokenizer)
    assert pieces is not None and list(pieces.places) == ["the", " end", " of", " it"]
    require_same(tokenizer, [" of the end of it" * 100])
    assert len(pieces.places) == 5
    require_same(tokenizer, [numbers[:399]])
    assert len(pieces.places) == 55


def test_threads_share_the_cache() -> None:
    tokenizer, texts = load_tokenizer(SHIPPED / "tokenizer"), sample_texts(24)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda start: require_same(tokenizer, texts[start::4] + texts[:start]), range(4)))


def test_the_cache_is_freed_with_its_tokenizer() -> None:
    tokenizer = load_tokenizer(SHIPPED / "tokenizer")
    require_same(tokenizer, ["the end"])
    copied = pickle.loads(pickle.dumps(tokenizer))  # noqa: S301  # its own
    require_same(copied, ["the end"])
    pieces = pieces_of(tokenizer)
    assert pieces is not None and pieces is pieces_of(tokenizer) and pieces is not pieces_of(copied)
    left = weakref.ref(pieces)
    del tokenizer, pieces
    assert left() is None
