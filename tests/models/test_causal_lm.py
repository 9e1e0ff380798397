"""Attention in blocks compared with torch's own attention, and the cases that torch computes.

B rows, H heads, T tokens, D width of a head.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from pipeline.labels import causal, exact, second_order
from pipeline.models import causal_lm
from pipeline.models.causal_lm import BLOCK, BlockedAttention, causal_attention
from tests.tiny_models import random_tokens, tiny_estimator, tiny_language_model, tiny_second_order


def heads(tokens: int, count: int, *, seed: int, width: int = 16, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, tokens, width, generator=generator).to(dtype)


@pytest.mark.parametrize("tokens", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize(("query_heads", "key_heads"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_in_blocks_equals_attention_at_once(
    tokens: int, query_heads: int, key_heads: int, scale: float | None
) -> None:
    query, key, value = (
        heads(tokens, count, seed=seed) for seed, count in enumerate((query_heads, key_heads, key_heads))
    )
    whole = scaled_dot_product_attention(
        query.double(), key.double(), value.double(), is_causal=True, scale=scale, enable_gqa=True
    )
    wide = causal_attention(query.double().float(), key.float(), value.float(), scale=scale)
    torch.testing.assert_close(wide, whole.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(causal_attention(query, key, value, scale=scale).double(), whole, atol=0.05, rtol=0.05)


def test_values_may_have_another_width_than_keys() -> None:
    query, key, value = heads(70, 2, seed=0), heads(70, 2, seed=1), heads(70, 2, seed=2, width=5)
    whole = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(causal_attention(query, key, value), whole, atol=0.05, rtol=0.05)


ALWAYS: dict[str, Any] = {"is_causal": True}


@pytest.mark.parametrize(
    ("dtype", "key_tokens", "named", "grad"),
    [
        (torch.float32, 70, ALWAYS, False),
        (torch.bfloat16, 80, ALWAYS, False),
        (torch.bfloat16, 70, {"is_causal": False}, False),
        (torch.bfloat16, 70, {"attn_mask": torch.ones(70, 70, dtype=torch.bool)}, False),
        (torch.bfloat16, 70, {**ALWAYS, "dropout_p": 0.5}, False),
        (torch.bfloat16, 70, ALWAYS, True),
    ],
)
def test_other_attention_is_left_to_torch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, key_tokens: int, named: dict[str, Any], grad: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(causal_lm, "causal_attention", lambda *_, **__: pytest.fail("it was computed in blocks"))
    query, key, value = heads(70, 2, seed=0), heads(key_tokens, 2, seed=1), heads(key_tokens, 2, seed=2)
    with torch.set_grad_enabled(grad), BlockedAttention():
        torch.manual_seed(0)
        inside = scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype), **named)
    torch.manual_seed(0)
    outside = scaled_dot_product_attention(query.to(dtype), key.to(dtype), value.to(dtype), **named)
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


def test_on_a_cpu_with_amx_all_attention_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    monkeypatch.setattr(causal_lm, "causal_attention", lambda *_, **__: pytest.fail("it was computed in blocks"))
    query, key, value = (heads(70, 2, seed=seed) for seed in range(3))
    with torch.no_grad(), BlockedAttention():
        inside = scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(inside, scaled_dot_product_attention(query, key, value, is_causal=True), rtol=0, atol=0)


def test_attention_with_named_arguments_is_left_to_torch() -> None:
    query, key, value = (heads(70, 2, seed=seed) for seed in range(3))
    with torch.no_grad(), BlockedAttention():
        inside = scaled_dot_product_attention(query=query, key=key, value=value, is_causal=True)
    torch.testing.assert_close(inside, scaled_dot_product_attention(query, key, value, is_causal=True), rtol=0, atol=0)


def test_without_amx_every_method_uses_blocks_and_stays_as_close_to_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken, ids_BT = list[int](), random_tokens(3, 32)
    blocked = causal_attention

    def counted(*args: Any, **named: Any) -> Tensor:
        taken.append(1)
        return blocked(*args, **named)

    monkeypatch.setattr(causal_lm, "causal_attention", counted)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    labels: list[tuple[PreTrainedModel, Callable[[Any], Tensor]]] = [
        (tiny_language_model(), lambda model: causal.token_entropies(model, ids_BT, 0)),
        (tiny_second_order(), lambda model: second_order.token_entropies(model, ids_BT).entropy_BT),
        (tiny_estimator(), lambda model: exact.token_entropies(model, ids_BT)),
    ]
    for model, label in labels:
        wide, half = label(model), label(model.bfloat16())
        with BlockedAttention():
            blocks = label(model)
        assert taken, "no attention was computed in blocks"
        taken.clear()
        assert (blocks - wide).abs().mean() < 1.5 * (half - wide).abs().mean()
