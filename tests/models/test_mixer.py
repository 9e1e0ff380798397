"""The masked mixer compared with a slow, obvious sum."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.models.causal_lm import next_token_losses
from pipeline.models.loading import load_causal, require_causal
from pipeline.models.mixer import CausalConvolution, MaskedMixer, MixerConfig, MixerForCausalLM
from pipeline.models.stacks import add_dropout, new_language_model, stack_config
from tests.tiny_models import frozen


def config(*, heads: int, kernel: int, layers: int = 2) -> MixerConfig:
    return MixerConfig(
        vocab_size=11,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=9,
        kernel=kernel,
        initializer_range=0.3,
    )


def summed_by_hand(mixing: CausalConvolution, hidden_TD: Tensor) -> Tensor:
    """Return the mixed states, from loops over all indices.

    out[t, h, p] = bias[h, t] + sum over s <= t and j of weight[h, j, t, s] * in[s, h, p + j - (kernel - 1) // 2]
    """
    heads, kernel, _, _ = mixing.weight_HKCC.shape
    entered_THP = mixing.in_proj(hidden_TD).unflatten(1, (heads, -1))
    positions, _, width = entered_THP.shape
    out_THP = torch.zeros_like(entered_THP)
    for head in range(heads):
        for position in range(positions):
            for place in range(width):
                total = mixing.bias_HC[head, position]
                for before in range(position + 1):
                    for shift in range(kernel):
                        neighbour = place + shift - (kernel - 1) // 2
                        if 0 <= neighbour < width:
                            weight = mixing.weight_HKCC[head, shift, position, before]
                            total = total + weight * entered_THP[before, head, neighbour]
                out_THP[position, head, place] = total
    out_TD: Tensor = mixing.o_proj(out_THP.flatten(1))
    return out_TD


@pytest.mark.parametrize(("heads", "kernel", "positions"), [(1, 1, 9), (1, 3, 5), (2, 2, 4), (3, 4, 9), (4, 1, 1)])
def test_the_convolution_is_a_sum_over_earlier_positions_and_neighbouring_indices(
    heads: int, kernel: int, positions: int
) -> None:
    torch.manual_seed(0)
    mixing = MaskedMixer(config(heads=heads, kernel=kernel)).get_submodule("layers.0.mixing")
    assert isinstance(mixing, CausalConvolution)
    torch.nn.init.normal_(mixing.bias_HC)
    hidden_BTD = torch.randn(2, positions, 12)
    with torch.no_grad():
        expected_BTD = torch.stack([summed_by_hand(mixing, hidden_TD) for hidden_TD in hidden_BTD])
        torch.testing.assert_close(mixing(hidden_BTD), expected_BTD, atol=1e-5, rtol=1e-5)


def test_a_window_beyond_the_context_is_refused() -> None:
    mixer = frozen(MaskedMixer(config(heads=2, kernel=1)))
    with pytest.raises(ValueError, match="10 positions are more than the 9"):
        mixer(torch.zeros(1, 10, dtype=torch.long))


def tiny_mixer_language_model() -> MixerForCausalLM:
    torch.manual_seed(0)
    sizes = stack_config(
        "mixer", vocab_size=11, width=12, layers=2, heads=2, context=9, kernel=3, initializer_range=0.3
    )
    model = new_language_model(sizes, start=10)
    assert isinstance(model, MixerForCausalLM)
    return frozen(model)


def test_a_mixer_loads_like_any_causal_language_model(tmp_path: Path) -> None:
    model, input_ids_BT = tiny_mixer_language_model(), torch.randint(11, (3, 9))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    loaded = load_causal(tmp_path)
    assert isinstance(loaded, MixerForCausalLM) and loaded.config.bos_token_id == 10
    torch.testing.assert_close(loaded(input_ids_BT).logits, model(input_ids_BT).logits)
    require_causal(model)
    losses_BT = next_token_losses(model, input_ids_BT[:, :-1], input_ids_BT[:, 1:])
    for length in range(1, 9):
        alone_B = torch.nn.functional.cross_entropy(
            model(input_ids_BT[:, :length]).logits[:, -1], input_ids_BT[:, length], reduction="none"
        )
        torch.testing.assert_close(losses_BT[:, length - 1], alone_B, atol=1e-4, rtol=1e-4)


def test_dropout_reaches_a_mixer() -> None:
    model, input_ids_BT = tiny_mixer_language_model(), torch.randint(11, (3, 9))
    before_BTV = model(input_ids_BT).logits
    add_dropout(model, 0.5)
    torch.testing.assert_close(model(input_ids_BT).logits, before_BTV)
    model.train()
    assert not torch.allclose(model(input_ids_BT).logits, before_BTV)
