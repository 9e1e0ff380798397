"""Text that reads like a control token is encoded as text, by every kind of tokenizer that could mistake it."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline.data.safe_tokenizers import BYTE_TOKENS, keep_text, readable_from_text

CONTROL = ("<unk>", "<s>", "</s>", "[CLS]", "<|endoftext|>")
LETTERS = "▁ abcdefiklnostuwx<>/|[]CLSE0123456789AF"


def unigram(*, byte_fallback: bool) -> Tokenizer:
    """Make a Unigram tokenizer like those that are converted from SentencePiece.

    It has NFKC, Metaspace and control tokens among the pieces, and byte tokens too if `byte_fallback` is set.
    """
    pieces = [(token, 0.0) for token in (*CONTROL, *(BYTE_TOKENS if byte_fallback else ()))]
    pieces += [(letter, -4.0 - place / 9) for place, letter in enumerate(LETTERS)]
    pieces += [("▁was", -3.0), ("old", -3.5), ("li", -3.0), ("ne", -3.2)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return special(tokenizer)


def unsplit() -> Tokenizer:
    tokenizer = unigram(byte_fallback=True)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def word_pieces() -> Tokenizer:
    """Make a WordPiece tokenizer that splits only at spaces, so that `[CLS]` is a word."""
    letters = [letter for letter in LETTERS if letter not in "▁ "]
    pieces = [*CONTROL, *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return special(tokenizer)


def words() -> Tokenizer:
    listed = [*CONTROL, "was", "old", "<", "s>", "/s>", "[", "CLS]"]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(listed)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return special(tokenizer)


def whole_words() -> Tokenizer:
    """Make a BPE tokenizer with `ignore_merges`, as in Llama 3: it keeps known words whole, even special ones."""
    listed = [*CONTROL, *LETTERS]
    model = models.BPE({piece: place for place, piece in enumerate(listed)}, [], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return special(tokenizer)


def special(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL])
    tokenizer.encode_special_tokens = True
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "unigram": lambda: unigram(byte_fallback=False),
    "unigram with bytes": lambda: unigram(byte_fallback=True),
    "without a pre-tokenizer": unsplit,
    "word pieces": word_pieces,
    "words": words,
    "whole words": whole_words,
}
TEXTS = (
    "<s>",
    "was <s>old</s> line",
    "was<s>old",
    "<s><s></s>",
    "[CLS] was [CLS]",
    "was <|endoftext|> old",
    "line<0x0A>end <0xE6>",
    "\uff1cs\uff1e",  # full-width characters that NFKC converts to <s>
)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_read_as_a_control_token(kind: str) -> None:
    plain, tokenizer = KINDS[kind](), KINDS[kind]()
    control = {tokenizer.token_to_id(token) for token in CONTROL[1:]}
    read = {text for text in TEXTS if control & set(plain.encode(text, add_special_tokens=False).ids)}
    assert read, "this tokenizer reads no control token from text, so the test is void"
    keep_text(tokenizer)
    for text in TEXTS:
        assert not control & set(tokenizer.encode(text, add_special_tokens=False).ids), text
    assert set(readable_from_text(tokenizer)) <= {"<unk>"}, "<unk> also represents text without another token"


@pytest.mark.parametrize("kind", ["unigram", "unigram with bytes", "without a pre-tokenizer"])
def test_text_like_control_tokens_is_decoded_unchanged(kind: str) -> None:
    tokenizer = KINDS[kind]()
    keep_text(tokenizer)
    for text in TEXTS[:-1]:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(encoding.ids, skip_special_tokens=False).strip() == text


def test_bytes_of_characters_without_a_piece_are_tokens_as_before() -> None:
    tokenizer = unigram(byte_fallback=True)
    keep_text(tokenizer)
    encoding = tokenizer.encode("é <0xC3>", add_special_tokens=False)
    assert encoding.tokens[1:3] == ["<0xC3>", "<0xA9>"]
    assert "<0xC3>" not in encoding.tokens[3:]


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.text(st.sampled_from("was old line<>/[CLS]0xAé"), max_size=30))
def test_other_text_is_encoded_as_before(kind: str, text: str) -> None:
    plain, tokenizer = KINDS[kind](), KINDS[kind]()
    keep_text(tokenizer)
    if not any(token in text for token in (*CONTROL, *BYTE_TOKENS)):
        ids = [each.encode(text, add_special_tokens=False).ids for each in (plain, tokenizer)]
        assert ids[0] == ids[1]


def test_a_tokenizer_that_needs_no_change_stays_the_same() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.encode_special_tokens = True
    before = tokenizer.to_str()
    keep_text(tokenizer)
    assert tokenizer.to_str() == before
