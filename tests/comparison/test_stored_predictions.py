"""Stored predictions of a teacher: they equal the model's own, and students learn from them."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.comparison.stored_predictions import DISTILLED, StoredPredictions
from pipeline.labels import causal
from pipeline.training.batches import collate, cut_windows
from pipeline.training.distillation import DistillationLoss
from pipeline.training.losses import document_loss
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY
from tests.comparison.studies import VOCABULARY, WINDOWING, random_corpus, small_student
from tests.tiny_models import tiny_language_model

START = VOCABULARY - 1


def test_stored_labels_equal_causal_labels_of_each_window(tmp_path: Path) -> None:
    model, corpus = tiny_language_model(vocabulary=VOCABULARY), random_corpus(0)
    predictions = StoredPredictions(tmp_path)
    predictions.write(corpus, {0: [model]}, VOCABULARY, START, WINDOWING)
    columns = {ENTROPY: (), EXPECTED_ENTROPY: ()}
    for column in columns:
        expected = []
        for tokens_N in corpus.by_document(corpus.tokens_N):
            for ids in torch.from_numpy(tokens_N).long().split(WINDOWING.window):
                expected.append(causal.token_labels(model, ids[None], START, columns)[column][0])
        np.testing.assert_allclose(predictions.labels(column), torch.cat(expected), atol=1e-5)


@pytest.mark.parametrize("ids", [None, 3, DISTILLED])
def test_targets_are_the_stored_distribution(tmp_path: Path, ids: int | None) -> None:
    model, corpus = tiny_language_model(vocabulary=VOCABULARY), random_corpus(0)
    predictions = StoredPredictions(tmp_path)
    predictions.write(corpus, {0: [model]}, VOCABULARY, START, WINDOWING)
    chosen = torch.tensor([7, 0, 7, 30])
    targets = predictions.targets(chosen, ids)
    assert targets.ids_NK.shape == (4, ids or VOCABULARY)
    torch.testing.assert_close(targets.p_NK.sum(dim=1) + targets.rest_N, torch.ones(4))
    stored = torch.from_numpy(predictions.stored("logprobs")[chosen.numpy()]).float().exp()
    torch.testing.assert_close(stored.gather(1, targets.ids_NK), targets.p_NK, atol=2e-3, rtol=0)
    assert targets.p_NK.sum(dim=1).min() >= stored.topk(targets.ids_NK.shape[1]).values.sum(dim=1).min() - 2e-3


def test_only_the_most_probable_ids_are_stored_if_all_would_fill_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.comparison.stored_predictions.LARGEST_FILE", 1000)
    predictions = StoredPredictions(tmp_path)
    predictions.write(random_corpus(0), {0: [tiny_language_model(vocabulary=VOCABULARY)]}, VOCABULARY, START, WINDOWING)
    assert 0 not in predictions.ids and predictions.targets(torch.tensor([1]), DISTILLED).ids_NK.shape == (1, 50)
    monkeypatch.undo()
    predictions.write(random_corpus(0), {0: [tiny_language_model(vocabulary=VOCABULARY)]}, VOCABULARY, START, WINDOWING)
    assert predictions.ids == (0, DISTILLED)


def test_distillation_of_a_certain_teacher_is_cross_entropy(tmp_path: Path) -> None:
    model, corpus = tiny_language_model(vocabulary=VOCABULARY), random_corpus(0)
    batch = collate(corpus, cut_windows(corpus.offsets, WINDOWING, np.random.default_rng(0)))

    one_hot_NV = np.full((len(corpus.tokens_N), VOCABULARY), -np.inf, np.float16)
    one_hot_NV[np.arange(len(corpus.tokens_N)), corpus.tokens_N] = 0
    np.save(tmp_path / "logprobs.npy", one_hot_NV)
    np.save(tmp_path / "top_ids.npy", corpus.tokens_N[:, None])
    np.save(tmp_path / "top_logprobs.npy", np.zeros_like(one_hot_NV[:, :1]))
    certain, own = StoredPredictions(tmp_path), document_loss(model, batch, START)
    for weight in (1.0, 0.5, 0.0):
        for ids in (None, 1):
            loss = DistillationLoss(partial(certain.targets, ids=ids), START, weight)
            torch.testing.assert_close(loss(model, batch), own, atol=1e-6, rtol=0)


def test_distillation_of_all_ids_is_the_dense_cross_entropy(tmp_path: Path) -> None:
    teacher, corpus = tiny_language_model(vocabulary=VOCABULARY), random_corpus(0)
    student = small_student(tmp_path / "other").new_model(1)
    batch = collate(corpus, cut_windows(corpus.offsets, WINDOWING, np.random.default_rng(0)))
    predictions = StoredPredictions(tmp_path)
    predictions.write(corpus, {0: [teacher]}, VOCABULARY, START, WINDOWING)
    loss = DistillationLoss(partial(predictions.targets, ids=None), START)(student, batch)
    read = torch.cat([torch.full_like(batch.input_ids_BT[:, :1], START), batch.input_ids_BT[:, :-1]], dim=1)
    p_NV = teacher(read).logits.softmax(dim=-1)[batch.real_BT]
    torch.testing.assert_close(loss, cross_entropy(student(read).logits[batch.real_BT], p_NV), atol=1e-3, rtol=0)
