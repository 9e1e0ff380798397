"""The precision that suits a device."""

from pathlib import Path

import pytest

from pipeline.engine.plan import fast_dtype
from schemas.annotations import Device


@pytest.mark.parametrize(
    ("device", "flags", "expected"),
    [
        ("cpu", "fpu avx512f avx512_bf16", "bfloat16"),
        ("cpu", "amx_tile amx_bf16 amx_int8", "bfloat16"),
        ("cpu", "fpu avx2 avx512f avx512_vnni", "float32"),
        ("cpu", "", "float32"),
        ("cuda", "fpu avx2", "bfloat16"),
    ],
)
def test_bfloat16_is_for_devices_that_multiply_in_it(tmp_path: Path, device: Device, flags: str, expected: str) -> None:
    cpu_info = tmp_path / "cpuinfo"
    cpu_info.write_text(
        f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\n\nprocessor\t: 1\n", encoding="utf-8"
    )
    assert fast_dtype(device, cpu_info) == expected


def test_a_system_that_does_not_say_what_its_cpu_can_do_gets_float32(tmp_path: Path) -> None:
    assert fast_dtype("cpu", tmp_path / "missing") == "float32"
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n", encoding="utf-8")
    assert fast_dtype("cpu", tmp_path / "arm") == "float32"
