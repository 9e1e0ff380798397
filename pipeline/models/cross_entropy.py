"""Per-token cross-entropy without a `[tokens, vocabulary]` matrix: logits are computed within the loss, in chunks.

Training and labelling use this loss. `token_sums` also returns further sums over the vocabulary, and the
log-probabilities of given ids. A chunk has as many tokens as a budget for logits allows. The backward pass recomputes
each chunk's logits and adds to the gradients in place. Apart from the gradients, the memory of the backward pass
therefore does not grow with tokens or vocabulary.

On a GPU, training in half precision can use the kernel of cut-cross-entropy (Wijmans et al., arXiv 2411.09009). The
kernel must be requested, because its licence is Apple's own and not approved by the Open Source Initiative.

N tokens (n of them in a chunk), D width, V vocabulary, K given ids per token, S sums of `LogitSums`, R = S + 1 + K.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from pipeline.models.logit_sums import SUMS, GivenIds, LogitSums, given_ids, gradient_of_sums, sums_of

# On a CPU, a chunk stays in the cache: its logits take 16 MB in float32, for 512 tokens at a vocabulary of 8,192 or 32
# tokens at 131,072. On one core, 4,096 tokens at 8,192 took 0.46 s forward, and 1.8 s forward and backward. With all
# logits in one chunk they took 0.87 s and 2.2 s, and with chunks of 1 MB 0.64 s and 2.3 s. 900 tokens of SmolLM2
# (49,152, bfloat16) took 0.19 s, and 0.29 s with chunks of 64 MB. A GPU needs products of some hundred rows or more:
# its chunks have 1,024 tokens at a vocabulary of 131,072, which take 1 GB for logits and softmax (computed).
CPU_CHUNK_LOGITS, CHUNK_LOGITS = 2**22, 2**27
HALF = (torch.bfloat16, torch.float16)
_kernel_asked_for = False


@contextmanager
def cut_cross_entropy(asked_for: bool = True) -> Iterator[None]:
    """Context manager inside which training uses the kernel of cut-cross-entropy, but only if `asked_for` is True.

    The kernel needs half precision, a GPU and a head without a bias. Otherwise, the loss is computed in chunks.
    """
    global _kernel_asked_for
    before, _kernel_asked_for = _kernel_asked_for, asked_for
    try:
        yield
    finally:
        _kernel_asked_for = before


def token_cross_entropy(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Return -ln p(target) in nats, float32 [N] (float64 for float64 input), differentiable once.

    p is the softmax of the logits `hidden @ head.T + bias`, capped to `softcap * tanh(logits / softcap)` if a cap is
    given. The factors of the product are in the hidden states' precision, or in autocast's if autocast is enabled. The
    product is summed in float32, but on a CPU the sums are rounded to the precision of the factors. Everything
    after the product is in float32.
    """
    precision = _precision(hidden_ND)
    if bias_V is None and _kernel_serves(hidden_ND, head_VD, precision):
        # The kernel's filter is off, because it drops the gradients of probabilities below 2e-4. When training with a
        # large vocabulary begins, all probabilities are below 2e-4.
        from cut_cross_entropy import linear_cross_entropy

        kernel_N: Tensor = linear_cross_entropy(
            hidden_ND.to(precision),
            head_VD.to(precision),
            target_N,
            softcap=softcap,
            reduction="none",
            filter_eps=None,
        )
        return kernel_N.float()
    losses_N: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, bias_V, target_N, None, softcap, precision, False
    )
    return losses_N


def token_sums(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
) -> LogitSums:
    """Return all fields of `LogitSums`, [N] each, from one product with the head. They are differentiable once.

    The losses are bit-identical to those that `token_cross_entropy` computes in chunks. The kernel of cut-cross-entropy
    is never used, because it returns only losses.
    """
    sums_SN: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, bias_V, target_N, None, softcap, _precision(hidden_ND), True
    )
    return LogitSums(*sums_SN.unbind())


def token_sums_and_given(
    hidden_ND: Tensor,
    head_VD: Tensor,
    target_N: Tensor,
    ids_NK: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
) -> tuple[LogitSums, GivenIds]:
    """Return what `token_sums` does, and the predictions of given ids, from the same product with the head.

    The ids are as in `given_ids`, and different in a row.
    """
    results_RN: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, bias_V, target_N, ids_NK, softcap, _precision(hidden_ND), True
    )
    return LogitSums(*results_RN[:SUMS].unbind()), GivenIds.from_rows(results_RN[SUMS:])


def _precision(hidden_ND: Tensor) -> torch.dtype:
    kind = hidden_ND.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype


def _kernel_serves(hidden_ND: Tensor, head_VD: Tensor, precision: torch.dtype) -> bool:
    """True if the kernel was asked for, gradients are needed, and the computation is in half precision on a GPU.

    The kernel adds in the order in which its blocks finish, so its results are not reproducible. Labels must be
    reproducible, and are never computed by the kernel. Liger's kernel is not an alternative: its per-token form
    (version 0.8.5) writes chunks of logits to memory, like `_ChunkedCrossEntropy`.
    """
    training = torch.is_grad_enabled() and (hidden_ND.requires_grad or head_VD.requires_grad)
    usable = hidden_ND.is_cuda and precision in HALF and len(hidden_ND) > 0
    return _kernel_asked_for and training and usable


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        ids_NK: Tensor | None,
        softcap: float | None,
        precision: torch.dtype,
        with_sums: bool,
    ) -> Tensor:
        """Return the losses [N] or, if `with_sums` is True, all of `LogitSums` [S, N].

        With ids, `with_sums` is True, and the rows of `GivenIds` follow: [S + 1 + K, N].
        """
        inputs = (hidden_ND, head_VD, bias_V, target_N)
        ctx.softcap, ctx.precision, ctx.with_sums = softcap, precision, with_sums
        hidden_ND, head_VD = hidden_ND.to(precision), head_VD.to(precision)
        results = SUMS + (0 if ids_NK is None else 1 + ids_NK.shape[1])
        shape = (results, len(hidden_ND)) if with_sums else (len(hidden_ND),)
        results_N = hidden_ND.new_empty(shape, dtype=torch.promote_types(precision, torch.float32))
        for chunk in _chunks(hidden_ND, head_VD):
            logits_nV = head_logits(hidden_ND[chunk], head_VD, bias_V, softcap)
            if not with_sums:
                results_N[chunk] = cross_entropy(logits_nV, target_N[chunk], reduction="none")
                continue
            log_p_nV = logits_nV.log_softmax(dim=1)
            results_N[:SUMS, chunk] = torch.stack(sums_of(logits_nV, log_p_nV, target_N[chunk]))
            if ids_NK is not None:
                results_N[SUMS:, chunk] = given_ids(log_p_nV, ids_NK[chunk]).rows()
        given = () if ids_NK is None else (ids_NK, results_N[SUMS].clone())
        ctx.save_for_backward(*inputs, *given)
        return results_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, head_VD, bias_V, target_N, *given = ctx.saved_tensors
        hidden_ND, head_VD = hidden_ND.to(ctx.precision), head_VD.to(ctx.precision)
        total = upstream_N.dtype
        needed = ctx.needs_input_grad[:3]
        sources = (hidden_ND, head_VD, bias_V)
        hidden_grad_ND, head_grad_VD, bias_grad_V = (
            torch.zeros_like(source, dtype=total) if need else None
            for source, need in zip(sources, needed, strict=True)
        )
        for chunk in _chunks(hidden_ND, head_VD):
            logits_nV = head_logits(hidden_ND[chunk], head_VD, bias_V, ctx.softcap)
            target_n, upstream_n = target_N[chunk], upstream_N[..., chunk]
            if ctx.with_sums:
                given_n = tuple(each[chunk] for each in given)
                gradient_nV = gradient_of_sums(logits_nV, target_n, upstream_n, given_n, ctx.softcap)
            else:
                gradient_nV = _logit_gradient(logits_nV, target_n, upstream_n, ctx.softcap)
            if bias_grad_V is not None:
                bias_grad_V += gradient_nV.sum(dim=0)
            gradient_nV = gradient_nV.to(ctx.precision)
            if hidden_grad_ND is not None:
                hidden_grad_ND[chunk] = gradient_nV @ head_VD
            if head_grad_VD is not None:
                _add_product(head_grad_VD, gradient_nV.T, hidden_ND[chunk])
        return hidden_grad_ND, head_grad_VD, bias_grad_V, None, None, None, None, None


def chunk_tokens(head_VD: Tensor) -> int:
    """Return the number of tokens whose logits are computed at a time on the head's device."""
    logits = CPU_CHUNK_LOGITS if head_VD.device.type == "cpu" else CHUNK_LOGITS
    return max(1, logits // len(head_VD))


def wide_product(hidden_ND: Tensor, head_VD: Tensor) -> Tensor:
    """Return `hidden @ head.T` [N, V] in float32, or in float64 for float64 input.

    On a GPU, half-precision factors are multiplied and summed in float32, and the sums are not rounded to half
    precision. Rounding the sums changed SmolLM2's surprisal by 0.021 nats on average, and computing everything in
    bfloat16 changed it by 0.032 nats.
    """
    if hidden_ND.is_cuda and hidden_ND.dtype in HALF:
        return torch.mm(hidden_ND, head_VD.T, out_dtype=torch.float32)
    product_NV = hidden_ND @ head_VD.T
    return product_NV.to(torch.promote_types(product_NV.dtype, torch.float32))


def head_logits(hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor | None, softcap: float | None) -> Tensor:
    """Return `hidden @ head.T + bias` [N, V], capped to `softcap * tanh(logits / softcap)` if a cap is given.

    The dtype is that of `wide_product`. Bias and cap are applied in place, so that only one matrix of logits exists.
    The result has no gradient.
    """
    logits_NV = wide_product(hidden_ND, head_VD)
    if bias_V is not None:
        logits_NV += bias_V
    if softcap is not None:
        logits_NV.div_(softcap).tanh_().mul_(softcap)
    return logits_NV


def _chunks(hidden_ND: Tensor, head_VD: Tensor) -> Iterator[slice]:
    tokens = chunk_tokens(head_VD)
    return (slice(start, start + tokens) for start in range(0, len(hidden_ND), tokens))


def _logit_gradient(logits_nV: Tensor, target_n: Tensor, upstream_n: Tensor, softcap: float | None) -> Tensor:
    """Return the gradient of the losses with respect to the logits before the cap.

    Without a cap, the gradient is (softmax - one-hot target) x upstream.
    """
    gradient_nV = logits_nV.softmax(dim=1)
    gradient_nV[torch.arange(len(target_n), device=target_n.device), target_n] -= 1
    gradient_nV *= upstream_n.unsqueeze(1)
    if softcap is not None:
        gradient_nV *= 1 - (logits_nV / softcap).square_()
    return gradient_nV


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total`, which is in float32 if the factors are in half precision."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
