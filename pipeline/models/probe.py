"""A model is tried before it labels: are its weights and labels numbers, and a causal language model's losses what this
project takes them for?

Two forwards of 16 tokens, the padding token not among them: its row may be zeros, and any scale of zeros is right.

T tokens, V vocabulary.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.models.causal_lm import longest_window, next_token_hidden, output_head
from pipeline.models.checkpoint import UnfitModelError

TOKENS = 16
# Shares of the range of the logits that rounding may take. Two ways to the same logits differ by that of one product.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2**-8, torch.bfloat16: 2**-6}


@torch.no_grad()
def require_finite(model: PreTrainedModel, folder: Path) -> None:
    """Refuses a model of which a weight is not a number or infinite: so would all its labels be.

    Raises:
        UnfitModelError: if one is.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.itemsize > 1 and weight.numel():
            low, high = weight.aminmax()  # without the memory that a mask takes; not a number where any is
            if not (low.isfinite() and high.isfinite()):
                raise UnfitModelError(f"{folder} has weights that are not finite: {name}; fetch or save it again")


@torch.no_grad()
def require_labels(model: PreTrainedModel, folder: Path, labels: Callable[[Tensor], Tensor]) -> None:
    """Refuses a model of ours whose labels of a few tokens are no numbers, though its weights are.

    Raises:
        UnfitModelError: if that is so, or it cannot read them.
    """
    config, tokens = model.config, min(TOKENS, model.config.context)
    ids_1T = torch.tensor([[place * config.vocab_size // tokens for place in range(tokens)]], device=model.device)
    try:
        finite = bool(labels(ids_1T).isfinite().all())
    except Exception as error:  # settings of a configuration that no weight shows fail in many ways
        reason = " ".join(str(error).split())
        raise UnfitModelError(f"{folder} cannot read {tokens} tokens: {reason}; name another checkpoint") from error
    if not finite:
        raise UnfitModelError(f"{folder} gives labels that are not finite; its weights or its config.json are broken")


@torch.no_grad()
def require_causal(model: PreTrainedModel) -> None:
    """Refuses a model whose losses would be silently wrong.

    Raises:
        UnfitModelError: if its logits are not finite, depend on tokens that come later, or are not those of its last
            hidden states under `Head`.
    """
    name, ids_1T = type(model).__name__, _probe(model)
    logits_TV = _logits(model, ids_1T)
    if not logits_TV.isfinite().all():
        raise UnfitModelError(f"{name} gives logits that are not finite; its weights are broken or were not trained")
    allowed = TOLERANCES[model.dtype] * float(logits_TV.max() - logits_TV.min())
    changed_1T = torch.cat([ids_1T[:, :-1], ids_1T[:, :1]], dim=1)
    if _difference(_logits(model, changed_1T)[:-1], logits_TV[:-1]) > allowed:
        raise UnfitModelError(
            f"{name} is not causal: its logits depend on tokens that come later, so its losses are no surprisals; look "
            f"at is_causal and is_decoder in its config.json, or use another model"
        )
    hidden_TD, head = next_token_hidden(model, ids_1T)[0], output_head(model)
    fits = hidden_TD.shape[-1] == head.weight_VD.shape[-1]
    if not fits or _difference(head.logits(hidden_TD), logits_TV) > allowed:
        raise UnfitModelError(f"the head of {name} is of a kind that this project does not know; use another model")


def _probe(model: PreTrainedModel) -> Tensor:
    """Ids [1, T] from all over the vocabulary, fewer where the context is shorter."""
    config, vocabulary = model.config.get_text_config(), len(output_head(model).weight_VD)
    tokens = min(TOKENS, longest_window(model.config) or TOKENS)
    known = [token for token in range(vocabulary) if token != getattr(config, "pad_token_id", None)] or [0]
    return torch.tensor([[known[place * len(known) // tokens] for place in range(tokens)]], device=model.device)


def _logits(model: PreTrainedModel, ids_1T: Tensor) -> Tensor:
    try:
        logits_TV: Tensor = model(input_ids=ids_1T, use_cache=False).logits[0].float()
    except Exception as error:  # classes differ in what they fail by: a setting, a position or an argument too few
        reason = " ".join(str(error).split())
        raise UnfitModelError(
            f"{type(model).__name__} cannot read {ids_1T.shape[1]} tokens: {reason}; use another model"
        ) from error
    return logits_TV


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")
