"""Gradients of distillation from stored predictions against those of the teacher's whole distribution.

N tokens, V vocabulary, K likeliest ids, S sampled ids, R repetitions.
"""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.models.predictions import label_values, systematic_sample
from pipeline.training.distillation import Rest, SparseTargets, distillation, sampled_targets, top_k_targets
from schemas.annotations import LOGPROB_ROUNDING_NATS, REST_LOGPROB, TOP_IDS, TOP_LOGPROBS, Shape

N, V = 6, 23


def logits(seed: int, vocabulary: int = V) -> Tensor:
    return 2 * torch.randn(N, vocabulary, generator=torch.Generator().manual_seed(seed))


def stored_top(teacher_NV: Tensor, count: int) -> SparseTargets:
    """Return the teacher's `count` likeliest ids as targets, rounded as annotation stores them."""
    log_p_NV, columns = teacher_NV.log_softmax(dim=1), dict[str, Shape]()
    columns |= {TOP_IDS: (count,), TOP_LOGPROBS: (count,), REST_LOGPROB: ()}
    values = dict(label_values(log_p_NV, torch.zeros(N, dtype=torch.long), torch.zeros(N), columns))
    top_KN, rest_N = (values[name] for name in (TOP_LOGPROBS, REST_LOGPROB))
    step = LOGPROB_ROUNDING_NATS
    return top_k_targets(values[TOP_IDS].T, (top_KN.T / step).round() * step, (rest_N / step).round() * step)


def gradient(targets: SparseTargets, pupil_NV: Tensor, rest: Rest = "bucket") -> Tensor:
    pupil_NV = pupil_NV.clone().requires_grad_()
    distillation(pupil_NV, targets, rest).sum().backward()
    assert pupil_NV.grad is not None
    return pupil_NV.grad


def dense_gradient(p_NV: Tensor, pupil_NV: Tensor) -> Tensor:
    pupil_NV = pupil_NV.clone().requires_grad_()
    cross_entropy(pupil_NV, p_NV, reduction="sum").backward()
    assert pupil_NV.grad is not None
    return pupil_NV.grad


@pytest.mark.parametrize("rest", ["bucket", "spread"])
def test_all_ids_give_the_dense_gradient(rest: Rest) -> None:
    teacher_NV, pupil_NV = logits(0), logits(1)
    p_NV = teacher_NV.softmax(dim=1)
    torch.testing.assert_close(
        gradient(stored_top(teacher_NV, V), pupil_NV, rest), dense_gradient(p_NV, pupil_NV), atol=1e-3, rtol=0
    )
    exact = SparseTargets(torch.arange(V).expand(N, -1), p_NV, torch.zeros(N))
    torch.testing.assert_close(gradient(exact, pupil_NV, rest), dense_gradient(p_NV, pupil_NV), atol=1e-6, rtol=0)


def test_the_mean_gradient_of_sampled_ids_is_the_dense_gradient() -> None:
    repetitions, drawn = 4000, 3
    teacher_NV, pupil_NV = logits(0), logits(1)
    p_NV = teacher_NV.softmax(dim=1)
    uniform_RN = torch.rand(repetitions, N, generator=torch.Generator().manual_seed(0))
    gradients_RNV = torch.stack(
        [
            gradient(sampled_targets(systematic_sample(p_NV, uniform_N, drawn).float()), pupil_NV)
            for uniform_N in uniform_RN
        ]
    )
    error_NV = (p_NV * (1 - p_NV) / drawn / repetitions).sqrt()  # of independent draws
    off_NV = gradients_RNV.mean(dim=0) - dense_gradient(p_NV, pupil_NV)
    assert (off_NV.abs() < 5 * error_NV + 1e-6).all()
    spread = (gradients_RNV.var(dim=0) / repetitions).sum() / error_NV.square().sum()
    assert spread < 0.8, "systematic draws vary less than independent ones"


def test_the_rest_is_one_event_or_spread_evenly() -> None:
    teacher_NV, pupil_NV, count = logits(0), logits(1), 4
    targets = stored_top(teacher_NV, count)
    q_NV, p_NV = pupil_NV.softmax(dim=1), teacher_NV.softmax(dim=1)
    for index in range(N):
        top_K = p_NV[index].topk(count).indices
        others = torch.ones(V, dtype=torch.bool).index_fill(0, top_K, False)
        kept = -(p_NV[index] * q_NV[index].log())[top_K].sum()
        rest = p_NV[index][others].sum()
        bucket = kept - rest * q_NV[index][others].sum().log()
        spread = kept - rest * q_NV[index][others].log().mean()
        torch.testing.assert_close(distillation(pupil_NV, targets, "bucket")[index], bucket, atol=5e-3, rtol=0)
        torch.testing.assert_close(distillation(pupil_NV, targets, "spread")[index], spread, atol=5e-3, rtol=0)


def test_tokens_without_a_label_have_no_loss_and_no_gradient() -> None:
    nothing_N4 = torch.full((N, 4), torch.nan)
    for targets in (top_k_targets(nothing_N4, nothing_N4, nothing_N4[:, 0]), sampled_targets(nothing_N4)):
        assert (distillation(logits(1), targets) == 0).all()
        assert (gradient(targets, logits(1)) == 0).all()


def test_ids_that_the_pupil_does_not_know_belong_to_the_rest() -> None:
    """The teacher knows three ids that the pupil does not know. None of the three is the likeliest id of a token."""
    teacher_NV = logits(0, V + 3)
    teacher_NV[:, V:] -= 1.5
    whole = stored_top(teacher_NV, V + 3)
    targets = SparseTargets(*(part[:, :8] if part.dim() == 2 else part for part in whole))
    targets = targets._replace(rest_N=1 - targets.p_NK.sum(dim=1))
    known_NK = targets.ids_NK < V
    for index in range(N):
        known_K = known_NK[index]
        assert known_K[0]
        p_K, ids_K = targets.p_NK[index][known_K], targets.ids_NK[index][known_K]
        own = SparseTargets(ids_K.unsqueeze(0), p_K.unsqueeze(0), 1 - p_K.sum().unsqueeze(0))
        pupil_1V = logits(1)[index : index + 1]
        torch.testing.assert_close(distillation(logits(1), targets)[index], distillation(pupil_1V, own)[0])
    assert not known_NK.all()


@pytest.mark.parametrize("certainty", [0, 5, 8, 12, 20])
def test_the_rest_is_exact_for_a_certain_student(certainty: float) -> None:
    """The student gives nearly all probability to one stored id, and float64 tells what is left for the others."""
    targets = SparseTargets(torch.arange(3).expand(N, -1), torch.full((N, 3), 0.3), torch.full((N,), 0.1))
    pupil_NV = logits(1)
    pupil_NV[:, 1] += certainty
    q_NV = pupil_NV.double().softmax(dim=1)
    slow_N = -(0.3 * q_NV[:, :3].log()).sum(dim=1) - 0.1 * q_NV[:, 3:].sum(dim=1).log()
    torch.testing.assert_close(distillation(pupil_NV, targets).double(), slow_N, rtol=1e-4, atol=1e-5)
    wide_NV = pupil_NV.double().requires_grad_()
    wide_q_NV = wide_NV.softmax(dim=1)
    (-(0.3 * wide_q_NV[:, :3].log()).sum() - 0.1 * wide_q_NV[:, 3:].sum(dim=1).log().sum()).backward()
    assert wide_NV.grad is not None
    torch.testing.assert_close(gradient(targets, pupil_NV).double(), wide_NV.grad, rtol=1e-3, atol=1e-5)
