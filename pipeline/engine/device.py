"""The kind of device that labels are computed on, and the precision that suits it; no torch here."""

from pathlib import Path
from typing import Literal

from schemas.annotations import Dtype

Device = Literal["cpu", "cuda"]

# Linux's names for x86 instructions that multiply bfloat16. A core with AVX512-BF16 labelled 2.0 times as many tokens a
# second in it as in float32 with the shipped second-order model, 1.9 times with the estimator, 2.5 times with SmolLM2;
# without such instructions bfloat16 is slower than float32.
BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})
CPU_INFO = Path("/proc/cpuinfo")


def fast_dtype(device: Device, cpu_info: Path = CPU_INFO) -> Dtype:
    """bfloat16 on a GPU and on a CPU that multiplies in it, float32 on any other CPU."""
    return "bfloat16" if device == "cuda" or BFLOAT16_INSTRUCTIONS & _cpu_flags(cpu_info) else "float32"


def _cpu_flags(cpu_info: Path) -> set[str]:
    """What Linux says that the first core can do; nothing on other systems."""
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.is_file() else []
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())
