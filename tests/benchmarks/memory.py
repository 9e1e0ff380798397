"""Peak memory of the chunked and the plain cross-entropy, including the backward pass. Each loss has its own process.

`python -m tests.benchmarks.memory chunked 4096 131072 64 cpu` prints the peak minus the memory of the inputs, in bytes.
"""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from pipeline.models.cross_entropy import token_cross_entropy
from tests.benchmarks.figure import Figure


@dataclass(frozen=True)
class Size:
    tokens: int = 4096
    vocabulary: int = 131_072
    width: int = 64


QUICK = Size(2048, 16_384, 8)


def figures(size: Size, device: torch.device) -> Iterator[Figure]:
    chunked, plain = (_in_a_process(way, size, device) for way in ("chunked", "plain"))
    what = f"cross-entropy of {size.tokens:,} tokens, vocabulary {size.vocabulary:,}: peak memory, share of the plain"
    yield Figure(f"{what} ({chunked / 2**20:,.0f} of {plain / 2**20:,.0f} MiB)", chunked / plain, at_most=0.1)


def _in_a_process(way: str, size: Size, device: torch.device) -> int:
    arguments = [way, str(size.tokens), str(size.vocabulary), str(size.width), device.type]
    command = [sys.executable, "-m", "tests.benchmarks.memory", *arguments]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def peak(way: str, tokens: int, vocabulary: int, width: int, device: str) -> int:
    """Return the peak memory in bytes, including the gradients but not the inputs."""
    torch.manual_seed(0)
    precision = torch.bfloat16 if device == "cuda" else torch.float32
    hidden_ND = torch.randn(tokens, width, device=device, dtype=precision).requires_grad_()
    head_VD = torch.randn(vocabulary, width, device=device, dtype=precision).requires_grad_()
    target_N = torch.randint(vocabulary, (tokens,), device=device)
    before = _reset_peak(device)
    if way == "chunked":
        losses_N = token_cross_entropy(hidden_ND, head_VD, target_N)
    else:
        losses_N = cross_entropy((hidden_ND @ head_VD.T).float(), target_N, reduction="none")
    losses_N.mean().backward()
    return _peak(device) - before


def _reset_peak(device: str) -> int:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _peak(device)


def _peak(device: str) -> int:
    """Return the peak memory of this process on Linux, or of the GPU, in bytes.

    `getrusage` would be wrong, because a child's `ru_maxrss` begins at its parent's peak.
    """
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    tokens, vocabulary, width = map(int, sys.argv[2:5])
    print(peak(sys.argv[1], tokens, vocabulary, width, sys.argv[5]))
