"""Causal labels against the model's own logits, one prediction after another."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from pipeline.labels.causal import token_entropies
from pipeline.models.language_model import new_language_model, require_plain_head, start_token
from pipeline.models.transformer import llama_config
from tests.builders import frozen, random_tokens


def language_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = llama_config(vocab_size=97, width=24, layers=2, heads=2, context=32)
    config.initializer_range = 0.2
    return frozen(new_language_model(config, start=5))


def test_labels_equal_the_losses_of_the_logits() -> None:
    model, input_ids_BT = language_model(), random_tokens(2, 10)
    entropies_BT = token_entropies(model, input_ids_BT)
    for row, tokens_T in enumerate(input_ids_BT):
        for place, token in enumerate(tokens_T):
            seen_T = torch.cat([torch.tensor([5]), tokens_T[:place]])
            expected = cross_entropy(model(input_ids=seen_T.unsqueeze(0)).logits[0, -1], token)
            torch.testing.assert_close(entropies_BT[row, place], expected, atol=1e-4, rtol=1e-4)


def test_a_model_that_names_no_start_is_refused() -> None:
    model = language_model()
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(ValueError, match="names no bos_token_id"):
        start_token(model)


def test_a_head_that_is_more_than_a_product_is_refused() -> None:
    model = language_model()
    require_plain_head(model)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: 30 * torch.tanh(logits / 30) + 0.1)
    with pytest.raises(ValueError, match="more than a matrix product"):
        require_plain_head(model)
