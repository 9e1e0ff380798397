"""Losses of documents that a model reads in overlapping windows, and the transfer of labels to the model's tokens.

The losses must equal those of a loop over tokens, and labels must be transferred as in training.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pipeline.data.annotated import find_annotations
from pipeline.data.packing import CutWithOverlap
from pipeline.data.tokenizer import encode, load_tokenizer, tokenizer_sha256, train_byte_pairs
from pipeline.experiments.document_reader import DocumentReader, audited, in_model_tokens, tokenizers_of_move
from pipeline.models.checkpoint import SHIPPED, Checkpoint
from pipeline.models.loading import save_checkpoint
from pipeline.training.data import LabelledDocuments, ModelTokens
from schemas.annotations import ENTROPY, INPUT_IDS
from tests.annotated import write_annotated
from tests.builders import VOCABULARY, sample_texts
from tests.models.architectures import tiny_causal
from tests.tiny_models import tiny_language_model

SHIPPED_TOKENIZER, START = SHIPPED / "tokenizer", 5


@pytest.fixture
def small_tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    train_byte_pairs(sample_texts(3), 300).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|endoftext|>"}', encoding="utf-8")
    return folder


def write_labels(folder: Path, texts: list[str], tokenizer: Path, *more: list[int]) -> Path:
    """Write a dataset of these texts and of the lists of token ids in `more`, with random labels for most tokens."""
    random = np.random.default_rng(0)
    tokens = [*(ids.tolist() for ids in encode(load_tokenizer(tokenizer), texts)), *more]
    nats = [np.where(random.random(len(ids)) < 0.1, np.nan, random.gamma(2, 1.5, len(ids))) for ids in tokens]
    sha256 = tokenizer_sha256(tokenizer)
    write_annotated(folder, tokens, [row.tolist() for row in nats], vocabulary=8192, tokenizer_sha256=sha256)
    target = folder / "tokenizer" / "exact"
    target.mkdir(parents=True)
    for file in tokenizer.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return folder


def saved(folder: Path, vocabulary: int, tokenizer: Path | None, context: int = 32) -> Checkpoint:
    model = tiny_language_model(vocabulary=vocabulary, context=context)
    save_checkpoint(model, folder, dtype="float32", tokenizer_folder=tokenizer, card="")
    return Checkpoint(folder)


def slow_losses(model: PreTrainedModel, ids: list[int], window: int) -> list[float]:
    """Return the loss of each token in nats, computed token by token.

    Each loss is computed in the first window that contains the token. Before the token, the model reads the start token
    and all earlier tokens of this window.
    """
    losses: list[float] = []
    for at, token in enumerate(ids):
        start = next(first for first in range(0, at + 1, window - window // 2) if first + window > at)
        logits_V = model(input_ids=torch.tensor([[START, *ids[start:at]]])).logits[0, -1]
        losses.append(float(-logits_V.log_softmax(dim=0)[token]))
    return losses


@pytest.mark.parametrize("window", [None, 5, 1])
def test_figures_equal_a_loop_over_tokens(tmp_path: Path, window: int | None) -> None:
    """The context is twelve tokens. One document has no labels, and one is empty."""
    random = np.random.default_rng(0)
    tokens = [random.integers(97, size=size).tolist() for size in (3, 40, 7, 12, 0, 13)]
    nats = [np.round(random.gamma(2, 1.5, len(ids)) * 128).astype(np.float32) / 128 for ids in tokens]
    nats[1][[0, 20, 39]] = np.nan
    nats[2][:] = np.nan
    of_tokens: dict[str, Any] = {"vocabulary": VOCABULARY, "tokenizer_sha256": None}
    labels = write_annotated(tmp_path / "labels", tokens, [row.tolist() for row in nats], **of_tokens)
    reader = DocumentReader.load(saved(tmp_path / "model", VOCABULARY, None, context=12), window)
    found = audited(find_annotations(str(labels)), reader, None, None)
    assert [document.row for document in found.documents] == [0, 1, 3, 5]
    assert (found.unlabelled, found.immovable) == (2, 0)
    model = tiny_language_model(vocabulary=VOCABULARY, context=12)
    for row, comparison in ((document.row, document.comparison) for document in found.documents):
        memorised = excess = 0.0
        for label, loss in zip(nats[row].tolist(), slow_losses(model, tokens[row], window or 12), strict=True):
            memorised += max(label - loss, 0) if not math.isnan(label) else 0
            excess += max(loss - label, 0) if not math.isnan(label) else 0
        assert (comparison.memorised, comparison.excess) == pytest.approx((memorised, excess), abs=1e-3)
        assert comparison.tokens == int((~np.isnan(nats[row])).sum())
    limited = audited(find_annotations(str(labels)), reader, None, 4)
    assert limited.documents == found.documents[:3] and limited.unlabelled == 1


def test_a_model_without_a_context_reads_whole_documents(tmp_path: Path) -> None:
    tiny_causal("mamba", vocab_size=VOCABULARY).save_pretrained(tmp_path / "model")
    reader = DocumentReader.load(Checkpoint(tmp_path / "model"), None)
    ids, every = np.arange(60), np.full(60, True)
    (whole,) = reader.losses([ids], [every])
    half, empty = reader.losses([ids[:30], ids[:0]], [every[:30], every[:0]])
    np.testing.assert_allclose(whole[:30], half, atol=1e-4)
    assert len(empty) == 0 and np.isfinite(whole).all()


def test_labels_move_as_in_training(tmp_path: Path, small_tokenizer: Path) -> None:
    """The labels of five documents are transferred to the tokens of another tokenizer. A sixth document is left out.

    Its tokens are single letters, but the dataset's tokenizer encodes the text of these letters to other tokens. The
    labels of the sixth document can therefore not be transferred.
    """
    letters = np.concatenate(encode(load_tokenizer(SHIPPED_TOKENIZER), ["t", "h", "e"])).tolist()
    dataset = find_annotations(str(write_labels(tmp_path / "labels", sample_texts(5, 300), SHIPPED_TOKENIZER, letters)))
    checkpoint = saved(tmp_path / "model", 300, small_tokenizer)
    move = tokenizers_of_move(dataset, checkpoint)
    (rows,) = dataset.batches((INPUT_IDS, ENTROPY))
    corpus, kept = in_model_tokens(rows, move)
    assert move is not None and list(kept) == [0, 1, 2, 3, 4] and corpus.labels_N is not None
    tokens = ModelTokens.of(dataset, small_tokenizer)
    packing = CutWithOverlap(length=33, separator=tokens.separator)
    trained_on = LabelledDocuments(dataset, tokens, packing, 0, len(dataset)).whole.windows
    labels_N = trained_on.entropy_T[~np.isnan(trained_on.entropy_T)]
    np.testing.assert_array_equal(corpus.labels_N[~np.isnan(corpus.labels_N)], labels_N)

    found = audited(dataset, DocumentReader.load(checkpoint, None), None, None)
    assert [document.row for document in found.documents] == [0, 1, 2, 3, 4] and found.immovable == 1
    assert sum(document.comparison.label for document in found.documents) == pytest.approx(float(labels_N.sum()))
    assert sum(document.comparison.tokens for document in found.documents) == len(labels_N)


def test_tokens_that_the_model_lacks_are_refused(tmp_path: Path, small_tokenizer: Path) -> None:
    dataset = find_annotations(str(write_labels(tmp_path / "labels", sample_texts(2, 100), SHIPPED_TOKENIZER)))
    assert tokenizers_of_move(dataset, saved(tmp_path / "own", 8192, SHIPPED_TOKENIZER)) is None
    assert tokenizers_of_move(dataset, saved(tmp_path / "none", 8192, None)) is None
    with pytest.raises(ValueError, match=r"has 8,192 token ids, but .* only 300; name another model"):
        tokenizers_of_move(dataset, saved(tmp_path / "small", 300, None))
    with pytest.raises(ValueError, match=r"the tokenizer of .* has 300 token ids, but .* only 299"):
        tokenizers_of_move(dataset, saved(tmp_path / "smaller", 299, small_tokenizer))
    with pytest.raises(ValueError, match=r"has other tokens than .* and no tokenizer; annotate with --tokenizer"):
        tokenizers_of_move(replace(dataset, tokenizer=None), saved(tmp_path / "other", 300, small_tokenizer))


def test_a_dataset_of_which_no_label_can_move_is_refused(tmp_path: Path, small_tokenizer: Path) -> None:
    letters = np.concatenate(encode(load_tokenizer(SHIPPED_TOKENIZER), ["t", "h", "e"])).tolist()
    dataset = find_annotations(str(write_labels(tmp_path / "labels", [], SHIPPED_TOKENIZER, letters, letters)))
    reader = DocumentReader.load(saved(tmp_path / "model", 300, small_tokenizer), None)
    with pytest.raises(ValueError, match="has a label, and the labels of 2 documents cannot move to the tokens of"):
        audited(dataset, reader, None, None)
