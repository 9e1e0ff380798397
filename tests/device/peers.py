"""Section `peers`: speed and memory of two ways to compute surprisals.

This project computes the logits of a few tokens at a time. lm-eval and minicons compute all logits of a batch at once.

B windows, T tokens, V vocabulary.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import LlamaForCausalLM

from pipeline.labels.causal import token_entropies
from pipeline.models.causal_lm import prepend_start
from schemas.annotations import Device
from tests.device.log import Figures, Log
from tests.device.sizes import Sizes, language_model
from tests.device.speed import best_seconds


def section(log: Log, sizes: Sizes, device: Device) -> None:
    for vocabulary in sizes.vocabularies:
        log.measure("peers", f"vocabulary {vocabulary:,}", partial(_compared, sizes, vocabulary, device))


def _compared(sizes: Sizes, vocabulary: int, device: Device) -> Figures:
    """Return the speed and memory of both ways to compute surprisals, with the same model and windows in bfloat16.

    Memory is the peak of a call, minus the memory that was allocated before the call.
    """
    model = language_model(sizes.shape_of_vocabulary(vocabulary), sizes.context, device, torch.bfloat16)
    torch.manual_seed(0)
    ids_BT = torch.randint(vocabulary, (sizes.peer_rows, sizes.context), device=device)
    ours, theirs = partial(token_entropies, model, ids_BT, 0), partial(all_logits_at_once, model, ids_BT, 0)
    speeds = [ids_BT.numel() / best_seconds(way, device, sizes.repeats) for way in (ours, theirs)]
    found: Figures = {"ours, tokens/s": speeds[0], "theirs, tokens/s": speeds[1], "times": speeds[0] / speeds[1]}
    if device == "cuda":
        memory = [_peak(way) for way in (ours, theirs)]
        found |= {"ours, GB": memory[0] / 1e9, "theirs, GB": memory[1] / 1e9, "share": memory[0] / memory[1]}
    total, other = (float(way().double().sum()) for way in (ours, theirs))
    return {**found, "totals differ by": abs(total - other) / abs(total)}


@torch.no_grad()
def all_logits_at_once(model: LlamaForCausalLM, ids_BT: Tensor, start: int) -> Tensor:
    """Return -ln p of every token, float32 [B, T], from `model(ids).logits`."""
    logits_BTV = model(prepend_start(ids_BT, start), use_cache=False).logits
    return -log_softmax(logits_BTV.float(), dim=-1).gather(2, ids_BT.unsqueeze(2)).squeeze(2)


def _peak(way: Callable[[], Tensor]) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return torch.cuda.max_memory_allocated() - before
