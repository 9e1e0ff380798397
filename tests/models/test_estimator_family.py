"""Every variant of the estimator: the tokens that each part depends on, gradients, labels, and saving."""

from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.labels import exact
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.second_order import SecondOrderModel
from tests.tiny_models import random_tokens, tiny_estimator

KINDS = ("transformer", "mixer")
VARIANTS = [
    pytest.param(
        {
            "encoder_kind": encoder,
            "decoder_kind": decoder,
            "introduction": introduction,
            "introduced_above": above,
            "bottleneck_width": width,
            "encoder_kernel": 3 if encoder == "mixer" else 1,
        },
        id=f"{encoder}-{decoder}-{introduction}-above-{above}-bottleneck-{width}",
    )
    for encoder, decoder, (introduction, above, width) in product(
        KINDS,
        KINDS,
        (
            *product(("token", "embedding", "projection"), (0,), (3,)),
            *product(("token", "embedding"), (1,), (None,)),
            ("projection", 1, None),
            ("projection", 2, 3),
            ("projection", 2, None),
        ),
    )
]
CONTEXT = 12


def losses_one_by_one(estimator: EntropyEstimator, tokens_T: Tensor) -> Tensor:
    """Return the loss of each token, from a separate pass over only the tokens before that token."""
    embedding_BX = estimator.prefix_embeddings(tokens_T.unsqueeze(0))[:, -1]
    return torch.stack(
        [
            torch.nn.functional.cross_entropy(
                estimator.head_VD @ estimator.decode(embedding_BX, tokens_T[: place + 1].unsqueeze(0))[0, -1],
                tokens_T[place],
            )
            for place in range(len(tokens_T))
        ]
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_output_depends_on_a_later_token(variant: dict[str, Any]) -> None:
    estimator, input_ids_BT = tiny_estimator(context=CONTEXT, **variant), random_tokens(2, CONTEXT)

    @settings(max_examples=10, deadline=None)
    @given(st.integers(0, CONTEXT - 1))
    def changed_at(place: int) -> None:
        other_BT = input_ids_BT.clone()
        other_BT[:, place] = (other_BT[:, place] + 1) % 97
        before, after = (estimator.prefix_embeddings(ids) for ids in (input_ids_BT, other_BT))
        torch.testing.assert_close(before[:, :place], after[:, :place])
        assert (before[:, place] != after[:, place]).any()
        embedding_BX = before[:, -1]
        decoded, moved = (estimator.decode(embedding_BX, ids) for ids in (input_ids_BT, other_BT))
        torch.testing.assert_close(decoded[:, : place + 1], moved[:, : place + 1])
        assert place == CONTEXT - 1 or (decoded[:, place + 1] != moved[:, place + 1]).any()

    changed_at()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_embedding_of_a_prefix_depends_only_on_the_prefix(variant: dict[str, Any]) -> None:
    estimator, input_ids_BT = tiny_estimator(context=CONTEXT, **variant), random_tokens(2, CONTEXT)
    whole_BTX = estimator.prefix_embeddings(input_ids_BT)
    for length in (1, 2, 7, CONTEXT):
        alone_BTX = estimator.prefix_embeddings(input_ids_BT[:, :length])
        torch.testing.assert_close(whole_BTX[:, length - 1], alone_BTX[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_weight_and_the_embedding_every_loss(variant: dict[str, Any]) -> None:
    estimator = tiny_estimator(context=CONTEXT, **variant).requires_grad_(True)
    estimator.token_losses(random_tokens(4, CONTEXT)).mean().backward()
    without = [name for name, weight in estimator.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []
    ids_BT = random_tokens(1, CONTEXT)
    embedding_BX = estimator.prefix_embeddings(ids_BT)[:, -1]
    moved = (estimator.decode(embedding_BX, ids_BT) - estimator.decode(embedding_BX + 1, ids_BT)).abs().amax(dim=2)
    assert (moved > 1e-4).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_exact_labels_equal_explicit_differences_of_code_lengths(variant: dict[str, Any]) -> None:
    estimator, input_ids_BT = tiny_estimator(context=CONTEXT, **variant), random_tokens(2, CONTEXT)
    labels_BT = exact.token_entropies(estimator, input_ids_BT, torch.tensor([CONTEXT, 5]))
    for tokens_T, labels_T in zip((input_ids_BT[0], input_ids_BT[1, :5]), labels_BT, strict=True):
        codes = [losses_one_by_one(estimator, tokens_T[:n]).double().sum().item() for n in range(1, len(tokens_T) + 1)]
        expected_T = torch.tensor([after - before for before, after in pairwise([0.0, *codes])])
        torch.testing.assert_close(labels_T[: len(tokens_T)], expected_T.float(), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_variant_loads_unchanged(variant: dict[str, Any], tmp_path: Path) -> None:
    estimator, input_ids_BT = tiny_estimator(context=CONTEXT, **variant), random_tokens(2, CONTEXT)
    estimator.save_pretrained(tmp_path)
    loaded = EntropyEstimator.from_pretrained(tmp_path, use_safetensors=True)
    assert {name: getattr(loaded.config, name) for name in variant} == variant
    torch.testing.assert_close(loaded.token_losses(input_ids_BT), estimator.token_losses(input_ids_BT))


@pytest.mark.parametrize("place", ["bottleneck", "before-down"])
def test_noise_is_added_only_in_training_and_has_the_requested_size(place: str) -> None:
    silent, noisy = tiny_estimator(), tiny_estimator(noise=0.25, noise_place=place)
    input_ids_BT = random_tokens(50, 12)
    torch.testing.assert_close(silent.bottlenecks(input_ids_BT), noisy.bottlenecks(input_ids_BT))
    noisy.train()
    if place == "before-down":
        noisy.down = silent.down = torch.nn.Identity()
    shift: Tensor = noisy.bottlenecks(input_ids_BT) - silent.bottlenecks(input_ids_BT)
    assert 0.24 < shift.abs().max() <= 0.2501 and shift.mean().abs() < 0.02


@pytest.mark.parametrize("introduction", ["token", "projection"])
def test_an_estimator_starts_from_another(introduction: str) -> None:
    """If a new estimator starts from an old estimator of the same variant, both have the same losses.

    If the new estimator adds the embedding above all layers, it copies only the encoder and the decoder of the old
    estimator. The embedding of the new estimator has no effect until training. Until then, the states of the new
    decoder equal the sum of two terms: the states of the old decoder for an embedding of zeros, and a bias.
    """
    torch.manual_seed(1)
    late: dict[str, Any] = {"introduction": "projection", "introduced_above": 2}
    other, input_ids_BT = tiny_estimator(introduction=introduction), random_tokens(2, CONTEXT)
    same = tiny_estimator(introduction=introduction, initializer_range=0.1)
    same.begin_as(other)
    torch.testing.assert_close(same.token_losses(input_ids_BT), other.token_losses(input_ids_BT))
    added = tiny_estimator(**late, initializer_range=0.1)
    added.begin_as(other)
    nothing_BX = other.first_state.expand(2, -1) if introduction == "token" else torch.zeros(2, 24)
    hidden_BTD = other.decode(nothing_BX, input_ids_BT)
    bias_D = added.introduced(torch.zeros(3))
    torch.testing.assert_close(added.decode(added.introduced(torch.ones(2, 3)), input_ids_BT), hidden_BTD + bias_D)
    assert added.requires_grad_(True).token_losses(input_ids_BT).mean().requires_grad
    with pytest.raises(ValueError, match="another shape; give the same sizes"):
        tiny_estimator(**late, decoder_width=48).begin_as(other)


def test_contradicting_sizes_are_refused() -> None:
    for introduction, above in (("token", 2), ("embedding", 2), ("projection", 3)):
        with pytest.raises(ValueError, match=f"with {introduction} the embedding cannot enter above layer {above}"):
            tiny_estimator(introduction=introduction, introduced_above=above)
    with pytest.raises(ValueError, match="kernel of 3"):
        tiny_estimator(decoder_kernel=3)
    with pytest.raises(ValueError, match="start from a causal language model"):
        SecondOrderModel.from_estimator(tiny_estimator(introduction="projection"))
    with pytest.raises(ValueError, match="start from a causal language model"):
        SecondOrderModel.from_estimator(
            tiny_estimator(introduction="projection", introduced_above=2, decoder_kind="mixer")
        )


@pytest.mark.parametrize("deviation", [1.0, 40.0])
def test_labels_of_added_logits_are_right_even_for_distant_logits(deviation: float) -> None:
    """Each logit is a sum of two terms, one from the embedding and one from the tokens. `deviation` scales both terms.

    Exact labels need the sums, over the vocabulary, of products of the two terms' exponentials. With a deviation of 40,
    some of these sums underflow in float32.
    """
    estimator = tiny_estimator(introduction="projection", introduced_above=2, bottleneck_width=None)
    assert isinstance(estimator.introduce, torch.nn.Linear)
    estimator.introduce.weight.mul_(deviation)
    estimator.decoder.get_submodule("norm").get_parameter("weight").mul_(deviation)
    input_ids_BT = random_tokens(1, CONTEXT)
    labels_BT = exact.token_entropies(estimator, input_ids_BT)
    codes_T = torch.stack(
        [losses_one_by_one(estimator.double(), input_ids_BT[0, : n + 1]).sum() for n in range(CONTEXT)]
    )
    differences_T = codes_T.diff(prepend=codes_T.new_zeros(1))
    assert deviation == 1 or differences_T.abs().max() > 50
    torch.testing.assert_close(labels_BT[0].double(), differences_T, atol=1e-3, rtol=1e-5)


def test_added_logits_are_summed_over_a_large_vocabulary_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = tiny_estimator(introduction="projection", introduced_above=2)
    input_ids_BT = random_tokens(2, CONTEXT)
    whole_BT = exact.token_entropies(estimator, input_ids_BT)
    monkeypatch.setattr(exact, "CPU_CHUNK_VOCABULARY", 10)
    torch.testing.assert_close(exact.token_entropies(estimator, input_ids_BT), whole_BT)


def test_a_second_order_model_starts_as_the_language_model_under_added_logits() -> None:
    estimator = tiny_estimator(introduction="projection", introduced_above=2)
    model = SecondOrderModel.from_estimator(estimator, form="residual", label_mean=0.0, label_deviation=1.0)
    input_ids_BT = random_tokens(2, CONTEXT)
    without_BX = torch.zeros(2, estimator.config.decoder_width)
    logits_BTV = estimator.decode(without_BX, input_ids_BT) @ estimator.head_VD.T
    losses_BT = torch.nn.functional.cross_entropy(logits_BTV.transpose(1, 2), input_ids_BT, reduction="none")
    torch.testing.assert_close(model(input_ids_BT)[0].entropy_BT, losses_BT)
