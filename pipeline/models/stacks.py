"""Stacks of causal layers for all models of this project: Llama blocks of `transformers`, or masked mixers.

Callers pass embeddings, but never an attention mask or position ids. Right padding needs neither, because no position
sees later positions. Without a mask, transformers 5 interprets a jump in position ids as a border between packed
sequences, which would silently hide a prepended embedding from the tokens.

B rows, T positions, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel

from pipeline.models.mixer import MaskedMixer, MixerConfig, MixerForCausalLM
from pipeline.models.sizes import StackKind

FEED_FORWARD_MULTIPLE = 64


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
    """Return the configuration of a stack for windows of `context` tokens and one position before them.

    Raises:
        ValueError: if a size is below 1, `width` is not a multiple of `heads`, or a transformer gets a kernel above 1.
    """
    config = llama_config(
        vocab_size=vocab_size,
        width=width,
        layers=layers,
        heads=heads,
        context=context,
        initializer_range=initializer_range,
    )
    if kernel < 1 or (kernel > 1 and kind == "transformer"):
        raise ValueError(f"a kernel of {kernel} does not fit a {kind}; give 1 for a transformer, 1 or more for a mixer")
    return config if kind == "transformer" else MixerConfig.like(config, kernel)


def llama_config(
    *, vocab_size: int, width: int, layers: int, heads: int, context: int, initializer_range: float = 0.02
) -> LlamaConfig:
    """Return the configuration of a Llama stack.

    The gated feed-forward has about as many weights as a plain feed-forward with an inner width of 4 x `width`.

    Raises:
        ValueError: if a size is below 1, or `width` is not a multiple of `heads`.
    """
    if min(vocab_size, width, layers, heads, context) < 1:
        raise ValueError(
            f"sizes of a model must be at least 1, not {width=}, {layers=}, {heads=}, {context=}, {vocab_size=}"
        )
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads; choose a width that is")
    multiples = round(8 * width / 3 / FEED_FORWARD_MULTIPLE)
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=FEED_FORWARD_MULTIPLE * max(1, multiples),
        max_position_embeddings=context + 1,
        initializer_range=initializer_range,
        tie_word_embeddings=True,
        use_cache=False,
    )


def new_stack(config: LlamaConfig) -> PreTrainedModel:
    """Return a stack with random weights."""
    return MaskedMixer(config) if isinstance(config, MixerConfig) else LlamaModel(config)


def new_language_model(config: LlamaConfig, start: int) -> PreTrainedModel:
    """Return a causal language model with random weights, which declares `start` as the token before a document."""
    config.bos_token_id = config.eos_token_id = start
    return MixerForCausalLM(config) if isinstance(config, MixerConfig) else LlamaForCausalLM(config)


def causal_hidden(transformer: PreTrainedModel, embeddings_BTD: Tensor) -> Tensor:
    """Return the last hidden states [B, T, D] of a stack. State i depends on the embeddings 0..i."""
    hidden_BTD: Tensor = transformer(inputs_embeds=embeddings_BTD, use_cache=False).last_hidden_state
    return hidden_BTD


def input_embeddings(transformer: PreTrainedModel) -> nn.Embedding:
    """Return the module of token embeddings."""
    embeddings = transformer.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings


def real_positions(lengths_B: Tensor, width: int) -> Tensor:
    """Return a mask [B, width]: True at the first `lengths_B[i]` positions of row i, False at padding."""
    return torch.arange(width, device=lengths_B.device) < lengths_B.unsqueeze(1)


def add_dropout(transformer: PreTrainedModel, share: float) -> None:
    """Add dropout with probability `share` to a Llama's embeddings and to the outputs of attention and feed-forward.

    The dropout applies only in training mode, and is not saved with the model. `LlamaConfig` has dropout only for
    attention weights.

    Raises:
        ValueError: if the model has no such modules, since it is of another family.
    """
    places = ("embed_tokens", "o_proj", "down_proj")
    names = [name for name, _ in transformer.named_modules()]
    if missing := [place for place in places if not any(name.endswith(place) for name in names)]:
        kind = type(transformer).__name__
        raise ValueError(f"`dropout` is for models with the layers of Llama; {kind} has no {missing[0]}: leave it out")

    def dropped(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return dropout(output, share, training=module.training)

    for name, module in transformer.named_modules():
        if name.endswith(places):
            module.register_forward_hook(dropped)
