"""The one causal transformer that every model here is built from: Llama blocks of `transformers`.

Callers hand in embeddings and never an attention mask or position ids. Right padding needs none, since
no position sees what comes after it; and position ids that jump, given without a mask, are read by
transformers 5 as packed sequences, which silently hides a prepended embedding from the tokens.

B rows, T positions, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers import LlamaConfig, PreTrainedModel

FEED_FORWARD_MULTIPLE = 64


def llama_config(
    *, vocab_size: int, width: int, layers: int, heads: int, context: int, initializer_range: float = 0.02
) -> LlamaConfig:
    """Configuration of a Llama stack whose gated feed-forward has the parameters of a plain one of 4 x width.

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


def add_dropout(transformer: PreTrainedModel, share: float) -> None:
    """Lets a Llama drop a share of its embeddings and of what each block adds, in training only.

    `LlamaConfig` has dropout of attention weights alone. Nothing of this is saved with the model.
    """

    def dropped(module: nn.Module, _: object, output: Tensor) -> Tensor:
        return dropout(output, share, training=module.training)

    for name, module in transformer.named_modules():
        if name.endswith(("embed_tokens", "o_proj", "down_proj")):
            module.register_forward_hook(dropped)


def causal_hidden(transformer: PreTrainedModel, embeddings_BTD: Tensor) -> Tensor:
    """Hidden states [B, T, D] of a causal pass; position i has seen the embeddings 0..i."""
    hidden_BTD: Tensor = transformer(inputs_embeds=embeddings_BTD, use_cache=False).last_hidden_state
    return hidden_BTD


def input_embeddings(transformer: PreTrainedModel) -> nn.Embedding:
    """The table of token embeddings."""
    embeddings = transformer.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    return embeddings


def real_positions(lengths_B: Tensor, width: int) -> Tensor:
    """True [B, width] at each row's first `lengths` positions, False at its padding."""
    return torch.arange(width, device=lengths_B.device) < lengths_B.unsqueeze(1)
