"""Labels of a mixture of language models, against dense probabilities and against a single model."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.labels import causal
from pipeline.labels.ensemble import combined, member_columns
from pipeline.labels.mixture import Teacher, mixture_labels, token_labels
from pipeline.models import cross_entropy as cross_entropy_in_chunks
from pipeline.models.causal_lm import OutputHead, prepend_start
from schemas.annotations import ENTROPY, ENTROPY_DEVIATION, EXPECTED_ENTROPY, RANK, Shape
from tests.families import tiny_of_family
from tests.tiny_models import random_tokens, tiny_language_model

COLUMNS = (ENTROPY, EXPECTED_ENTROPY, RANK)
VOCABULARY = 31


def numbers(*names: str) -> dict[str, Shape]:
    """Return columns of one number per token."""
    return dict.fromkeys(names, ())


def teachers(*families: str) -> list[Teacher]:
    """Return models of different classes, each with its own start token."""
    return [Teacher(tiny_of_family(family), start) for start, family in enumerate(families, 3)]


def probabilities(teacher: Teacher, input_ids_BT: Tensor) -> Tensor:
    logits_BTV: Tensor = teacher.model(input_ids=prepend_start(input_ids_BT, teacher.start)).logits
    return logits_BTV.double().softmax(dim=-1)[..., :VOCABULARY]


@pytest.mark.parametrize(
    "families", [("llama", "gpt-2, learned positions"), ("gpt-2, learned positions", "gemma 2, soft cap", "llama")]
)
def test_labels_are_those_of_the_mean_of_dense_probabilities(families: tuple[str, ...]) -> None:
    members, input_ids_BT = teachers(*families), random_tokens(3, 9, vocabulary=VOCABULARY)
    labels = token_labels(members, input_ids_BT, numbers(*COLUMNS, *member_columns(len(members))))
    each_MBTV = torch.stack([probabilities(member, input_ids_BT) for member in members])
    mean_BTV, target_BT1 = each_MBTV.mean(dim=0), input_ids_BT.unsqueeze(2)
    target_BT = mean_BTV.gather(2, target_BT1).squeeze(2)
    torch.testing.assert_close(labels[ENTROPY], -target_BT.log().float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        labels[EXPECTED_ENTROPY], torch.special.entr(mean_BTV).sum(dim=2).float(), atol=1e-4, rtol=1e-4
    )
    assert torch.equal(labels[RANK], (mean_BTV > mean_BTV.gather(2, target_BT1)).sum(dim=2).float())
    for name, own_BTV in zip(member_columns(len(members)), each_MBTV, strict=True):
        torch.testing.assert_close(
            labels[name], -own_BTV.gather(2, target_BT1).squeeze(2).log().float(), atol=1e-4, rtol=1e-4
        )
    assert (labels[ENTROPY] - labels["surprisal of member 0"]).abs().max() > 0.1, "the models are alike"


@pytest.mark.parametrize("members", [1, 2, 5])
def test_equal_models_label_as_one_does(members: int) -> None:
    model, input_ids_BT = tiny_language_model(), random_tokens(2, 10)
    labels = token_labels([Teacher(model, 5)] * members, input_ids_BT, numbers(*COLUMNS, *member_columns(members)))
    alone = causal.token_labels(model, input_ids_BT, 5, numbers(*COLUMNS))
    for name in COLUMNS:
        torch.testing.assert_close(labels[name], alone[name], atol=2e-5, rtol=1e-5)
    for name in member_columns(members):
        assert torch.equal(labels[name], alone[ENTROPY])


@given(seed=st.integers(0, 999), sizes=st.lists(st.integers(7, 12), min_size=2, max_size=4))
def test_the_order_of_models_does_not_matter_and_padded_vocabularies_may_differ(seed: int, sizes: list[int]) -> None:
    random = torch.Generator().manual_seed(seed)
    heads = [OutputHead(3 * torch.randn(size, 4 + size, generator=random)) for size in sizes]
    hidden = [torch.randn(2, 3, 4 + size, generator=random) for size in sizes]
    targets_BT = torch.randint(7, (2, 3), generator=random)
    labels = mixture_labels(hidden, heads, targets_BT, numbers(*COLUMNS))
    turned = mixture_labels(hidden[::-1], heads[::-1], targets_BT, numbers(*COLUMNS))
    p_BTV = torch.zeros(2, 3, max(sizes))
    for states, head in zip(hidden, heads, strict=True):
        p_BTV[..., : len(head.weight_VD)] += (states @ head.weight_VD.T).softmax(dim=-1) / len(heads)
    torch.testing.assert_close(
        labels[ENTROPY], -p_BTV.gather(2, targets_BT.unsqueeze(2)).squeeze(2).log(), atol=1e-4, rtol=1e-4
    )
    for name in (ENTROPY, EXPECTED_ENTROPY):
        torch.testing.assert_close(turned[name], labels[name], atol=1e-4, rtol=1e-4)


def test_chunks_and_windows_change_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    members, input_ids_BT = teachers("llama", "gpt-2, learned positions"), random_tokens(2, 9, vocabulary=VOCABULARY)
    whole = token_labels(members, input_ids_BT, numbers(*COLUMNS))
    monkeypatch.setattr(cross_entropy_in_chunks, "CPU_CHUNK_LOGITS", 5 * VOCABULARY)
    for name, labels_BT in token_labels(members, input_ids_BT, numbers(*COLUMNS)).items():
        torch.testing.assert_close(labels_BT, whole[name], atol=1e-5, rtol=1e-5)
    short, long = Teacher(tiny_language_model(context=8), 5), Teacher(tiny_language_model(context=32), 5)
    texts_BT = random_tokens(1, 20)
    labels_BT = token_labels([short, long], texts_BT, numbers(ENTROPY))[ENTROPY]
    first_BT = token_labels([short, long], texts_BT[:, :8], numbers(ENTROPY))[ENTROPY]
    torch.testing.assert_close(labels_BT[:, :8], first_BT)


def test_a_mixture_is_never_above_the_mean_of_its_members() -> None:
    members, input_ids_BT = (
        teachers("llama", "gpt-2, learned positions", "gemma 2, soft cap"),
        random_tokens(4, 9, vocabulary=VOCABULARY),
    )
    own = member_columns(3)
    labels = token_labels(members, input_ids_BT, numbers(ENTROPY, *own))
    surprisals_MBT = torch.stack([labels[name] for name in own])
    assert (labels[ENTROPY] <= surprisals_MBT.mean(dim=0) + 1e-5).all()
    assert (labels[ENTROPY] <= surprisals_MBT.amin(dim=0) + math.log(3) + 1e-5).all()


@given(st.lists(st.lists(st.floats(-5, 50, width=32), min_size=3, max_size=3), min_size=2, max_size=5))
def test_readings_are_averaged_and_their_deviation_is_that_of_a_sample(surprisals: list[list[float]]) -> None:
    readings = [{ENTROPY: [np.array(nats, np.float32), np.array([np.nan], np.float32)]} for nats in surprisals]
    labels = combined(readings)
    np.testing.assert_allclose(labels[ENTROPY][0], np.mean(surprisals, axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(labels[ENTROPY_DEVIATION][0], np.std(surprisals, axis=0, ddof=1), rtol=1e-5, atol=1e-5)
    assert np.isnan(labels[ENTROPY][1]).all() and np.isnan(labels[ENTROPY_DEVIATION][1]).all()
    together = {ENTROPY: readings[0][ENTROPY]}
    together |= {name: reading[ENTROPY] for name, reading in zip(member_columns(len(readings)), readings, strict=True)}
    same = combined([together])
    assert set(same) == {ENTROPY, ENTROPY_DEVIATION} and same[ENTROPY] is not labels[ENTROPY]
    np.testing.assert_array_equal(same[ENTROPY_DEVIATION][0], labels[ENTROPY_DEVIATION][0])
