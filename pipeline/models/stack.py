"""The two kinds of causal stack that every model here is built from: a transformer and a masked mixer."""

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel

from pipeline.models.mixer import MaskedMixer, MixerConfig, MixerForCausalLM
from pipeline.models.sizes import StackKind
from pipeline.models.transformer import llama_config


def stack_config(
    kind: StackKind,
    *,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    context: int,
    kernel: int = 1,
    initializer_range: float = 0.02,
) -> LlamaConfig:
    """Configuration of a stack, of windows of `context` tokens and one position before them.

    Raises:
        ValueError: if sizes are below 1 or do not fit together, or if a transformer gets a kernel.
    """
    sizes = llama_config(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        context=context,
        initializer_range=initializer_range,
    )
    if kernel < 1 or (kernel > 1 and kind == "transformer"):
        raise ValueError(f"a kernel of {kernel} is for none; mixers have one of at least 1, transformers none (1)")
    return sizes if kind == "transformer" else MixerConfig.like(sizes, kernel)


def new_stack(config: LlamaConfig) -> PreTrainedModel:
    """A stack of random weights."""
    return MaskedMixer(config) if isinstance(config, MixerConfig) else LlamaModel(config)


def new_language_model(config: LlamaConfig, start: int) -> PreTrainedModel:
    """A fresh causal language model whose configuration names the token that stands before each document."""
    config.bos_token_id = config.eos_token_id = start
    return MixerForCausalLM(config) if isinstance(config, MixerConfig) else LlamaForCausalLM(config)
