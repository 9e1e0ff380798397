"""Causal labels compared with the model's own logits, one prediction after another."""

import pytest
import torch
from torch.distributions import Categorical
from torch.nn.functional import cross_entropy

from pipeline.labels.causal import token_entropies, token_labels
from pipeline.models import cross_entropy as cross_entropy_in_chunks
from pipeline.models.causal_lm import (
    OutputHead,
    predictive_labels,
    prepend_start,
    start_token,
)
from pipeline.models.loading import require_causal
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, RANK
from tests.families import FAMILIES, START, WITHOUT_POSITIONS, tiny_of_family
from tests.tiny_models import random_tokens, tiny_language_model


def test_labels_equal_losses_from_the_logits() -> None:
    model, input_ids_BT = tiny_language_model(), random_tokens(2, 10)
    entropies_BT = token_entropies(model, input_ids_BT, start=5)
    for row, tokens_T in enumerate(input_ids_BT):
        for place, token in enumerate(tokens_T):
            seen_T = torch.cat([torch.tensor([5]), tokens_T[:place]])
            expected = cross_entropy(model(input_ids=seen_T.unsqueeze(0)).logits[0, -1], token)
            torch.testing.assert_close(entropies_BT[row, place], expected, atol=1e-4, rtol=1e-4)


def test_a_model_without_a_declared_start_is_refused() -> None:
    model = tiny_language_model()
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(ValueError, match="neither bos_token nor eos_token is declared"):
        start_token(model.config)


@pytest.mark.parametrize("family", [*FAMILIES, *WITHOUT_POSITIONS])
def test_losses_and_entropies_match_the_logits_of_many_families(family: str) -> None:
    model = tiny_of_family(family)
    require_causal(model)
    input_ids_BT = random_tokens(2, 9, vocabulary=31)
    logits_BTV = model(input_ids=prepend_start(input_ids_BT, START)).logits.float()
    losses_BT = cross_entropy(logits_BTV.transpose(1, 2), input_ids_BT, reduction="none")
    assert losses_BT.std() > 0.3, "labels too much alike to tell anything"
    torch.testing.assert_close(token_entropies(model, input_ids_BT, START), losses_BT, atol=1e-4, rtol=1e-4)
    entropies_BT = Categorical(logits=logits_BTV).entropy()
    torch.testing.assert_close(
        token_labels(model, input_ids_BT, START, {EXPECTED_ENTROPY: ()})[EXPECTED_ENTROPY],
        entropies_BT,
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_entropies_in_chunks_equal_those_of_all_logits(
    tokens: int, bias: bool, softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    head = OutputHead(torch.randn(31, 8), torch.randn(31) if bias else None, softcap, scale=1.7)
    hidden_BTD, targets_BT = torch.randn(2, 9, 8), random_tokens(2, 9, vocabulary=31)
    logits_BTV = 1.7 * hidden_BTD @ head.weight_VD.T + (0 if head.bias_V is None else head.bias_V)
    if softcap is not None:
        logits_BTV = softcap * torch.tanh(logits_BTV / softcap)
    monkeypatch.setattr(cross_entropy_in_chunks, "CPU_CHUNK_LOGITS", 31 * tokens)
    columns = predictive_labels(hidden_BTD, head, targets_BT, dict.fromkeys((ENTROPY, EXPECTED_ENTROPY, RANK), ()))
    assert torch.equal(columns[ENTROPY], head.losses(hidden_BTD, targets_BT)), "other bits"
    target_BT1 = logits_BTV.gather(2, targets_BT.unsqueeze(2))
    assert torch.equal(columns[RANK], (logits_BTV > target_BT1).sum(dim=2).float())
    losses_BT = cross_entropy(logits_BTV.transpose(1, 2), targets_BT, reduction="none")
    for found_BT, expected_BT in (
        (head.losses(hidden_BTD, targets_BT), losses_BT),
        (columns[EXPECTED_ENTROPY], Categorical(logits=logits_BTV).entropy()),
    ):
        torch.testing.assert_close(found_BT, expected_BT, atol=1e-5, rtol=1e-5)
