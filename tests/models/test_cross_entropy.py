"""The chunked loss against the plain one."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from pipeline.models.cross_entropy import CHUNK_TOKENS, token_cross_entropy


@pytest.mark.parametrize("tokens", [0, 1, CHUNK_TOKENS - 1, CHUNK_TOKENS, 2 * CHUNK_TOKENS + 3])
def test_losses_and_gradients_equal_those_of_the_whole_matrix(tokens: int) -> None:
    torch.manual_seed(0)
    hidden_ND, head_VD = torch.randn(tokens, 8), torch.randn(50, 8)
    target_N, upstream_N = torch.randint(50, (tokens,)), torch.rand(tokens)
    results = []
    for loss in (
        token_cross_entropy,
        lambda hidden, head, target: cross_entropy(hidden @ head.T, target, reduction="none"),
    ):
        hidden, head = hidden_ND.clone().requires_grad_(), head_VD.clone().requires_grad_()
        losses_N = loss(hidden, head, target_N)
        (losses_N * upstream_N).sum().backward()
        results.append((losses_N.detach(), hidden.grad, head.grad))
    for chunked, plain in zip(*results, strict=True):
        torch.testing.assert_close(chunked, plain)


def test_labels_without_autograd_are_the_same() -> None:
    torch.manual_seed(0)
    hidden_ND, head_VD, target_N = torch.randn(700, 8), torch.randn(50, 8), torch.randint(50, (700,))
    with torch.no_grad():
        losses_N = token_cross_entropy(hidden_ND, head_VD, target_N)
    assert not losses_N.requires_grad
    torch.testing.assert_close(losses_N, cross_entropy(hidden_ND @ head_VD.T, target_N, reduction="none"))
