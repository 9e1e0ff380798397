"""The autoencoder: the decoder's input, the tokens that each part depends on, gradients, and saving."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.models.autoencoder import Autoencoder, unrolled
from tests.tiny_models import random_tokens, tiny_autoencoder

CONTEXT = 12
VARIANTS = [
    pytest.param({"encoder_kind": kind, "decoder_kind": kind, "given": given, "bottleneck_width": width})
    for kind, given, width in product(("transformer", "mixer"), ("repeated", "unrolled"), (5, None))
]


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_position_i_gets_half_of_the_numbers_from_number_i_on(tokens: int) -> None:
    embedding_BC = torch.arange(20.0).view(2, 10)
    given_BTH = unrolled(embedding_BC, tokens)
    assert given_BTH.shape == (2, tokens, 5)
    for row, position, place in product(range(2), range(tokens), range(5)):
        assert given_BTH[row, position, place] == embedding_BC[row, (position + place) % 10]


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_depend_on_tokens_only_through_the_last_embedding(variant: dict[str, Any]) -> None:
    model, input_ids_BT = tiny_autoencoder(**variant), random_tokens(3, CONTEXT)
    lengths_B = torch.tensor([CONTEXT, 5, 1])
    losses_BT = model.token_losses(input_ids_BT, lengths_B)
    for row, length in enumerate(lengths_B.tolist()):
        alone_BT = input_ids_BT[row : row + 1, :length]
        bottleneck_BE = model.bottlenecks(alone_BT)[:, -1]
        logits_TV = model.decode(bottleneck_BE, length)[0] @ model.head.weight.T
        expected_T = torch.nn.functional.cross_entropy(logits_TV, alone_BT[0], reduction="none")
        torch.testing.assert_close(losses_BT[row, :length], expected_T, atol=1e-4, rtol=1e-4)
        assert losses_BT[row, length:].eq(0).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_weight(variant: dict[str, Any]) -> None:
    model = tiny_autoencoder(**variant).requires_grad_(True)
    model.token_losses(random_tokens(4, CONTEXT), torch.full((4,), CONTEXT)).mean().backward()
    without = {name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()}
    # Attention over identical values does not depend on queries and keys.
    same_everywhere = variant["decoder_kind"] == "transformer" and variant["given"] == "repeated"
    looked_for = {
        name for name in without if name.startswith("decoder.") and name.endswith(("q_proj.weight", "k_proj.weight"))
    }
    assert without == looked_for and (same_everywhere or not looked_for)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_saved_variant_loads_unchanged(variant: dict[str, Any], tmp_path: Path) -> None:
    model, lengths_B = tiny_autoencoder(**variant), torch.full((2,), CONTEXT)
    model.save_pretrained(tmp_path)
    loaded = Autoencoder.from_pretrained(tmp_path, use_safetensors=True)
    expected: Tensor = model.token_losses(random_tokens(2, CONTEXT), lengths_B)
    torch.testing.assert_close(loaded.token_losses(random_tokens(2, CONTEXT), lengths_B), expected)


def test_a_transformer_cannot_tell_positions_apart_by_a_repeated_embedding() -> None:
    spread: dict[tuple[str, str], float] = {}
    for kind, given in product(("transformer", "mixer"), ("repeated", "unrolled")):
        model = tiny_autoencoder(encoder_kind=kind, decoder_kind=kind, given=given, bottleneck_width=None)
        spread[kind, given] = model.decode(torch.randn(1, 16), CONTEXT)[0].std(dim=0).max().item()
    assert spread["transformer", "repeated"] < 1e-4
    assert min(value for what, value in spread.items() if what != ("transformer", "repeated")) > 1e-2
