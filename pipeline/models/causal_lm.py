"""Causal language models of `transformers`: losses and entropies of their predictions, from hidden states and a head.

The head is applied in chunks, so that no matrix of all logits exists. A start token precedes the first token, so that
the first token has a loss too. `BlockedAttention` makes any model's attention faster on a CPU.

B rows, T tokens, N tokens of all rows, V vocabulary, D width. In attention: H heads, G key-value heads, t tokens of a
block, D width of a head.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.models.checkpoint_files import POSITIONS, declared_context
from pipeline.models.cross_entropy import (
    HALF,
    chunk_tokens,
    head_logits,
    token_cross_entropy,
    token_sums,
    token_sums_and_given,
)
from pipeline.models.logit_sums import GivenIds, LogitSums
from pipeline.models.predictions import labels_in_chunks
from schemas.annotations import Shape

# Settings that change logits after the product with the head.
MULTIPLIERS = ("logit_scale", "lm_head_multiplier")  # Cohere, Falcon-H1
DIVISORS = ("logits_scaling",)  # Granite, MiniCPM
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM


class OutputHead(NamedTuple):
    """Output head of a model. Its logits are `scale * hidden @ weight.T + bias`, soft-capped if `softcap` is given."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    scale: float = 1.0

    @classmethod
    def configured(cls, config: PreTrainedConfig, weight_VD: Tensor, bias_V: Tensor | None) -> Self:
        """Return a head with this weight and bias, and with the scale and soft cap of a model's configuration."""
        config = config.get_text_config()
        multipliers = [getattr(config, name, None) or 1.0 for name in MULTIPLIERS]
        divisors = [getattr(config, name, None) or 1.0 for name in DIVISORS]
        caps = [cap for name in CAPS if (cap := getattr(config, name, None))]
        return cls(weight_VD, bias_V, caps[0] if caps else None, math.prod(multipliers) / math.prod(divisors))

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """Return logits, float32 [N, V], without a gradient. They are not computed in chunks, so pass few tokens."""
        return head_logits(hidden_ND * self.scale, self.weight_VD, self.bias_V, self.softcap)

    def differentiable_logits(self, hidden_ND: Tensor) -> Tensor:
        """Return the same logits with a gradient. Without the soft cap, they take one matrix of memory."""
        logits_NV = ((hidden_ND * self.scale) @ self.weight_VD.T).float()
        if self.bias_V is not None:
            logits_NV = logits_NV + self.bias_V
        return logits_NV if self.softcap is None else self.softcap * (logits_NV / self.softcap).tanh()

    def split(self, size: int) -> Iterator[Self]:
        """Yield heads that each compute the logits of at most `size` consecutive tokens of the vocabulary."""
        for start in range(0, len(self.weight_VD), size):
            part = slice(start, start + size)
            bias_v = None if self.bias_V is None else self.bias_V[part]
            yield self._replace(weight_VD=self.weight_VD[part], bias_V=bias_v)

    def target_logits(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Return the logit of one token for each state, [N], without a gradient."""
        logits_N = (hidden_ND * self.scale * self.weight_VD[targets_N]).sum(dim=1)
        if self.bias_V is not None:
            logits_N = logits_N + self.bias_V[targets_N]
        return logits_N if self.softcap is None else self.softcap * (logits_N / self.softcap).tanh()

    def losses(self, hidden_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """Return -ln p(target) in nats, float32 [B, T], where p is the distribution that a state predicts.

        For states [N, D], the losses are [N].
        """
        losses_N = token_cross_entropy(
            hidden_BTD.flatten(0, -2) * self.scale,
            self.weight_VD,
            targets_BT.flatten(),
            bias_V=self.bias_V,
            softcap=self.softcap,
        )
        return losses_N.view(targets_BT.shape)

    def sums(self, hidden_BTD: Tensor, targets_BT: Tensor) -> LogitSums:
        """Return all fields of `LogitSums`, such as losses and entropies, float32 [B, T] each.

        They are computed together, from one product of the states with the head.
        """
        hidden_ND, targets_N = hidden_BTD.flatten(0, -2) * self.scale, targets_BT.flatten()
        sums = token_sums(hidden_ND, self.weight_VD, targets_N, bias_V=self.bias_V, softcap=self.softcap)
        return LogitSums(*(sum_N.view(targets_BT.shape) for sum_N in sums))

    def sums_and_given(self, hidden_BTD: Tensor, targets_BT: Tensor, ids_BTK: Tensor) -> tuple[LogitSums, GivenIds]:
        """Return `sums`, and the predictions of given ids before each token, from the same product with the head.

        The predictions are for the B T tokens in a row: [B T, K] and [B T]. The ids are as in `given_ids`.
        """
        hidden_ND, targets_N = hidden_BTD.flatten(0, -2) * self.scale, targets_BT.flatten()
        sums, given = token_sums_and_given(
            hidden_ND, self.weight_VD, targets_N, ids_BTK.flatten(0, -2), bias_V=self.bias_V, softcap=self.softcap
        )
        return LogitSums(*(sum_N.view(targets_BT.shape) for sum_N in sums)), given

    def losses_with_added(self, hidden_ND: Tensor, added_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Return -ln p(target) in nats, float32 [N], where `added @ weight.T` is added to the logits of each state.

        The sum is made after scale, bias and soft cap, so that both parts of a logit can be computed separately.
        """
        if self.softcap is None:
            return token_cross_entropy(hidden_ND * self.scale + added_ND, self.weight_VD, targets_N, bias_V=self.bias_V)
        size = chunk_tokens(self.weight_VD)
        parts = zip(hidden_ND.split(size), added_ND.split(size), targets_N.split(size), strict=True)
        chunks = [checkpoint(self._capped_losses, *part, use_reentrant=False) for part in parts]
        return torch.cat(chunks) if chunks else hidden_ND.new_zeros(0, dtype=torch.float32)

    def _capped_losses(self, hidden_ND: Tensor, added_ND: Tensor, targets_N: Tensor) -> Tensor:
        capped_NV = self.differentiable_logits(hidden_ND)
        return cross_entropy(capped_NV + (added_ND @ self.weight_VD.T).float(), targets_N, reduction="none")


def next_token_losses(model: PreTrainedModel, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """Return -ln p(targets[:, i] | inputs[:, : i + 1]) in nats, float32 [B, T]."""
    return output_head(model).losses(next_token_hidden(model, inputs_BT), targets_BT)


def next_token_sums(model: PreTrainedModel, inputs_BT: Tensor, targets_BT: Tensor) -> LogitSums:
    """Return the losses of `next_token_losses` with the other fields of `LogitSums`, float32 [B, T] each."""
    return output_head(model).sums(next_token_hidden(model, inputs_BT), targets_BT)


def next_token_hidden(model: PreTrainedModel, inputs_BT: Tensor) -> Tensor:
    """Return the last hidden states [B, T, D]. State i predicts the token after `inputs[:, : i + 1]`."""
    return last_hidden(decoder(model), inputs_BT)


def last_hidden(stack: PreTrainedModel, inputs_BT: Tensor) -> Tensor:
    """Return the last hidden states [B, T, D] of the layers below a head.

    With half-precision weights, the states are in half precision too. Mamba's layers return float32 even with
    half-precision weights, so their states are rounded here.
    """
    hidden_BTD: Tensor = stack(input_ids=inputs_BT, use_cache=False).last_hidden_state
    return hidden_BTD.to(stack.dtype) if stack.dtype in HALF else hidden_BTD


def decoder(model: PreTrainedModel) -> PreTrainedModel:
    """Return the model without its head.

    For some classes, transformers finds no model without a head, or finds only a layer (Llama 4's text model,
    ModernBERT's decoder). The result is then the only child module that is a `PreTrainedModel`.

    Raises:
        ValueError: if the model without its head cannot be found.
    """
    children = [child for child in model.children() if isinstance(child, PreTrainedModel)]
    for found in (model.get_decoder(), model.base_model, *(children if len(children) == 1 else ())):
        if isinstance(found, PreTrainedModel) and found is not model:
            return found
    raise ValueError(f"{type(model).__name__} has no decoder that can be found; use another model")


def output_head(model: PreTrainedModel) -> OutputHead:
    """Return a model's head: weight and bias from its module, scale and soft cap from the configuration.

    `require_causal` checks that the logits of this head equal the model's own logits.
    """
    module = model.get_output_embeddings()
    return OutputHead.configured(model.config, module.weight, getattr(module, "bias", None))


@torch.no_grad()
def predictive_labels(
    hidden_BTD: Tensor,
    head: OutputHead,
    targets_BT: Tensor,
    columns: Mapping[str, Shape],
    uniform_BT: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the requested columns by name, for the distribution that each state predicts.

    `label_values` explains the columns. A column is float32 [B, T], or [K, B, T] if its values have the shape (K,). The
    column `entropy` holds the surprisals of the targets, which are bit-identical to the losses of `OutputHead.losses`.
    All columns are computed in chunks, from a single product with the head's weight. `uniform_BT` has a random number
    for each token, which `sampled_ids` needs.
    """

    def predictions(_: Tensor, hidden_ND: Tensor) -> Tensor:
        return head.logits(hidden_ND).log_softmax(dim=1)

    return labels_in_chunks(predictions, [hidden_BTD], targets_BT, columns, uniform_BT, chunk_tokens(head.weight_VD))


def prepend_start(input_ids_BT: Tensor, start: int) -> Tensor:
    """Return the inputs [B, T] from which all tokens of a row are predicted: `start`, then all but the last token."""
    return torch.cat([torch.full_like(input_ids_BT[:, :1], start), input_ids_BT[:, :-1]], dim=1)


def start_token(config: PreTrainedConfig) -> int:
    """Return the id of the token to put before a document.

    It is the configuration's beginning-of-sequence token, or else the configuration's end-of-sequence token.

    Raises:
        ValueError: if the configuration declares neither token.
    """
    for token in (config.bos_token_id, config.eos_token_id):
        if token is not None:
            return int(token[0] if isinstance(token, list) else token)
    raise ValueError("neither bos_token nor eos_token is declared to stand before a document; name one: `start_token`")


def longest_window(config: PreTrainedConfig) -> int | None:
    """Return the number of tokens that a model can read after the start token; None without a declared limit."""
    text = config.get_text_config()
    return declared_context({name: getattr(text, name, None) for name in POSITIONS})


def frequency_border(config: PreTrainedConfig) -> int | None:
    """Return the length of the longest row that uses LongRoPE's frequencies for short rows; None without LongRoPE.

    LongRoPE has two sets of rotary frequencies. transformers chooses one set for a whole batch, by the length of the
    batch's longest row.
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    of_layers = [value for value in parameters.values() if isinstance(value, dict)]  # if layers differ
    borders = [rope["original_max_position_embeddings"] for rope in (parameters, *of_layers) if _has_two_sets(rope)]
    return min(borders, default=None)


def _has_two_sets(rope: dict[str, Any]) -> bool:
    return rope.get("rope_type") == "longrope" or "long_mscale" in rope  # long_mscale in Phi-3.5-MoE


# On a CPU without AMX, torch's kernel is as slow in bfloat16 as in float32: on a core with AVX512-BF16 it takes 16 ms
# for 900 tokens and nine heads, where blocks take 9 ms. With blocks, SmolLM2 labels 1.26 times as many tokens per
# second, and the labels differ no more from float32 labels than without blocks. With AMX, torch's kernel is 2.4 to 5.7
# times as fast as blocks.
BLOCK = 64  # queries at a time


class BlockedAttention(TorchFunctionMode):
    """Context manager that computes `scaled_dot_product_attention` in blocks of queries if blocks are faster.

    Blocks are used for causal attention in bfloat16 on a CPU without AMX. On another device, in another precision, with
    a mask or with gradients, torch's own implementation runs.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        by_position = func is scaled_dot_product_attention and len(args) >= 3
        if by_position and _is_faster_in_blocks(*args, **named):
            return causal_attention(*args[:3], scale=named.get("scale"))
        return func(*args, **named)


def causal_attention(query_BHTD: Tensor, key_BGTD: Tensor, value_BGTD: Tensor, *, scale: float | None = None) -> Tensor:
    """Return the outputs [B, H, T, D] of causal attention, with the softmax computed in float32."""
    groups = query_BHTD.shape[1] // key_BGTD.shape[1]
    key_BHTD, value_BHTD = (heads.repeat_interleave(groups, dim=1) for heads in (key_BGTD, value_BGTD))
    factor = query_BHTD.shape[-1] ** -0.5 if scale is None else scale
    result_BHTD = query_BHTD.new_empty(*query_BHTD.shape[:3], value_BHTD.shape[3])
    later_tt = torch.ones(BLOCK, BLOCK, dtype=torch.bool).triu_(1)
    for start in range(0, query_BHTD.shape[2], BLOCK):
        block_BHtD = query_BHTD[:, :, start : start + BLOCK]
        size = block_BHtD.shape[2]
        scores_BHtT = (block_BHtD @ key_BHTD[:, :, : start + size].mT).float().mul_(factor)
        scores_BHtT[..., start:].masked_fill_(later_tt[:size, :size], -torch.inf)
        shares_BHtT = scores_BHtT.softmax(dim=-1).to(query_BHTD.dtype)
        result_BHTD[:, :, start : start + size] = shares_BHtT @ value_BHTD[:, :, : start + size]
    return result_BHTD


def _is_faster_in_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> bool:
    plain = is_causal and attn_mask is None and not dropout_p and not torch.is_grad_enabled()
    same = query.dim() == 4 and query.shape[2] == key.shape[2] and (enable_gqa or query.shape[1] == key.shape[1])
    half = query.dtype == key.dtype == value.dtype == torch.bfloat16
    return plain and same and half and query.device.type == "cpu" and not torch.cpu._is_amx_tile_supported()
