"""Attribution scores compared with slow, obvious versions: all logits at once, a mask, a backward pass per token."""

from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from pipeline.labels import attribution
from pipeline.labels.attribution import Measure, decode_alone, token_entropies
from pipeline.models import cross_entropy as chunked
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.stacks import input_embeddings
from tests.builders import VOCABULARY
from tests.tiny_models import random_tokens, tiny_estimator

MEASURES: tuple[Measure, ...] = get_args(Measure)


def bottleneck(estimator: EntropyEstimator, tokens_T: Tensor) -> Tensor:
    hidden_TC = estimator.encoder(input_ids=tokens_T.unsqueeze(0)).last_hidden_state[0]
    bottleneck_E: Tensor = estimator.down(hidden_TC[-1])
    return bottleneck_E


def masked_hidden(estimator: EntropyEstimator, embedding_D: Tensor, tokens_T: Tensor) -> Tensor:
    """Return the decoder's last hidden states [T, D], computed with a mask that hides the window's embedding.

    The embedding keeps its position, the first one, but no other position can attend to it.
    """
    width = len(tokens_T)
    mask_TT = torch.full((width, width), -torch.inf).triu(1)
    mask_TT[1:, 0] = -torch.inf
    inputs_TD = torch.cat([embedding_D.unsqueeze(0), input_embeddings(estimator.decoder)(tokens_T[:-1])])
    output = estimator.decoder(inputs_embeds=inputs_TD.unsqueeze(0), attention_mask=mask_TT.view(1, 1, width, width))
    hidden_TD: Tensor = output.last_hidden_state[0]
    return hidden_TD


def slow_scores(estimator: EntropyEstimator, tokens_T: Tensor, measure: Measure, seed: int = 0) -> Tensor:
    """Return normalised scores of one window without padding."""
    bottleneck_E = bottleneck(estimator, tokens_T)
    embedding_D = estimator.introduced(bottleneck_E).detach().requires_grad_()
    seen_TV = estimator.decode(embedding_D.unsqueeze(0), tokens_T.unsqueeze(0))[0] @ estimator.head_VD.T
    loss_T = cross_entropy(seen_TV, tokens_T, reduction="none")
    if measure == "gradient-input":
        gradients = [torch.autograd.grad(loss, embedding_D, retain_graph=True)[0] for loss in loss_T]
        return normalised(torch.stack([(gradient * embedding_D).sum().abs() for gradient in gradients]).detach())
    if measure == "memory-shift":
        noise_E = torch.rand(len(bottleneck_E), generator=torch.Generator().manual_seed(seed)) / 2 - 1 / 4
        shifted_D = estimator.introduced(bottleneck_E + noise_E)
        other_TV = estimator.decode(shifted_D.unsqueeze(0), tokens_T.unsqueeze(0))[0] @ estimator.head_VD.T
    else:
        other_TV = masked_hidden(estimator, torch.zeros_like(embedding_D), tokens_T) @ estimator.head_VD.T
    if measure == "occlusion-l1":
        return normalised((seen_TV - other_TV).abs().sum(dim=1).detach())
    if measure == "occlusion-cosine":
        return normalised(1 - cosine_similarity(seen_TV, other_TV, dim=1).detach())
    return normalised((loss_T - cross_entropy(other_TV, tokens_T, reduction="none")).abs().detach())


def normalised(scores_T: Tensor) -> Tensor:
    return (scores_T - scores_T.min()) / (scores_T.max() - scores_T.min())


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("measure", MEASURES)
def test_scores_equal_a_slow_obvious_version(measure: Measure, trainable: bool) -> None:
    estimator, input_ids_BT = tiny_estimator().requires_grad_(trainable), random_tokens(3, 30)
    scores_BT = token_entropies(estimator, input_ids_BT, measure=measure, seed=7)
    slow_BT = torch.stack([slow_scores(estimator, tokens_T, measure, seed=7) for tokens_T in input_ids_BT])
    assert scores_BT.dtype == torch.float32 and not scores_BT.requires_grad
    torch.testing.assert_close(scores_BT, slow_BT, atol=1e-4, rtol=0)


@pytest.mark.parametrize("measure", MEASURES)
def test_padding_has_no_score_and_rows_are_independent(measure: Measure) -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(3, 20)
    lengths_B = torch.tensor([20, 2, 11])
    scores_BT = token_entropies(estimator, input_ids_BT, lengths_B, measure=measure)
    for row, length in enumerate(lengths_B.tolist()):
        alone_T = token_entropies(estimator, input_ids_BT[row : row + 1, :length], measure=measure)[0]
        torch.testing.assert_close(scores_BT[row, :length], alone_T, atol=1e-4, rtol=0)
        assert scores_BT[row, length:].isnan().all()


@pytest.mark.parametrize("measure", MEASURES)
def test_each_row_runs_from_0_to_1(measure: Measure) -> None:
    scores_BT = token_entropies(tiny_estimator(), random_tokens(4, 16), measure=measure)
    assert scores_BT.amin(dim=1).eq(0).all() and scores_BT.amax(dim=1).eq(1).all()


def test_a_row_with_equal_scores_has_zeros() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, 12)
    for measure in MEASURES:
        assert token_entropies(estimator, input_ids_BT[:, :1], measure=measure).eq(0).all()
    estimator.introduce.get_parameter("weight").zero_()
    assert token_entropies(estimator, input_ids_BT, measure="memory-shift").eq(0).all()


@pytest.mark.parametrize("tokens", [1, 2, 24])
def test_a_pass_without_the_embedding_equals_a_masked_zero_embedding(tokens: int) -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, tokens)
    masked_BTD = torch.stack([masked_hidden(estimator, torch.zeros(24), tokens_T) for tokens_T in input_ids_BT])
    torch.testing.assert_close(decode_alone(estimator, input_ids_BT), masked_BTD, atol=1e-5, rtol=1e-5)


def test_the_reference_mask_really_hides_the_embedding() -> None:
    estimator, tokens_T = tiny_estimator(), random_tokens(1, 24)[0]
    one_D, other_D = torch.randn(2, 24, generator=torch.Generator().manual_seed(1))
    masked_TD, changed_TD = masked_hidden(estimator, one_D, tokens_T), masked_hidden(estimator, other_D, tokens_T)
    assert masked_TD[1:].equal(changed_TD[1:]) and not masked_TD[0].equal(changed_TD[0])
    open_BTD = estimator.decode(torch.stack([one_D, other_D]), tokens_T.expand(2, -1))
    assert (open_BTD[0] != open_BTD[1]).any(dim=-1).all(), "some token does not see the embedding even unmasked"


def test_occluded_states_do_not_depend_on_the_encoder() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, 12)
    before_BTD = decode_alone(estimator, input_ids_BT)
    estimator.introduce.get_parameter("bias").add_(1)
    input_embeddings(estimator.encoder).weight.mul_(-1)
    assert decode_alone(estimator, input_ids_BT).equal(before_BTD)


def test_logits_exist_one_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(3, 30)
    sizes: list[int] = []
    l1 = attribution._l1

    def counted(seen_nV: Tensor, other_nV: Tensor) -> Tensor:
        sizes.append(len(seen_nV))
        return l1(seen_nV, other_nV)

    whole_BT = token_entropies(estimator, input_ids_BT, measure="occlusion-l1")
    monkeypatch.setattr(chunked, "CPU_CHUNK_LOGITS", 40 * VOCABULARY)
    monkeypatch.setattr(attribution, "_l1", counted)
    chunked_BT = token_entropies(estimator, input_ids_BT, measure="occlusion-l1")
    assert sizes == [40, 40, 10]
    torch.testing.assert_close(chunked_BT, whole_BT, atol=1e-5, rtol=0)


def test_the_seed_decides_the_memory_shift() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, 12)
    first_BT, again_BT, other_BT = (
        token_entropies(estimator, input_ids_BT, measure="memory-shift", seed=seed) for seed in (1, 1, 2)
    )
    assert first_BT.equal(again_BT) and not first_BT.equal(other_BT)


def test_an_unknown_measure_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'l2'.*" + ", ".join(MEASURES)):
        token_entropies(tiny_estimator(), random_tokens(1, 4), measure="l2")  # type: ignore[arg-type]
