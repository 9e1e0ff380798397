"""A study's kinds of labels, and its file."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.comparison.ngrams import cross_fitted_surprisals
from pipeline.comparison.study import Study
from pipeline.data.corpus import Corpus

VOCABULARY, DOCUMENTS, TOKENS = 4, 12, 20


@pytest.fixture
def study() -> Study:
    random = np.random.default_rng(0)
    seen, development, test = (
        Corpus.of([random.integers(VOCABULARY, size=TOKENS).astype(np.int32) for _ in range(DOCUMENTS)])
        for _ in range(3)
    )
    labels = {"truth": random.gamma(2, size=DOCUMENTS * TOKENS).astype(np.float32)}
    return Study(seen, labels, development, test, vocabulary=VOCABULARY + 1, start=VOCABULARY, folds=3)


def labels_of(study: Study, name: str | None, seed: int) -> np.ndarray:
    labels_N = study.with_labels(name, seed).labels_N
    assert labels_N is not None
    return labels_N


def test_without_a_name_no_token_has_a_label(study: Study) -> None:
    assert np.isnan(labels_of(study, None, 0)).all()
    np.testing.assert_array_equal(labels_of(study, "truth", 0), study.labels["truth"])


def test_shuffled_labels_are_the_same_labels_at_other_tokens(study: Study) -> None:
    shuffled, again, other = (labels_of(study, "shuffled truth", seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(shuffled, again)
    assert sorted(shuffled) == sorted(study.labels["truth"]) and not np.array_equal(shuffled, study.labels["truth"])
    assert not np.array_equal(shuffled, other)


def test_labels_shuffled_within_tokens_stay_at_tokens_of_the_same_id_and_position(study: Study) -> None:
    shuffled = labels_of(study, "shuffled within tokens truth", 0)
    positions = np.tile(np.arange(TOKENS), DOCUMENTS)
    before, after = defaultdict(list), defaultdict(list)
    for token, position, old, new in zip(study.seen.tokens_N, positions, study.labels["truth"], shuffled, strict=True):
        kind = token, int(np.log2(position + 1))
        before[kind].append(old)
        after[kind].append(new)
    assert {kind: sorted(values) for kind, values in before.items()} == {
        kind: sorted(values) for kind, values in after.items()
    }
    assert (shuffled != study.labels["truth"]).mean() > 0.8


@pytest.mark.parametrize(("name", "order"), [("unigram", 1), ("trigram", 3)])
def test_surprisals_of_ngrams_are_labels(study: Study, name: str, order: int) -> None:
    expected = cross_fitted_surprisals(study.seen, order, VOCABULARY + 1, folds=3)
    np.testing.assert_array_equal(labels_of(study, name, 0), expected)


def test_a_saved_study_is_the_same_study(study: Study, tmp_path: Path) -> None:
    whole = replace(study, elsewhere=study.test.documents(0, 2), truth=1.5, labelling_flop={"truth": 3.0})
    whole = replace(whole, teacher_nats={"a b": np.arange(float(DOCUMENTS))})
    for given in (study, whole):
        given.save(tmp_path)
        read = Study.load(tmp_path)
        for name in ("seen", "development", "test", "elsewhere"):
            own, other = getattr(given, name), getattr(read, name)
            assert (own is None) == (other is None)
            if own is not None:
                np.testing.assert_array_equal(own.tokens_N, other.tokens_N)
                np.testing.assert_array_equal(own.offsets, other.offsets)
        np.testing.assert_array_equal(read.labels["truth"], given.labels["truth"])
        assert [*read.teacher_nats] == [*given.teacher_nats] and read.labelling_flop == given.labelling_flop
        assert (read.vocabulary, read.start, read.folds, read.truth) == (
            given.vocabulary,
            given.start,
            given.folds,
            given.truth,
        )
        assert read.predictions is None and read.teacher is None
