"""Predictions of given ids, and their gradient, compared with those that torch computes from the whole softmax.

N tokens, V vocabulary, K given ids, R rows of results.
"""

import pytest
import torch
from torch import Tensor

from pipeline.models.cross_entropy import token_sums, token_sums_and_given
from pipeline.models.logit_sums import SUMS, GivenIds, given_ids, gradient_of_sums, logit_sums

N, V = 40, 29
# Logit that is added to one given id. At 12, the others have a probability of some 1e-5, and at 40 of some 1e-17.
CERTAINTY = (0, 3, 8, 12, 40)


def logits(certainty: float = 0) -> Tensor:
    logits_NV = torch.randn(N, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits_NV[:, 5] += certainty
    return logits_NV


def ids(count: int) -> Tensor:
    """Return ids that include 5. Row n has n % (K + 1) of them, at random places, and -1 elsewhere."""
    random = torch.Generator().manual_seed(1)
    ids_NK = torch.stack([torch.randperm(V, generator=random) for _ in range(N)])
    ids_NK = torch.cat([torch.full((N, 1), 5), ids_NK[ids_NK != 5].view(N, V - 1)], dim=1)[:, :count]
    ids_NK[torch.arange(count) >= (torch.arange(N) % (count + 1)).unsqueeze(1)] = -1
    return torch.stack([row_K[torch.randperm(count, generator=random)] for row_K in ids_NK])


def slow(logits_NV: Tensor, ids_NK: Tensor) -> GivenIds:
    """Return the same from a loop over tokens, which sums the probabilities of all other ids."""
    logprobs, others = [], []
    for log_p_V, ids_K in zip(logits_NV.log_softmax(dim=1), ids_NK.tolist(), strict=True):
        logprobs.append(torch.stack([log_p_V[each] if each >= 0 else log_p_V.new_zeros(()) for each in ids_K]))
        others.append(log_p_V[[each for each in range(V) if each not in ids_K]].logsumexp(dim=0))
    return GivenIds(torch.stack(logprobs), torch.stack(others))


@pytest.mark.parametrize("certainty", CERTAINTY)
@pytest.mark.parametrize("count", [1, 4, V - 1])
def test_given_ids_are_those_of_a_loop(certainty: float, count: int) -> None:
    logits_NV, ids_NK = logits(certainty), ids(count)
    found, expected = given_ids(logits_NV.log_softmax(dim=1), ids_NK), slow(logits_NV, ids_NK)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    rounded = given_ids(logits_NV.float().log_softmax(dim=1), ids_NK)
    torch.testing.assert_close(rounded.others_N.double(), expected.others_N, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(GivenIds.from_rows(found.rows()), found)


@pytest.mark.parametrize("certainty", CERTAINTY)
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("sums", ["all sums", "losses"])
def test_the_gradient_is_that_of_autograd(certainty: float, softcap: float | None, sums: str) -> None:
    plain_NV, ids_NK, target_N = logits(certainty).requires_grad_(), ids(4), torch.arange(N) % V
    upstream_RN = torch.randn(SUMS + 5, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if sums == "losses":
        upstream_RN[1:SUMS] = 0
    capped_NV = plain_NV if softcap is None else softcap * (plain_NV / softcap).tanh()
    given = slow(capped_NV, ids_NK)
    rows_RN = torch.cat([torch.stack(logit_sums(capped_NV, target_N)), given.rows()])
    (expected_NV,) = torch.autograd.grad(rows_RN, plain_NV, upstream_RN)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        found_NV = gradient_of_sums(
            capped_NV.detach().clone().to(dtype),
            target_N,
            upstream_RN.to(dtype),
            (ids_NK, given.others_N.detach().to(dtype)),
            softcap,
        )
        torch.testing.assert_close(found_NV.double(), expected_NV, rtol=tolerance, atol=tolerance)


def test_chunks_give_the_predictions_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.models.cross_entropy.CPU_CHUNK_LOGITS", 7 * V)
    torch.manual_seed(0)
    hidden_ND, head_VD, bias_V = (torch.randn(*shape).requires_grad_() for shape in ((N, 8), (V, 8), (V,)))
    target_N, ids_NK = torch.arange(N) % V, ids(4)
    logits_NV = hidden_ND @ head_VD.T + bias_V
    whole = [*logit_sums(logits_NV, target_N), *slow(logits_NV, ids_NK)]
    sums, given = token_sums_and_given(hidden_ND, head_VD, target_N, ids_NK, bias_V=bias_V)
    torch.testing.assert_close([*sums, *given], whole)
    assert torch.stack(sums).equal(torch.stack(token_sums(hidden_ND, head_VD, target_N, bias_V=bias_V)))
    leaves = (hidden_ND, head_VD, bias_V)
    found, expected = (
        torch.autograd.grad(torch.stack([each.sin().sum() for each in rows]).sum(), leaves)
        for rows in ([*sums, *given], whole)
    )
    torch.testing.assert_close(found, expected)
