"""A contest at a tiny size: every method takes part and is measured against the truth."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.experiments.contest import RECIPES, hold_contest
from pipeline.experiments.sources import ContestSettings

TINY = ContestSettings(
    width=16,
    heads=2,
    document_tokens=20,
    steps=3,
    second_order_steps=2,
    batch=8,
    labelled_documents=10,
    labelled_share=0.5,
    fresh_documents=4,
)


def test_every_method_labels_the_same_documents_and_is_compared_with_their_truth(tmp_path: Path) -> None:
    entries = list(hold_contest("markov-1", TINY, tmp_path))
    names = [(entry.accuracy.method, entry.accuracy.target) for entry in entries]
    assert len(set(names)) == len(names)
    for recipe in RECIPES:
        assert {(recipe.name, "surprisal"), (recipe.name, "entropy")} <= set(names)
    truths = {"surprisal": entries[0].truth_N, "entropy": entries[1].truth_N}
    assert names[1] == ("causal", "entropy") and not np.array_equal(truths["surprisal"], truths["entropy"])
    for entry in entries:
        np.testing.assert_array_equal(entry.truth_N, truths[entry.accuracy.target])
        assert entry.estimates_N.shape == (TINY.fresh_documents * TINY.document_tokens,)
        if entry.accuracy.mean_absolute_error is not None:  # attribution scores are not in nats
            error = np.abs(entry.estimates_N - entry.truth_N).mean()
            assert entry.accuracy.mean_absolute_error == pytest.approx(error, rel=1e-4)
    exact, causal = (next(e.accuracy for e in entries if e.accuracy.method == name) for name in ("exact", "causal"))
    assert exact.training_tflop == causal.training_tflop and exact.token_passes > causal.token_passes
