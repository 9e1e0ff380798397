"""Nats transferred between tokenizers of every kind, compared with an array that has one entry per byte.

S source tokens, T target tokens, N bytes.
"""

import functools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from pipeline.data.corpus import Corpus
from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.labels.retokenize import encode_with_ends, move_nats, retokenized
from pipeline.models.checkpoint import SHIPPED
from tests.builders import sample_texts

TRAINING_TEXT = ["the rain in Spain stays mainly in the plain, the end of the café 👨‍👩‍👧"] * 4
FAMILY = "👨‍👩‍👧"
BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = st.lists(
    st.text(max_size=8)
    | st.sampled_from([FAMILY, "👍🏽", "🇫🇷", "e\u0301\u0323", "नि", " the rain", "  ", "\r\n\t", "<unk>"]),
    max_size=8,
).map("".join)


def shipped() -> Tokenizer:
    return load_tokenizer(SHIPPED / "tokenizer")


def byte_level(prefix_space: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """Return a tokenizer that strips whitespace, composes characters, and has one token for unknown text."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def unigram() -> Tokenizer:
    """Return a tokenizer that puts a space before the text, and has byte tokens for a run of unknown characters.

    All byte tokens of a run have the offsets of the whole run.
    """
    pieces = [("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("ain", -3.0), ("é", -4.0)]
    tokenizer = Tokenizer(models.Unigram(pieces + [(token, -9.0) for token in BYTE_TOKENS], 0, True))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Return a tokenizer like Llama 2's: BPE over characters, byte tokens for unknown characters.

    The normalizer puts a space before the text.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>", *BYTE_TOKENS], show_progress=False)
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "shipped": shipped,
    "byte-level": byte_level,
    "prefix-space": functools.partial(byte_level, prefix_space=True),
    "word-piece": word_piece,
    "unigram": unigram,
    "byte-fallback": byte_fallback,
}


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    return BUILDERS[name]()


def random_nats(count: int) -> np.ndarray:
    return np.random.default_rng(count).exponential(3, count).astype(np.float32)


def slowly_moved(nats_S: np.ndarray, ends_S: np.ndarray, ends_T: np.ndarray) -> np.ndarray:
    """Return the nats of each target token, summed byte by byte.

    Every source token must have at least one byte, and every token must end at a whole number of bytes.
    """
    nats_N: list[float] = []
    for nats, start, end in zip(nats_S, [0, *ends_S[:-1]], ends_S, strict=True):
        nats_N += [nats / (end - start)] * int(end - start)
    return np.array([sum(nats_N[int(a) : int(b)]) for a, b in zip([0, *ends_T[:-1]], ends_T, strict=True)])


def byte_ends(tokenizer: Tokenizer, text: str) -> list[int]:
    return [int(end) for end in encode_with_ends(tokenizer, [text])[0].ends_T]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=20), data=st.data())
def test_every_byte_carries_its_share(lengths: list[int], data: st.DataObject) -> None:
    """Some source tokens are unlabelled, and so are the target tokens that overlap them."""
    ends_S = np.cumsum(lengths).astype(float)
    cuts = data.draw(st.sets(st.integers(1, int(ends_S[-1]))))
    ends_T = np.array(sorted(cuts | {int(ends_S[-1])}), dtype=float)
    unlabelled = data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=2))
    nats_S = random_nats(len(lengths))
    nats_S[list(unlabelled)] = np.nan
    moved_T = move_nats(nats_S, ends_S, ends_T)
    assert moved_T.dtype == np.float32
    np.testing.assert_allclose(moved_T, slowly_moved(nats_S, ends_S, ends_T), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(text=TEXTS, source=st.sampled_from(sorted(BUILDERS)), target=st.sampled_from(sorted(BUILDERS)))
@example(text=f" {FAMILY} e\u0301\u0323", source="unigram", target="shipped")
@example(text="\u0301\u0300", source="prefix-space", target="word-piece")
def test_the_total_is_preserved_between_any_two_tokenizers(text: str, source: str, target: str) -> None:
    ids_S, ends_S = encode_with_ends(tokenizer_of(source), [text])[0]
    ids_T, ends_T = encode_with_ends(tokenizer_of(target), [text])[0]
    nats_S = random_nats(len(ids_S))
    moved_T = move_nats(nats_S, ends_S, ends_T)
    assert len(moved_T) == len(ids_T)
    np.testing.assert_array_equal(move_nats(nats_S, ends_S, ends_S), nats_S)
    if len(ids_S) and len(ids_T):
        np.testing.assert_allclose(moved_T.sum(dtype=float), nats_S.sum(dtype=float), rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, max_size=3), name=st.sampled_from(sorted(BUILDERS)))
def test_ids_match_annotation_and_ends_rise_to_the_last_byte(texts: list[str], name: str) -> None:
    encoded = encode_with_ends(tokenizer_of(name), texts)
    for tokens, ids_T, text in zip(encoded, encode(tokenizer_of(name), texts), texts, strict=True):
        np.testing.assert_array_equal(tokens.ids_T, ids_T)
        assert tokens.ids_T.dtype == np.int32 and tokens.ends_T.dtype == np.float64
        assert len(tokens.ends_T) == len(ids_T) and (np.diff(tokens.ends_T, prepend=0) >= 0).all()
        assert not len(ids_T) or tokens.ends_T[-1] == len(text.encode())


@settings(max_examples=40, deadline=None)
@given(text=TEXTS, name=st.sampled_from(["shipped", "byte-level"]))
def test_a_byte_level_token_has_a_byte_for_each_of_its_characters(text: str, name: str) -> None:
    ids_T, ends_T = encode_with_ends(tokenizer_of(name), [text])[0]
    characters = [len(tokenizer_of(name).id_to_token(token) or "") for token in ids_T.tolist()]
    assert np.diff(ends_T, prepend=0).tolist() == characters


def test_tokens_that_split_an_emoji_end_at_its_bytes() -> None:
    """The shipped tokenizer has two tokens for the three bytes of U+200D, and four tokens for an emoji's four bytes."""
    assert byte_ends(tokenizer_of("shipped"), "👨\u200d👩") == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_byte_tokens_of_one_run_of_characters_get_one_byte_each() -> None:
    assert byte_ends(tokenizer_of("unigram"), " 👨ж") == [1, 2, 3, 4, 5, 6, 7]


def test_tokens_that_share_a_character_share_its_bytes_evenly() -> None:
    """The tokenizer puts a space before the text, and the text begins with an emoji.

    The token of this space has no character of the text. It shares the emoji's bytes with four byte tokens.
    """
    ends_T = encode_with_ends(tokenizer_of("unigram"), ["👨é"])[0].ends_T
    np.testing.assert_allclose(ends_T, [0.8, 1.6, 2.4, 3.2, 4, 6])


def test_bytes_without_a_token_go_to_the_next_token_and_trailing_ones_to_the_last() -> None:
    assert byte_ends(tokenizer_of("word-piece"), "  the \n in  ") == [5, 12]


def test_nats_of_tokens_without_bytes_are_kept() -> None:
    """The first, third and last of the original tokens have no bytes. The nats of these tokens must not be lost."""
    nats_S, ends_S = np.array([1, 2, 4, 8, 16], np.float32), np.array([0.0, 2, 2, 4, 4])
    np.testing.assert_array_equal(move_nats(nats_S, ends_S, np.array([0.0, 2, 4])), [1, 6, 24])
    np.testing.assert_array_equal(move_nats(nats_S, ends_S, np.array([2.0, 2, 4])), [7, 0, 24])
    np.testing.assert_array_equal(move_nats(nats_S, ends_S, ends_S), nats_S)


def test_documents_without_tokens() -> None:
    none, two = np.empty(0), np.array([1.0, 2.0])
    assert len(move_nats(none, none, none)) == 0
    assert len(move_nats(two, two, none)) == 0
    assert np.isnan(move_nats(none, none, two)).all()


def test_ends_of_different_texts_are_refused() -> None:
    with pytest.raises(ValueError, match="cover 2 bytes, the target's 3; texts differ"):
        move_nats(np.ones(1), np.array([2.0]), np.array([3.0]))


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        encode_with_ends(tokenizer_of("shipped"), ["the \ud800"])


def test_a_corpus_keeps_each_documents_nats_in_other_tokens() -> None:
    own, other = shipped(), tokenizer_of("byte-level")
    texts = ["", "naïve 👩‍👩‍👧 e\u0301 <|endoftext|>", *sample_texts(2, 300)]
    tokens = encode(own, texts)
    labels = [np.arange(len(ids), dtype=np.float32) for ids in tokens]
    moved = retokenized(Corpus.of(tokens, labels), own, other).corpus
    assert moved.labels_N is not None
    for ids, nats, again in zip(
        moved.by_document(moved.tokens_N), moved.by_document(moved.labels_N), encode(other, texts), strict=True
    ):
        assert np.array_equal(ids, again) and len(nats) == len(ids)
    totals = [nats.sum(dtype=np.float64) for nats in moved.by_document(moved.labels_N)]
    np.testing.assert_allclose(totals, [nats.sum(dtype=np.float64) for nats in labels], rtol=1e-4)


def letters() -> np.ndarray:
    """Return tokens that spell a word by letters. The shipped tokenizer does not make these tokens from the word."""
    return np.concatenate(encode(shipped(), ["t", "h", "e"]))


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_document_whose_tokens_do_not_match_its_text_is_left_out(place: int) -> None:
    own, other = shipped(), tokenizer_of("byte-level")
    tokens = encode(own, ["the rain", "in Spain"])
    labels = [np.full(len(ids), 1.0, np.float32) for ids in tokens]
    wanted = retokenized(Corpus.of(tokens, labels), own, other).corpus
    tokens.insert(place, letters())
    labels.insert(place, np.full(3, 9.0, np.float32))
    found, kept = retokenized(Corpus.of(tokens, labels), own, other)
    assert kept == [index for index in range(3) if index != place]
    for name in ("tokens_N", "offsets", "labels_N", "text_bytes_M"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    nothing = retokenized(Corpus.of([letters()], [np.ones(3, np.float32)]), own, other).corpus
    assert len(nothing) == 0 and len(nothing.tokens_N) == 0
