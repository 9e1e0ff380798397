"""Models whose losses would be wrong are refused, by two forwards of a few tokens."""

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
def test_a_head_of_an_unknown_kind_is_refused(change: Callable[[PreTrainedModel], None]) -> None:
    model = tiny_language_model()
    require_causal(model)
    change(model)
    with pytest.raises(ValueError, match="head of LlamaForCausalLM is of a kind that this project does not know"):
        require_causal(model)


@pytest.mark.parametrize("padding", [None, 0, 3])
def test_the_row_of_a_padding_token_hides_no_scale(padding: int | None) -> None:
    model = tiny_causal("falcon_h1", pad_token_id=padding)
    require_causal(model)
    model.config.lm_head_multiplier = 0.5  # `Head` reads it here, and the model took its 0.2 when it was built
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


def test_a_model_that_gives_no_number_is_refused() -> None:
    model = tiny_language_model()
    output_head(model).weight_VD[3] = torch.nan
    with pytest.raises(ValueError, match="logits that are not finite"):
        require_causal(model)


def test_a_model_that_cannot_read_tokens_alone_is_refused() -> None:
    model = tiny_language_model()
    model.model.register_forward_pre_hook(lambda module, inputs: (_ for _ in ()).throw(TypeError("pixel_values")))
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot read 16 tokens: pixel_values; use another model"):
        require_causal(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_precision_has_a_tolerance_of_its_own(dtype: torch.dtype) -> None:
    model = tiny_causal("gemma2")
    torch.nn.Module.to(model, dtype)
    require_causal(model)
    model.config.final_logit_softcapping = 4.0  # it was built with 3, which the head reads from here as well
    require_causal(model)
    model.lm_head.register_forward_hook(lambda module, inputs, logits: logits * 1.2)
    with pytest.raises(ValueError, match="head of Gemma2ForCausalLM"):
        require_causal(model)


def test_the_decoder_is_found_where_a_class_has_it_under_another_name() -> None:
    model = tiny_causal("llama4_text")
    assert decoder(model) is model.model
