"""Texts longer than a model's context: label functions return the labels of the annotation job, or refuse the texts."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.windows import Window
from pipeline.labels import attribution, causal, exact, second_order
from pipeline.labels.torch_labeller import TorchLabeller, causal_labeller, exact_labeller, second_order_labeller
from pipeline.labels.windowed import over_windows
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY
from tests.engine.fakes import label_documents
from tests.tiny_models import random_tokens, tiny_estimator, tiny_language_model, tiny_second_order

CONTEXT, TOKENS = 8, 29
IDS_BT = random_tokens(2, TOKENS)


def as_the_job(labeller: TorchLabeller, column: str = ENTROPY) -> Tensor:
    """Return labels from windows of the context's length that overlap by half, the job's default."""
    documents = [ids.numpy().astype(np.int64) for ids in IDS_BT]
    labels = label_documents(documents, labeller, window=CONTEXT, overlap=CONTEXT // 2)[column]
    return torch.from_numpy(np.stack(labels))


def test_causal_labels_equal_those_of_the_job() -> None:
    model = tiny_language_model(context=CONTEXT)
    labels_BT = causal.token_entropies(model, IDS_BT, start=5)
    torch.testing.assert_close(labels_BT, as_the_job(causal_labeller(model, 5, "cpu")), atol=1e-5, rtol=1e-5)


def expected(model: PreTrainedModel, ids_BT: Tensor) -> Tensor:
    return causal.token_labels(model, ids_BT, 5, {EXPECTED_ENTROPY: ()})[EXPECTED_ENTROPY]


def test_expected_entropies_of_a_causal_model_have_the_same_windows() -> None:
    model = tiny_language_model(context=CONTEXT)
    entropies_BT = expected(model, IDS_BT)
    second_window_BT = expected(model, IDS_BT[:, 4:12])
    torch.testing.assert_close(entropies_BT[:, :8], expected(model, IDS_BT[:, :8]))
    torch.testing.assert_close(entropies_BT[:, 8:12], second_window_BT[:, 4:])


def test_second_order_labels_equal_those_of_the_job() -> None:
    model = tiny_second_order(context=CONTEXT)
    labels, labeller = second_order.token_entropies(model, IDS_BT), second_order_labeller(model, "cpu")
    torch.testing.assert_close(labels.entropy_BT, as_the_job(labeller), atol=1e-5, rtol=1e-5)
    expected_BT = as_the_job(labeller, EXPECTED_ENTROPY)
    torch.testing.assert_close(labels.expected_entropy_BT, expected_BT, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [{}, {"introduction": "projection", "introduced_above": 2}])
def test_exact_labels_equal_those_of_the_job(variant: dict[str, Any]) -> None:
    estimator = tiny_estimator(context=CONTEXT, **variant)
    labels_BT = exact.token_entropies(estimator, IDS_BT)
    torch.testing.assert_close(labels_BT, as_the_job(exact_labeller(estimator, "cpu")), atol=1e-4, rtol=1e-4)


def test_exact_labels_are_only_at_wanted_positions() -> None:
    estimator, lengths_B = tiny_estimator(context=CONTEXT), torch.tensor([TOKENS, 5])
    positions_BT = torch.arange(TOKENS).expand(2, -1) % 3 == 0
    labels_BT = exact.token_entropies(estimator, IDS_BT, lengths_B, positions_BT)
    wanted_BT = positions_BT & (torch.arange(TOKENS) < lengths_B.unsqueeze(1))
    assert torch.equal(~labels_BT.isnan(), wanted_BT)
    everywhere_BT = exact.token_entropies(estimator, IDS_BT)
    torch.testing.assert_close(labels_BT[wanted_BT], everywhere_BT[wanted_BT], atol=1e-4, rtol=1e-4)


def test_attribution_refuses_texts_longer_than_the_context() -> None:
    with pytest.raises(ValueError, match="windows of 29 tokens exceed the estimator's context of 8; cut them"):
        attribution.token_entropies(tiny_estimator(context=CONTEXT), IDS_BT, measure="occlusion-l1")


@settings(deadline=None)
@given(st.integers(0, 60), st.none() | st.integers(1, 20))
def test_every_token_has_its_value_from_the_first_window_that_holds_it(tokens: int, context: int | None) -> None:
    seen: list[tuple[int, int]] = []
    places_1T = torch.arange(tokens).unsqueeze(0)

    def of_window(window: Window) -> Tensor:
        seen.append((window.start, window.stop))
        return places_1T[:, window.start : window.stop]

    assert torch.equal(over_windows(of_window, tokens, context), places_1T)
    assert all(stop - start <= (context or tokens) for start, stop in seen)
    if context:
        assert [start for start, _ in seen] == [place * (context - context // 2) for place in range(len(seen))]
