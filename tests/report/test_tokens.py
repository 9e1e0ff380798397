"""Texts of tokens, with tokenizers that split characters, mark words or have no tokens for bytes."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from pipeline.data.tokenizer import encode, train_byte_pairs
from pipeline.report.tokens import MOST_CHARACTERS, TokenTexts

BYTES = train_byte_pairs([], 257)
PAIRS = train_byte_pairs(["the cat and the dog", "€ 猫 🐈"] * 9, 290)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    (ids,) = encode(tokenizer, [text])
    return [*map(int, ids)]


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_the_texts_of_a_documents_tokens_are_its_text(text: str) -> None:
    for tokenizer in (BYTES, PAIRS):
        ids = ids_of(tokenizer, text)
        texts = TokenTexts(tokenizer).of(ids)
        assert len(texts) == len(ids) and "".join(texts) == text


def test_the_last_of_several_tokens_has_their_character() -> None:
    assert TokenTexts(BYTES).of(ids_of(BYTES, "a€b🐈")) == ["a", "", "", "€", "b", "", "", "", "🐈"]


def test_a_replacement_character_of_the_document_is_its_own() -> None:
    assert TokenTexts(BYTES).of(ids_of(BYTES, "\ufffdx")) == ["", "", "\ufffd", "x"]


def test_bytes_that_are_no_character_are_replaced_and_what_follows_is_kept() -> None:
    first_byte, letter = ids_of(BYTES, "€")[0], ids_of(BYTES, "x")
    assert TokenTexts(BYTES).of([first_byte, *letter]) == ["", "\ufffdx"]


def test_a_part_of_a_character_alone_is_told_by_its_bytes() -> None:
    texts = TokenTexts(BYTES)
    assert [texts.alone(token) for token in ids_of(BYTES, "a€ ")] == ["a", "⟨E2⟩", "⟨82⟩", "⟨AC⟩", " "]


def test_an_added_token_is_what_it_says() -> None:
    tokenizer = train_byte_pairs([], 257)
    tokenizer.add_tokens([AddedToken("<é>")])
    assert TokenTexts(tokenizer).of(ids_of(tokenizer, "é<é>")[2:]) == ["<é>"]


def test_words_keep_their_spaces_and_single_bytes_become_characters() -> None:
    vocabulary = {"<unk>": 0, "▁cat": 1, "s": 2, "<0xC3>": 3, "<0xA9>": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    assert TokenTexts(tokenizer).of([1, 2, 1, 3, 4]) == [" cat", "s", " cat", "", "é"]


def test_without_a_tokenizer_a_token_is_its_id() -> None:
    assert TokenTexts(None).of([5, 12]) == ["⟨5⟩", "⟨12⟩"] and TokenTexts(None).alone(7) == "⟨7⟩"


def test_a_token_of_very_many_characters_is_cut_short() -> None:
    tokenizer = train_byte_pairs([], 257)
    tokenizer.add_tokens(["x" * 10**6])
    texts, (place,) = TokenTexts(tokenizer), ids_of(tokenizer, "x" * 10**6)
    assert texts.of(ids_of(tokenizer, "ab")) == ["a", "b"] and not texts.cut
    assert texts.of([place]) == [texts.alone(place)] == ["x" * MOST_CHARACTERS + "…"] and texts.cut
