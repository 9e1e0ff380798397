"""Causal language models of `transformers`, and the one thing wanted of them: the loss of every token.

B rows, T tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pipeline.models.cross_entropy import token_cross_entropy


def new_language_model(config: LlamaConfig, start: int) -> LlamaForCausalLM:
    """A fresh Llama whose configuration names the token that stands before each document."""
    config.bos_token_id = config.eos_token_id = start
    return LlamaForCausalLM(config)


def next_token_losses(model: PreTrainedModel, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """-ln p(targets[:, i] | inputs[:, : i + 1]) in nats, float32 [B, T]."""
    hidden_BTD: Tensor = model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state
    head_VD: Tensor = model.get_output_embeddings().weight
    return token_cross_entropy(hidden_BTD.flatten(0, 1), head_VD, targets_BT.flatten()).view(targets_BT.shape)


def start_token(model: PreTrainedModel) -> int:
    """The token before a document's first: what the configuration names as beginning, or else end, of sequence.

    Raises:
        ValueError: if it names neither.
    """
    for token in (model.config.bos_token_id, model.config.eos_token_id):
        if token is not None:
            return int(token[0] if isinstance(token, list) else token)
    raise ValueError("the model's config.json names no bos_token_id and no eos_token_id; set the one to start from")


@torch.no_grad()
def require_plain_head(model: PreTrainedModel) -> None:
    """Refuses a head with a bias, a scale or soft-capping, for which `next_token_losses` would be silently wrong.

    Raises:
        ValueError: if logits are not the product of hidden states and output matrix.
    """
    probe_11 = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    hidden_D = model.base_model(input_ids=probe_11, use_cache=False).last_hidden_state[0, 0]
    logits_V = model(input_ids=probe_11, use_cache=False).logits[0, 0]
    if not torch.allclose(logits_V, model.get_output_embeddings().weight @ hidden_D, atol=1e-3, rtol=1e-3):
        raise ValueError(f"{type(model).__name__} does more than a matrix product after its last hidden state")
