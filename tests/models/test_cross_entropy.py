"""The chunked loss compared with the plain loss."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.models import cross_entropy as chunked
from pipeline.models.cross_entropy import cut_cross_entropy, token_cross_entropy, token_sums
from pipeline.models.logit_sums import LogitSums

WIDTH = 8
VOCABULARY = 53
CHUNK = 16


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the maximum number of logits in a chunk to 16 tokens x 53 ids, plus 7 logits that are too few for a token."""
    monkeypatch.setattr(chunked, "CPU_CHUNK_LOGITS", CHUNK * VOCABULARY + 7)


class Case:
    """Random inputs and an upstream gradient, with methods that compute the chunked and the plain loss."""

    def __init__(self, tokens: int, dtype: torch.dtype = torch.float64, *, scale: float = 1.0) -> None:
        torch.manual_seed(tokens)
        self.hidden_ND = (scale * torch.randn(tokens, WIDTH)).to(dtype).requires_grad_()
        self.head_VD = torch.randn(VOCABULARY, WIDTH).to(dtype).requires_grad_()
        self.bias_V = torch.randn(VOCABULARY).to(dtype).requires_grad_()
        self.target_N, self.upstream_N = torch.randint(VOCABULARY, (tokens,)), torch.rand(tokens).to(dtype)

    def logits(self, *, bias: bool = False, softcap: float | None = None) -> Tensor:
        logits_NV = self.hidden_ND @ self.head_VD.T + (self.bias_V if bias else 0)
        return logits_NV if softcap is None else softcap * torch.tanh(logits_NV / softcap)

    def plain(self, *, bias: bool = False, softcap: float | None = None) -> Tensor:
        return cross_entropy(self.logits(bias=bias, softcap=softcap), self.target_N, reduction="none")

    def plain_sums(self, *, bias: bool = False, softcap: float | None = None) -> Tensor:
        logits_NV = self.logits(bias=bias, softcap=softcap)
        entropy_N = torch.special.entr(logits_NV.softmax(1)).sum(1)
        losses_N = cross_entropy(logits_NV, self.target_N, reduction="none")
        return torch.stack([losses_N, logits_NV.exp().sum(1).log(), logits_NV.mean(1), entropy_N])

    def sums(self, *, bias: bool = False, softcap: float | None = None) -> Tensor:
        bias_V = self.bias_V if bias else None
        sums = token_sums(self.hidden_ND, self.head_VD, self.target_N, bias_V=bias_V, softcap=softcap)
        return torch.stack(sums)

    def chunked(self, *, bias: bool = False, softcap: float | None = None) -> Tensor:
        bias_V = self.bias_V if bias else None
        return token_cross_entropy(self.hidden_ND, self.head_VD, self.target_N, bias_V=bias_V, softcap=softcap)

    def gradients(self, losses_N: Tensor) -> tuple[Tensor | None, ...]:
        leaves = [leaf for leaf in (self.hidden_ND, self.head_VD, self.bias_V) if leaf.requires_grad]
        return torch.autograd.grad(losses_N, leaves, self.upstream_N.to(losses_N.dtype), allow_unused=True)

    def gradients_of_sums(self, sums_SN: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of a weighted total of the sums. The weights differ between sums and between tokens."""
        upstream_SN = torch.stack([(number + self.upstream_N).sin() for number in range(len(sums_SN))])
        leaves = [leaf for leaf in (self.hidden_ND, self.head_VD, self.bias_V) if leaf.requires_grad]
        return torch.autograd.grad(sums_SN, leaves, upstream_SN.to(sums_SN.dtype), allow_unused=True)


@pytest.mark.parametrize(
    ("tokens", "dtype"), product([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5], [torch.float32, torch.float64])
)
def test_losses_and_weighted_gradients_equal_those_of_the_whole_matrix(tokens: int, dtype: torch.dtype) -> None:
    case = Case(tokens, dtype)
    losses_N, plain_N = case.chunked(), case.plain()
    assert losses_N.dtype == dtype
    torch.testing.assert_close(losses_N, plain_N)
    torch.testing.assert_close(case.gradients(losses_N), case.gradients(plain_N))


@pytest.mark.parametrize(("bias", "softcap"), [(True, None), (False, 2.0), (True, 30.0)])
def test_a_bias_and_a_soft_cap_are_in_losses_and_gradients(bias: bool, softcap: float | None) -> None:
    case = Case(3 * CHUNK + 5)
    losses_N, plain_N = case.chunked(bias=bias, softcap=softcap), case.plain(bias=bias, softcap=softcap)
    torch.testing.assert_close(losses_N, plain_N)
    torch.testing.assert_close(case.gradients(losses_N), case.gradients(plain_N))


def test_finite_differences_agree() -> None:
    case = Case(CHUNK + 3)

    def losses(hidden_ND: Tensor, head_VD: Tensor, bias_V: Tensor) -> Tensor:
        return token_cross_entropy(hidden_ND, head_VD, case.target_N, bias_V=bias_V, softcap=5.0)

    assert torch.autograd.gradcheck(losses, (case.hidden_ND, case.head_VD, case.bias_V))


@pytest.mark.parametrize("frozen", ["hidden_ND", "head_VD"])
def test_frozen_inputs_get_no_gradient_and_leave_other_gradients_unchanged(frozen: str) -> None:
    case = Case(2 * CHUNK + 3)
    getattr(case, frozen).requires_grad_(False)
    torch.testing.assert_close(case.gradients(case.chunked()), case.gradients(case.plain()))


def test_losses_without_autograd_are_the_same() -> None:
    case = Case(2 * CHUNK + 3, torch.float32)
    with torch.no_grad():
        losses_N = case.chunked()
    assert not losses_N.requires_grad
    assert losses_N.equal(case.chunked().detach())


def test_autocast_multiplies_in_bfloat16_and_keeps_losses_and_gradients_in_float32() -> None:
    case = Case(3 * CHUNK + 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses_N = case.chunked()
    gradients, exact_N = case.gradients(losses_N), case.plain()
    assert losses_N.dtype == torch.float32
    assert 0 < (losses_N - exact_N).abs().max() < 0.06
    for rounded, exact in zip(gradients[:2], case.gradients(exact_N)[:2], strict=True):
        assert rounded is not None and exact is not None
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.01 * exact.norm()


def test_bfloat16_sums_the_head_gradient_of_many_chunks_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "CPU_CHUNK_LOGITS", VOCABULARY)
    case = Case(600, torch.bfloat16)
    losses_N = case.chunked()
    assert losses_N.dtype == torch.float32
    _, head_grad_VD, _ = case.gradients(losses_N)
    exact = Case(600, torch.float64)
    _, exact_VD, _ = exact.gradients(exact.plain())
    assert head_grad_VD is not None and exact_VD is not None
    assert head_grad_VD.dtype == torch.bfloat16
    assert (head_grad_VD.double() - exact_VD).norm() < 0.01 * exact_VD.norm()


SHAPES = [(True, None), (False, 2.0), (True, 30.0), (False, None)]


@pytest.mark.parametrize("tokens", [0, 1, CHUNK, 3 * CHUNK + 5])
@pytest.mark.parametrize(("bias", "softcap"), SHAPES)
def test_sums_and_their_gradients_equal_those_of_the_whole_matrix(
    tokens: int, bias: bool, softcap: float | None
) -> None:
    case = Case(tokens)
    sums_SN, plain_SN = case.sums(bias=bias, softcap=softcap), case.plain_sums(bias=bias, softcap=softcap)
    torch.testing.assert_close(sums_SN, plain_SN)
    torch.testing.assert_close(case.gradients_of_sums(sums_SN), case.gradients_of_sums(plain_SN))


def test_sums_in_float32_differ_by_rounding() -> None:
    case, exact = Case(3 * CHUNK + 5, torch.float32), Case(3 * CHUNK + 5)
    sums_SN, exact_SN = case.sums(), exact.plain_sums()
    torch.testing.assert_close(sums_SN, exact_SN.float(), atol=1e-5, rtol=1e-5)
    for found, wanted in zip(case.gradients_of_sums(sums_SN)[:2], exact.gradients_of_sums(exact_SN)[:2], strict=True):
        assert found is not None and wanted is not None
        torch.testing.assert_close(found, wanted.float(), atol=1e-4, rtol=1e-5)


def test_sums_under_autocast_are_in_float32_with_the_losses_of_the_plain_loss() -> None:
    case = Case(3 * CHUNK + 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        sums_SN, losses_N = case.sums(), case.chunked()
    assert sums_SN.dtype == torch.float32
    assert LogitSums(*sums_SN).losses.equal(losses_N)
    torch.testing.assert_close(sums_SN, case.plain_sums(), atol=0.06, rtol=0)


@pytest.mark.parametrize("frozen", ["hidden_ND", "head_VD"])
def test_sums_of_frozen_inputs_leave_other_gradients_unchanged(frozen: str) -> None:
    case = Case(2 * CHUNK + 3)
    getattr(case, frozen).requires_grad_(False)
    torch.testing.assert_close(case.gradients_of_sums(case.sums()), case.gradients_of_sums(case.plain_sums()))


class LargestTensor(TorchDispatchMode):
    """Context that records the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):  # type: ignore[no-untyped-def]
        results = function(*arguments, **(keywords or {}))
        tensors = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *(tensor.numel() for tensor in tensors)])
        return results


def test_no_tensor_grows_with_tokens_times_vocabulary() -> None:
    case = Case(50 * CHUNK)
    with LargestTensor() as largest:  # type: ignore[no-untyped-call]
        case.gradients(case.chunked())
    assert largest.elements <= max(chunked.CPU_CHUNK_LOGITS, case.head_VD.numel(), case.hidden_ND.numel())
    with LargestTensor() as of_sums:  # type: ignore[no-untyped-call]
        case.gradients_of_sums(case.sums())
    assert of_sums.elements == largest.elements
    with LargestTensor() as plain:  # type: ignore[no-untyped-call]
        case.gradients(case.plain())
    assert plain.elements == 50 * CHUNK * VOCABULARY


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_on_a_gpu_the_kernel_trains_with_the_gradients_of_the_loop(softcap: float | None) -> None:
    pytest.importorskip("cut_cross_entropy")
    torch.manual_seed(0)
    hidden_ND, head_VD = torch.randn(700, 64), torch.randn(1009, 64)
    target_N, weight_N = torch.randint(1009, (700,)), torch.rand(700)
    results = []
    for device, dtype in (("cuda", torch.bfloat16), ("cpu", torch.float32)):
        hidden = hidden_ND.bfloat16().to(device, dtype).requires_grad_()
        head = head_VD.bfloat16().to(device, dtype).requires_grad_()
        with cut_cross_entropy():
            losses_N = token_cross_entropy(hidden, head, target_N.to(device), softcap=softcap)
        gradients = torch.autograd.grad(losses_N, (hidden, head), weight_N.to(device))
        results.append([losses_N.detach(), *gradients])
    for kernel, loop in zip(*results, strict=True):
        assert (kernel.cpu().float() - loop).norm() < 0.02 * loop.norm()


class OnGPU:
    """Stand-in for hidden states and a head that are trained on a GPU."""

    is_cuda = requires_grad = True

    def __len__(self) -> int:
        return 1


def test_the_kernel_whose_licence_is_not_open_is_used_only_on_request() -> None:
    tensor: Any = OnGPU()
    assert not chunked._kernel_serves(tensor, tensor, torch.bfloat16)
    with cut_cross_entropy():
        assert chunked._kernel_serves(tensor, tensor, torch.bfloat16)
        assert not chunked._kernel_serves(tensor, tensor, torch.float32)
        with cut_cross_entropy(False):
            assert not chunked._kernel_serves(tensor, tensor, torch.bfloat16)
        with torch.no_grad():
            assert not chunked._kernel_serves(tensor, tensor, torch.bfloat16), "labels must be the same each time"
    assert not chunked._kernel_serves(tensor, tensor, torch.bfloat16)
