"""Models with wrong losses are refused after two forward passes of a few tokens."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from pipeline.models.causal_lm import decoder, output_head
from pipeline.models.loading import require_causal
from pipeline.models.stacks import input_embeddings
from tests.models.architectures import tiny_causal
from tests.tiny_models import tiny_language_model


def scaled(model: PreTrainedModel) -> None:
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 0.99)


def bent(model: PreTrainedModel) -> None:
    model.lm_head.register_forward_hook(lambda module, inputs, logits: 30 * torch.tanh(logits / 30))


def shifted(model: PreTrainedModel) -> None:
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits + logits.roll(1, -1) * 0.01)


@pytest.mark.parametrize("change", [scaled, bent, shifted])
def test_an_unknown_kind_of_head_is_refused(change: Callable[[PreTrainedModel], None]) -> None:
    model = tiny_language_model()
    require_causal(model)
    change(model)
    with pytest.raises(ValueError, match="head of LlamaForCausalLM is of a kind that this project does not know"):
        require_causal(model)


@pytest.mark.parametrize("padding", [None, 0, 3])
def test_a_wrong_scale_is_found_despite_a_padding_token(padding: int | None) -> None:
    model = tiny_causal("falcon_h1", pad_token_id=padding)
    require_causal(model)
    model.config.lm_head_multiplier = 0.5  # read by `OutputHead`; the model was built with 0.2
    if padding is not None:
        input_embeddings(model).weight[padding] = 0
    with pytest.raises(ValueError, match="head of FalconH1ForCausalLM"):
        require_causal(model)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
def test_a_model_that_reads_the_future_is_refused(family: str) -> None:
    model = tiny_causal(family)
    require_causal(model)
    for module in model.modules():
        vars(module).pop("is_causal", None)
        vars(module)["is_causal"] = False
    model.config.is_causal = False
    with pytest.raises(ValueError, match="is not causal: its logits depend on tokens that come later"):
        require_causal(model)


def test_a_model_with_logits_that_are_not_numbers_is_refused() -> None:
    model = tiny_language_model()
    output_head(model).weight_VD[3] = torch.nan
    with pytest.raises(ValueError, match="logits that are not finite"):
        require_causal(model)


def test_a_model_that_needs_more_than_tokens_is_refused() -> None:
    model = tiny_language_model()
    model.model.register_forward_pre_hook(lambda module, inputs: (_ for _ in ()).throw(TypeError("pixel_values")))
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot read 16 tokens: pixel_values; use another model"):
        require_causal(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_precision_has_its_own_tolerance(dtype: torch.dtype) -> None:
    model = tiny_causal("gemma2")
    torch.nn.Module.to(model, dtype)
    require_causal(model)
    model.config.final_logit_softcapping = 4.0  # read by `OutputHead`; the model was built with 3
    require_causal(model)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 1.2)
    with pytest.raises(ValueError, match="head of Gemma2ForCausalLM"):
        require_causal(model)


def test_the_decoder_is_found_under_an_unusual_name() -> None:
    model = tiny_causal("llama4_text")
    assert decoder(model) is model.model
