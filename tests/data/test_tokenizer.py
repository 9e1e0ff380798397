"""Text to token ids and back, with a byte-level BPE trained here."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.data.safe_tokenizers import tokenizer_errors
from pipeline.data.tokenizer import beginning_token, encode, id_count, load_tokenizer, token_source, tokenizer_sha256
from pipeline.labels.retokenize import encode_with_ends

SEPARATOR = "<|endoftext|>"
VOCABULARY = 280


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[SEPARATOR],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the rain in Spain stays mainly in the plain, the end of the text"] * 4, trainer)
    # settings that a saved tokenizer may have, and that annotation must ignore
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(path / "tokenizer.json"))
    return path


def declare(folder: Path, target: Path, **config: object) -> Path:
    (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (target / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return target


def test_a_special_token_in_a_text_is_ordinary_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    assert tokenizer.token_to_id(SEPARATOR) == 0
    text = f"the end{SEPARATOR}{SEPARATOR} of the text"
    (ids,) = encode(tokenizer, [text])
    assert 0 not in ids and tokenizer.decode(ids.tolist()) == text


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(st.text(max_size=60) | st.just(SEPARATOR), max_size=4))
def test_any_text_is_decoded_from_its_tokens(folder: Path, texts: list[str]) -> None:
    tokenizer = load_tokenizer(folder)
    encoded = encode(tokenizer, texts)
    assert [tokenizer.decode(ids.tolist()) for ids in encoded] == texts
    assert all(ids.dtype == np.int32 and 0 not in ids for ids in encoded)


def test_saved_truncation_and_padding_are_ignored(folder: Path) -> None:
    long, short = encode(load_tokenizer(folder), ["qzx" * 100, "q"])
    assert len(long) == 300 and len(short) == 1


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere has no tokenizer\.json"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_malformed_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_the_digest_changes_with_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    copy = declare(folder, tmp_path)
    assert tokenizer_sha256(copy) == tokenizer_sha256(folder)
    with (copy / "tokenizer.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    assert tokenizer_sha256(copy) != tokenizer_sha256(folder)


@pytest.mark.parametrize("vocabulary", [None, 0, -1])
def test_tokenized_documents_need_a_vocabulary(vocabulary: int | None) -> None:
    with pytest.raises(ValueError, match="`tokenizer` none needs `vocabulary`"):
        token_source("none", vocabulary)


def test_tokenized_documents_have_no_tokenizer() -> None:
    source = token_source("none", 7)
    assert (source.vocabulary, source.tokenizer, source.folder) == (7, None, None)


@pytest.mark.parametrize("vocabulary", [None, VOCABULARY])
def test_the_vocabulary_is_that_of_the_tokenizer(folder: Path, vocabulary: int | None) -> None:
    source = token_source(str(folder), vocabulary)
    assert (source.vocabulary, source.folder) == (VOCABULARY, folder)
    assert source.tokenizer is not None


@pytest.mark.parametrize("vocabulary", [0, VOCABULARY - 1, VOCABULARY + 1])
def test_a_vocabulary_that_disagrees_is_refused(folder: Path, vocabulary: int) -> None:
    with pytest.raises(ValueError, match=f"`vocabulary` {vocabulary} differs from the {VOCABULARY}"):
        token_source(str(folder), vocabulary)


def test_a_document_begins_with_bos_if_declared(folder: Path, tmp_path: Path) -> None:
    letter = load_tokenizer(folder).token_to_id("q")
    assert beginning_token(declare(folder, tmp_path, bos_token="q", eos_token=SEPARATOR)) == letter
    assert beginning_token(declare(folder, tmp_path, bos_token={"content": "q"}, eos_token=SEPARATOR)) == letter


@pytest.mark.parametrize("bos", [None, "unknown to the vocabulary"])
def test_a_document_begins_with_eos_without_bos(folder: Path, tmp_path: Path, bos: str | None) -> None:
    assert beginning_token(declare(folder, tmp_path, bos_token=bos, eos_token=SEPARATOR)) == 0


def test_a_tokenizer_without_bos_and_eos_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in (folder, declare(folder, tmp_path, bos_token=None)):
        with pytest.raises(ValueError, match="declares neither bos_token nor eos_token"):
            beginning_token(path)


@pytest.mark.parametrize("highest", [VOCABULARY - 1, VOCABULARY, 10**6])
def test_ids_are_counted_up_to_the_highest_even_if_some_are_skipped(folder: Path, tmp_path: Path, highest: int) -> None:
    parts = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = parts["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] = highest
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    assert id_count(load_tokenizer(tmp_path)) == token_source(str(tmp_path), None).vocabulary == highest + 1
    assert id_count(Tokenizer(models.BPE())) == 0


def with_parts(folder: Path, target: Path, **parts: object) -> Path:
    """Copy the `tokenizer.json` of `folder` to `target`, with some sections replaced by `parts`.

    The section `model` is not replaced as a whole: only the settings that `parts` names are changed in it.
    """
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model = {**found["model"], **parts.pop("model", {})}  # type: ignore[dict-item]
    (target / "tokenizer.json").write_text(json.dumps({**found, **parts, "model": model}), encoding="utf-8")
    return target


def test_dropout_of_merges_is_turned_off_and_reported_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "the rain in Spain stays mainly in the plain"
    (expected,) = encode(load_tokenizer(folder), [text])
    random = load_tokenizer(with_parts(folder, tmp_path, model={"dropout": 0.5}))
    load_tokenizer(tmp_path)
    assert all(np.array_equal(encode(random, [text])[0], expected) for _ in range(20))
    (said,) = caplog.messages
    assert "drops merges at random (dropout 0.5); turned off here" in said


def test_unigram_never_samples(tmp_path: Path) -> None:
    """The Unigram model can sample tokens, but the format of tokenizer.json has no settings for sampling.

    Settings of this kind in a file must be ignored.
    """
    pieces = [["<unk>", 0.0], ["a", -1.0], ["aa", -1.1], ["aaa", -1.2]]
    model = {"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": False, "alpha": 0.1, "nbest_size": 9}
    made = {"version": "1.0", "added_tokens": [], "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert len({tuple(encode(tokenizer, ["a" * 30])[0].tolist()) for _ in range(20)}) == 1


CATASTROPHE = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}


def test_a_document_that_makes_the_tokenizer_panic_is_refused(folder: Path, tmp_path: Path) -> None:
    """A panic is not an Exception and would end a worker; the tokenizer can still encode other documents."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    parts = {"type": "Sequence", "pretokenizers": [CATASTROPHE, byte_level]}
    tokenizer = load_tokenizer(with_parts(folder, tmp_path, pre_tokenizer=parts))
    before = encode(tokenizer, ["the rain"])[0].tolist()
    for fails in (encode, encode_with_ends):
        with pytest.raises(
            ValueError, match=r"the tokenizer fails on a document; leave the document out.*: Onig: Regex"
        ) as raised:
            fails(tokenizer, ["the rain", "a" * 40 + "!"])
        assert "\n" not in str(raised.value)
    assert encode(tokenizer, ["the rain"])[0].tolist() == before


def test_a_tokenizer_that_fails_on_any_unknown_word_is_refused(tmp_path: Path) -> None:
    made = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "x"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer.json does not encode its own tokens: .*Missing \[UNK\] token"):
        load_tokenizer(tmp_path)


def test_errors_of_other_code_are_unchanged() -> None:
    for error in (KeyboardInterrupt(), TypeError("ours")):
        with pytest.raises(type(error)), tokenizer_errors("never said"):
            raise error


def test_an_empty_special_token_matches_no_text(folder: Path, tmp_path: Path) -> None:
    empty = {"id": 5, "content": "", "special": True}
    rest = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    tokenizer = load_tokenizer(with_parts(folder, tmp_path, added_tokens=[{**empty, **rest}]))
    assert encode(tokenizer, ["the rain"])[0].tolist() == encode(load_tokenizer(folder), ["the rain"])[0].tolist()


@pytest.mark.parametrize(
    ("replacements", "fits"),
    [
        ([("a", "aa")] * 6, True),
        ([("a", "aa")] * 7, False),
        ([("ab", "abcd")] * 6, True),
        ([("a", "a" * 65)], False),
        ([("``", '"'), (" ", "▁")] * 40, True),
        ([("x", "")] * 9, True),
    ],
)
def test_replacements_that_lengthen_texts_too_much_are_refused(
    folder: Path, tmp_path: Path, replacements: list[tuple[str, str]], fits: bool
) -> None:
    """Thirty replacements of `a` by `aa` would turn one byte into 1 GB."""
    parts = [{"type": "Replace", "pattern": {"String": old}, "content": new} for old, new in replacements]
    made = with_parts(folder, tmp_path, normalizer={"type": "Sequence", "normalizers": parts})
    if fits:
        load_tokenizer(made)
        return
    with pytest.raises(ValueError, match="normalizer that can make a text more than 64 times as long"):
        load_tokenizer(made)


def test_mostly_skipped_ids_are_refused(folder: Path, tmp_path: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    made = with_parts(folder, tmp_path, model={"vocab": {**vocabulary, "qzx": 2**20}})
    with pytest.raises(ValueError, match="has 281 tokens with ids up to 1,048,576, unlike any sound tokenizer"):
        load_tokenizer(made)
