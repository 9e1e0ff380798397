"""Packed windows that are stored in fewer bytes of memory: selected windows equal the original windows."""

import numpy as np
import pytest

from pipeline.data.packing import PackedWindow
from pipeline.training.held_windows import HeldWindows, smallest

IDS = np.arange(12, dtype=np.int32).reshape(3, 4)


@pytest.mark.parametrize(("step", "size"), [(1 / 128, 8), (0.3, 10)])
def test_windows_take_fewer_bytes_and_are_selected_unchanged(step: float, size: int) -> None:
    """A label takes two bytes if all labels are multiples of 1/128 nat, and four bytes otherwise."""
    entropy_WT = np.where(IDS % 5, IDS * step, np.nan).astype(np.float32)
    windows = PackedWindow(IDS, entropy_WT, IDS % 3 - 1)
    held = HeldWindows.of(windows)
    assert sum(each.nbytes for each in vars(held).values()) == size * IDS.size and len(held) == 3
    np.testing.assert_array_equal(held.entropy_T, entropy_WT)
    for one, other in zip(held[np.array([2, 0])], windows, strict=True):
        np.testing.assert_array_equal(one, other[[2, 0]])


@pytest.mark.parametrize(("number", "kind"), [(2**15 - 1, np.int16), (2**15, np.int32), (-(2**15) - 1, np.int32)])
def test_numbers_of_two_bytes_are_told_by_their_size(number: int, kind: type) -> None:
    found = smallest(np.array([number, 0], np.int32))
    assert found.dtype == kind and found.tolist() == [number, 0]
