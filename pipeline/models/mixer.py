"""The masked mixer: a transformer with a causally masked convolution over token positions instead of attention.

Position t gets a weighted sum of positions 0..t, with a learned weight for every pair of positions in each head. With a
kernel size K above 1, the convolution also covers K neighbouring values of the hidden dimension (paper section 2).
Norms and feed-forward are Llama's, so that a mixer and a transformer of the same sizes differ only in how they mix
positions. Every position has its own weights, so a window cannot exceed the context.

B rows, T positions, D width, H heads, P width of a head, K kernel size, C longest window, V vocabulary.
"""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

# Initial standard deviation of a sum over all positions, relative to that of one position. The projections before and
# after the sum shrink it. With the usual deviation of 0.02 for each weight, nothing was mixed: an autoencoder of 16
# tokens with repeated embeddings (vocabulary 512, width 64, 940 steps of 2,048 tokens) reached 4.74 nats. It reached
# 3.77 nats with FIRST_MIXING 1, and 3.13 with 4.
FIRST_MIXING = 4.0


class MixerConfig(LlamaConfig):
    """Configuration of a mixer: the sizes of a Llama configuration, and the kernel size of the convolution.

    `num_attention_heads` is the number of heads of the convolution.
    """

    model_type = "masked-mixer"

    kernel: int = 1

    @classmethod
    def like(cls, sizes: LlamaConfig, kernel: int) -> Self:
        """Return the configuration of a mixer with the sizes of a Llama's configuration and this kernel size."""
        shared = {name: value for name, value in sizes.to_dict().items() if name != "model_type"}
        return cls(**shared, kernel=kernel)


class CausalConvolution(nn.Module):
    """Causal mixing of hidden states [B, T, D] over positions. State t of the result depends on states 0..t."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        heads, context = config.num_attention_heads, config.max_position_embeddings
        self.weight_HKCC = nn.Parameter(torch.empty(heads, config.kernel, context, context))
        self.bias_HC = nn.Parameter(torch.empty(heads, context))
        self.in_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        heads, kernel, context, _ = self.weight_HKCC.shape
        positions = hidden_BTD.shape[1]
        if positions > context:
            raise ValueError(f"{positions} positions are more than the {context} that this mixer has weights for")
        channels_BXP = self.in_proj(hidden_BTD).unflatten(2, (heads, -1)).transpose(1, 2).flatten(1, 2)
        causal_HKTT = self.weight_HKCC[:, :, :positions, :positions].tril()
        mixed_BXP = conv1d(
            pad(channels_BXP, ((kernel - 1) // 2, kernel // 2)),
            causal_HKTT.permute(0, 2, 3, 1).flatten(0, 1),
            self.bias_HC[:, :positions].flatten(),
            groups=heads,
        )
        mixed_BTD: Tensor = self.o_proj(mixed_BXP.unflatten(1, (heads, -1)).transpose(1, 2).flatten(2))
        return mixed_BTD


class MixerBlock(nn.Module):
    """Llama block with the convolution instead of attention."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mixing = CausalConvolution(config)
        self.post_mixing_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        hidden_BTD = hidden_BTD + self.mixing(self.input_layernorm(hidden_BTD))
        out_BTD: Tensor = hidden_BTD + self.mlp(self.post_mixing_layernorm(hidden_BTD))
        return out_BTD


class MixerModel(PreTrainedModel):
    """Base class of mixers, which gives their convolutions random initial weights."""

    config_class = MixerConfig
    config: MixerConfig

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, CausalConvolution):
            _, kernel, context, _ = module.weight_HKCC.shape
            module.weight_HKCC.normal_(std=FIRST_MIXING / math.sqrt(kernel * context))
            module.bias_HC.zero_()


class MaskedMixer(MixerModel):
    """Masked mixer without a head: token embeddings, blocks and a norm, as in `LlamaModel`."""

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(MixerBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self, input_ids: Tensor | None = None, *, inputs_embeds: Tensor | None = None, use_cache: bool = False
    ) -> BaseModelOutput:
        """Return the last hidden states [B, T, D] for token ids or embeddings. Nothing is cached."""
        hidden_BTD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for block in self.layers:
            hidden_BTD = block(hidden_BTD)
        return BaseModelOutput(last_hidden_state=self.norm(hidden_BTD))


class MixerForCausalLM(MixerModel):
    """Masked mixer that predicts the next token; its head is tied to the token embedding, as in `LlamaForCausalLM`."""

    base_model_prefix = "model"
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (transformers reads it)

    def __init__(self, config: MixerConfig) -> None:
        super().__init__(config)
        self.model = MaskedMixer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self, input_ids: Tensor | None = None, *, inputs_embeds: Tensor | None = None, use_cache: bool = False
    ) -> CausalLMOutput:
        """Return logits [B, T, V]. Logits i are for the token after position i."""
        hidden_BTD = self.model(input_ids, inputs_embeds=inputs_embeds).last_hidden_state
        return CausalLMOutput(logits=self.lm_head(hidden_BTD))


AutoConfig.register(MixerConfig.model_type, MixerConfig)
AutoModel.register(MixerConfig, MaskedMixer)
AutoModelForCausalLM.register(MixerConfig, MixerForCausalLM)
