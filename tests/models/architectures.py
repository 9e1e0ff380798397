"""Every causal architecture of the installed transformers, as small as it can be, with random weights."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.tiny_models import frozen

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, START, CONTEXT = 96, 1, 64
LARGEST = 20_000_000  # parameters; a larger model has its sizes in a nested configuration

# Sizes under all names that configurations have for them; each configuration takes the names that it knows.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "n_words", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim", "emb_dim", "model_dim", "lru_width"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "linear_num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "d_inner", "d_ff", "dff"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), CONTEXT),
    **dict.fromkeys(("max_sequence_length", "context_length"), CONTEXT),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("sliding_window", "attention_window_size", "window_size"), 8),
    **dict.fromkeys(("head_dim", "rotary_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim", "mamba_head_dim"), 8),
    **dict.fromkeys(("state_size", "mamba_d_state", "mamba_n_heads", "mamba_d_head"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("n_group", "topk_group", "n_groups", "mamba_n_groups", "first_k_dense_replace"), 1),
    "num_kv_shared_layers": 0,
    "initializer_range": 0.3,  # so that every part of a model shows in its losses
    "bos_token_id": START,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "is_decoder": True,
    "causal": True,
}
LATENT = {"num_key_value_heads": 4}
MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite"), LATENT),
    **dict.fromkeys(("glm_moe_dsa", "minicpm3", "youtu"), LATENT),
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {"num_key_value_heads": 4},
    "falcon_h1": {"lm_head_multiplier": 0.2, "mamba_d_ssm": 64},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 5.0},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "recurrent_gemma": {"logits_soft_cap": 3.0},
    "xlstm": {"output_logit_soft_cap": 3.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 3},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(family: str, **settings: Any) -> PreTrainedConfig:
    """Return a configuration of tiny sizes, or raise the errors of the configuration's class."""
    kind = CONFIG_MAPPING[family]
    return kind(**{**_shrunk(kind().to_dict()), **settings})


def _shrunk(known: dict[str, Any]) -> dict[str, Any]:
    """Return settings that make a configuration tiny, including nested configurations for text and images."""
    sizes = {name: size for name, size in SIZES.items() if name in known}
    parts = {name: value for name, value in known.items() if isinstance(value, dict) and "model_type" in value}
    within = {name: {"model_type": part["model_type"], **_shrunk(part)} for name, part in parts.items()}
    return {**sizes, **within, **MORE.get(known["model_type"], {})}


def tiny_causal(family: str, dtype: torch.dtype = torch.float32, **settings: Any) -> PreTrainedModel:
    """Return a tiny model with random weights, biases included.

    Raises:
        ValueError: if the family cannot be built tiny.
    """
    try:
        config = tiny_config(family, **settings)
        with torch.device("meta"):
            parameters = AutoModelForCausalLM.from_config(config).num_parameters()
        if parameters > LARGEST:
            raise ValueError(f"{parameters:,} parameters")
        torch.manual_seed(0)
        model: PreTrainedModel = frozen(AutoModelForCausalLM.from_config(config, dtype=dtype))
        model(input_ids=torch.arange(3, 9).unsqueeze(0), use_cache=False)
    except Exception as error:
        raise ValueError(f"{family} cannot be built tiny: {error}") from error
    for name, weight in model.named_parameters():
        if weight.dim() == 1 and "bias" in name:
            weight.normal_(std=0.3)
    return model
