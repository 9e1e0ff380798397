"""Causal labels against the model's own logits, one prediction after another."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.labels.causal import token_entropies
from pipeline.models.language_model import start_token, with_start
from pipeline.models.probe import require_causal
from tests.tiny_models import frozen, random_tokens, tiny_language_model


def test_labels_equal_the_losses_of_the_logits() -> None:
    model, input_ids_BT = tiny_language_model(), random_tokens(2, 10)
    entropies_BT = token_entropies(model, input_ids_BT, start=5)
    for row, tokens_T in enumerate(input_ids_BT):
        for place, token in enumerate(tokens_T):
            seen_T = torch.cat([torch.tensor([5]), tokens_T[:place]])
            expected = cross_entropy(model(input_ids=seen_T.unsqueeze(0)).logits[0, -1], token)
            torch.testing.assert_close(entropies_BT[row, place], expected, atol=1e-4, rtol=1e-4)


def test_a_model_that_names_no_start_is_refused() -> None:
    model = tiny_language_model()
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(ValueError, match="no bos_token and no eos_token is declared"):
        start_token(model.config)


SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 3,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "soft cap": ("gemma2", {**SIZES, "intermediate_size": 32, "head_dim": 8, "num_key_value_heads": 1}),
    "scale": ("cohere", {**SIZES, "intermediate_size": 32, "logit_scale": 0.7}),
    "divisor": ("granite", {**SIZES, "intermediate_size": 32, "logits_scaling": 3.0}),
    "bias": ("phi", {**SIZES, "intermediate_size": 32}),
    "learned positions": ("gpt2", {"vocab_size": 31, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 3}),
    "grouped heads": ("qwen2", {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1}),
    "state space": ("mamba", {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 2, "bos_token_id": 3}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_many_families_have_the_losses_of_their_own_logits(family: str) -> None:
    kind, sizes = FAMILIES[family]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**sizes, "eos_token_id": 3, "pad_token_id": 0, "initializer_range": 0.3})
    model = frozen(AutoModelForCausalLM.from_config(config))
    if (bias := getattr(model.get_output_embeddings(), "bias", None)) is not None:
        bias.normal_()
    require_causal(model)
    input_ids_BT = random_tokens(2, 9, vocabulary=31)
    logits_BTV = model(input_ids=with_start(input_ids_BT, 3)).logits.float()
    expected_BT = cross_entropy(logits_BTV.transpose(1, 2), input_ids_BT, reduction="none")
    assert expected_BT.std() > 0.3, "labels too much alike to tell anything"
    torch.testing.assert_close(token_entropies(model, input_ids_BT, start=3), expected_BT, atol=1e-4, rtol=1e-4)
