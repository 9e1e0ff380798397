"""Per-token cross-entropy without a `[tokens, vocabulary]` matrix: the head is folded into the loss, in chunks.

Training and labelling both use it. 512 rows of logits at a vocabulary of 8,192 stay near the cache
(16 MB): on two CPU cores a forward pass is 1.7 times faster than with all 4,096 rows at once.

N tokens, D width, V vocabulary.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 512


def token_cross_entropy(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor) -> Tensor:
    """-ln p(target) in nats, float32 [N], where p is the softmax of `hidden @ head.T`.

    Under autograd each chunk keeps its hidden states alone and computes its logits again in the backward pass.
    """
    chunks = zip(hidden_ND.split(CHUNK_TOKENS), target_N.split(CHUNK_TOKENS), strict=True)
    if torch.is_grad_enabled():
        losses = [checkpoint(_chunk_losses, hidden, head_VD, target, use_reentrant=False) for hidden, target in chunks]
    else:
        losses = [_chunk_losses(hidden, head_VD, target) for hidden, target in chunks]
    return torch.cat(losses)


def _chunk_losses(hidden_ND: Tensor, head_VD: Tensor, target_N: Tensor) -> Tensor:
    return cross_entropy((hidden_ND @ head_VD.T).float(), target_N, reduction="none")
