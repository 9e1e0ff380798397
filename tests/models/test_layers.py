"""Stacks divided at a layer: in every family, the two parts in sequence compute the same as the whole stack."""

import pytest
import torch

from pipeline.models.causal_lm import decoder, last_hidden
from pipeline.models.layers import DividedStack, layers_of
from tests.families import FAMILIES, WITHOUT_POSITIONS, tiny_of_family
from tests.tiny_models import random_tokens, tiny_language_model


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("family", [*FAMILIES, *WITHOUT_POSITIONS])
def test_both_parts_together_are_the_stack(family: str, layer: int) -> None:
    stack, input_ids_BT = decoder(tiny_of_family(family)), random_tokens(2, 9, vocabulary=31)
    divided = DividedStack(stack, layer)
    torch.testing.assert_close(divided.above(divided.below(input_ids_BT)), last_hidden(stack, input_ids_BT))


def test_the_states_between_are_those_that_transformers_gives() -> None:
    stack, input_ids_BT = decoder(tiny_language_model()), random_tokens(2, 9)
    expected = stack(input_ids=input_ids_BT, use_cache=False, output_hidden_states=True).hidden_states
    for layer in (0, 1):
        torch.testing.assert_close(DividedStack(stack, layer).below(input_ids_BT), expected[layer])


def test_each_part_runs_its_own_layers_only() -> None:
    stack = decoder(tiny_language_model())
    run: list[int] = []
    divided = DividedStack(stack, 1)
    for index, layer in enumerate(layers_of(stack)):
        layer.get_submodule("self_attn").register_forward_hook(lambda *_, index=index: run.append(index))
    states_BTD = divided.below(random_tokens(1, 5))
    assert run == [0]
    divided.above(states_BTD)
    assert run == [0, 1]
    last_hidden(stack, random_tokens(1, 5))
    assert run == [0, 1, 0, 1]


def test_a_stack_whose_layers_pass_on_more_than_their_states_is_refused() -> None:
    """Some models cannot be divided, because their later layers read keys and values of earlier layers."""
    stack = decoder(tiny_language_model())
    first, second = layers_of(stack)
    passed: list[torch.Tensor] = []
    first.get_submodule("self_attn").register_forward_hook(lambda _, inputs, output: passed.append(output[0]))
    forward = second.forward
    second.forward = lambda states, *inputs, **named: forward(states + passed[-1], *inputs, **named)
    with pytest.raises(ValueError, match="cannot be divided; let the embedding enter at the logits"):
        DividedStack(stack, 1)
    assert DividedStack(stack, 0).width == 24


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="above layer 2 of 2"):
        DividedStack(decoder(tiny_language_model()), 2)
