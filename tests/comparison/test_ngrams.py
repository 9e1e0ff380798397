"""Surprisals of n-gram models.

Probabilities add up to 1 and equal a slow formula. Each document is predicted from the documents of other folds only.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.comparison.ngrams import BEFORE, NgramModel, cross_fitted_surprisals
from pipeline.data.corpus import Corpus, fold_of

VOCABULARY = 7
documents_of_ids = st.lists(st.lists(st.integers(0, VOCABULARY - 1), max_size=12), max_size=5)


def arrays(documents: list[list[int]]) -> list[np.ndarray]:
    return [np.array(document, dtype=np.int32) for document in documents]


@given(documents_of_ids, st.integers(1, 4), st.lists(st.integers(-1, VOCABULARY - 1), min_size=3, max_size=3))
def test_the_probabilities_of_all_tokens_add_up_to_one(
    documents: list[list[int]], order: int, before: list[int]
) -> None:
    model = NgramModel(arrays(documents), order, VOCABULARY)
    context = tuple(before[: order - 1])
    probabilities = [model.probability(token, context) for token in range(VOCABULARY)]
    assert math.isclose(sum(probabilities), 1) and min(probabilities) > 0


def test_a_bigram_equals_the_formula_of_witten_and_bell() -> None:
    model = NgramModel(arrays([[0, 1, 0, 1, 0, 2]]), 2, VOCABULARY)
    unigram = (2 + 3 / VOCABULARY) / (6 + 3)  # 1 occurs twice among six tokens of three kinds
    expected = (2 + 2 * unigram) / (3 + 2)  # after 0: 1 twice, 2 once, two kinds
    assert model.probability(1, (0,)) == pytest.approx(expected)
    first = model.surprisals(np.array([0], dtype=np.int32))[0]
    assert first == pytest.approx(-math.log(model.probability(0, (BEFORE,))))


def test_a_document_is_predicted_by_other_folds_alone() -> None:
    random = np.random.default_rng(0)
    documents = [random.integers(VOCABULARY, size=30).astype(np.int32) for _ in range(12)]
    corpus = Corpus.of(documents)
    surprisals = cross_fitted_surprisals(corpus, 3, VOCABULARY, folds=3)
    for document, nats in zip(documents, corpus.by_document(surprisals), strict=True):
        others = [each for each in documents if fold_of(each, 3) != fold_of(document, 3)]
        np.testing.assert_array_equal(nats, NgramModel(others, 3, VOCABULARY).surprisals(document))


def test_a_trigram_model_learns_a_repeated_text() -> None:
    text = np.tile(np.arange(VOCABULARY, dtype=np.int32), 40)
    assert NgramModel([text], 3, VOCABULARY).surprisals(text)[3:].mean() < 0.1
    assert NgramModel([text], 1, VOCABULARY).surprisals(text).mean() == pytest.approx(math.log(VOCABULARY), abs=0.05)
