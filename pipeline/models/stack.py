"""The two kinds of causal stack that every model here is built from: a transformer and a masked mixer."""

from typing import Literal

from transformers import LlamaModel, PreTrainedModel

from pipeline.models.mixer import MaskedMixer, MixerConfig
from pipeline.models.transformer import llama_config

Kind = Literal["transformer", "mixer"]


def new_stack(
    kind: Kind,
    *,
    vocab_size: int,
    width: int,
    layers: int,
    heads: int,
    context: int,
    kernel: int = 1,
    initializer_range: float = 0.02,
) -> PreTrainedModel:
    """A stack of random weights, of windows of `context` tokens and one position before them.

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
    if kind == "transformer":
        return LlamaModel(sizes)
    return MaskedMixer(MixerConfig.like(sizes, kernel))
