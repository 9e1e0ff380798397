"""Labels converted to whole numbers in units of 1/128 nat, and labels held in memory."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import label_units
from pipeline.data.label_units import NO_LABEL, held, nats_of, short_units, whole_units

ANY = st.just(np.nan) | st.floats(-200, 200, width=32)
UNITS = st.just(np.nan) | st.integers(1 - 2**15, 2**15 - 1).map(lambda unit: unit / 128)


@given(st.lists(ANY, max_size=20))
def test_labels_become_the_nearest_unit_and_missing_ones_are_told_apart(nats: list[float]) -> None:
    nats_N = np.array(nats, np.float32)
    labels_N, missing_N = short_units(nats_N), np.isnan(nats_N)
    assert (labels_N[missing_N] == NO_LABEL).all() and (labels_N[~missing_N] > NO_LABEL).all()
    assert (np.abs(labels_N[~missing_N] / 128 - nats_N[~missing_N]) <= 1 / 256).all()
    assert whole_units(nats_N).tolist() == [0 if math.isnan(each) else round(float(each) * 128) for each in nats_N]


@pytest.mark.parametrize("nats", [300.0, -256.0, 255.9961, 1e6, math.inf, -math.inf])
def test_a_label_beyond_16_bits_is_refused_and_held_in_float32(nats: float) -> None:
    labels_N = np.array([1.0, nats, np.nan], np.float32)
    with pytest.raises(ValueError, match="nats does not fit into 16 bits"):
        short_units(labels_N)
    assert held(labels_N) is labels_N is nats_of(labels_N)


@given(st.lists(st.lists(UNITS, min_size=3, max_size=3), max_size=9), st.integers(1, 5))
def test_labels_of_a_dataset_are_held_in_two_bytes(nats: list[list[float]], at_a_time: int) -> None:
    nats_WT = np.array(nats, np.float32).reshape(-1, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_units, "AT_A_TIME", at_a_time)
        labels_WT = held(nats_WT)
    assert labels_WT.dtype == np.int16 and labels_WT.shape == nats_WT.shape
    assert nats_of(labels_WT).dtype == np.float32
    np.testing.assert_array_equal(nats_of(labels_WT), nats_WT)


@given(st.lists(ANY, max_size=20))
def test_other_labels_are_held_as_they_are(nats: list[float]) -> None:
    nats_N = np.array(nats, np.float32)
    np.testing.assert_array_equal(nats_of(held(nats_N)), nats_N)


def test_half_precision_would_lose_labels_that_units_hold() -> None:
    nats_N = np.array([15.9921875, 16.0078125], np.float32)
    assert (nats_N.astype(np.float16).astype(np.float32) == nats_N).tolist() == [True, False]
    assert nats_of(held(nats_N)).tolist() == nats_N.tolist()
