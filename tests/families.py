"""Tiny random causal language models of many families, whose heads, embeddings and positions differ.

Biases and the weights of norms are random too. With their usual initial values, 0 and 1, a test would not notice if a
copy of a model lacked one of them.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.tiny_models import frozen

START = 3
GPT: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2}
PLAIN: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
GROUPED: dict[str, Any] = {**PLAIN, "num_key_value_heads": 1}
GEMMA: dict[str, Any] = {**GROUPED, "head_dim": 8, "sliding_window": 8}
OPT: dict[str, Any] = {**PLAIN, "ffn_dim": 32}

# For each name: the model type, and the settings of its configuration except vocabulary, positions and start token.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", GROUPED),
    "llama, head of its own": ("llama", {**GROUPED, "tie_word_embeddings": False}),
    "qwen 2": ("qwen2", GROUPED),
    "qwen 3": ("qwen3", {**GROUPED, "head_dim": 8}),
    "gemma, scaled embedding": ("gemma", {**GROUPED, "head_dim": 8}),
    "gemma 2, soft cap": ("gemma2", {**GEMMA, "final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
    "gemma 3": ("gemma3_text", {**GEMMA, "num_hidden_layers": 6, "query_pre_attn_scalar": 8}),
    "gpt-2, learned positions": ("gpt2", GPT),
    "gpt-j, bias": ("gptj", {**GPT, "rotary_dim": 4}),
    "gpt-neox": ("gpt_neox", PLAIN),
    "opt": ("opt", OPT),
    "opt, projected embedding": ("opt", {**OPT, "word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "phi, bias": ("phi", PLAIN),
    "granite, divisor and multiplied embedding": (
        "granite",
        {**GROUPED, "logits_scaling": 1.5, "embedding_multiplier": 5.0},
    ),
    "cohere, scale": ("cohere", {**GROUPED, "logit_scale": 0.5}),
    "falcon, linear biases": ("falcon", {**PLAIN, "alibi": True}),
    "mixtral, experts": ("mixtral", {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
# Families that declare no number of positions.
WITHOUT_POSITIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom, normalised embedding": ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "mamba, state space": ("mamba", {"hidden_size": 16, "num_hidden_layers": 2}),
    "falcon-h1, multiplier": (
        "falcon_h1",
        {
            **GROUPED,
            "head_dim": 8,
            "lm_head_multiplier": 2.0,
            "embedding_multiplier": 3.0,
            "mamba_d_ssm": 16,
            "mamba_n_heads": 2,
            "mamba_d_head": 8,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
}


def tiny_of_family(family: str, *, vocabulary: int = 31, context: int = 32) -> PreTrainedModel:
    """Return a model of the family that reads token 3 before a document.

    The model has a position for this token in addition to those of `context` tokens.
    """
    torch.manual_seed(0)
    kind, sizes = (FAMILIES | WITHOUT_POSITIONS)[family]
    shared: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": START, "eos_token_id": START, "pad_token_id": 0}
    positions = {} if family in WITHOUT_POSITIONS else {"max_position_embeddings": context + 1}
    config = AutoConfig.for_model(kind, **{**shared, **positions, **sizes, "initializer_range": 0.3})
    model: PreTrainedModel = frozen(AutoModelForCausalLM.from_config(config))
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and ("norm" in name or "ln" in name or name.endswith("bias")):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model
