"""Labels as whole numbers in units of 1/128 nat. Annotation rounds labels to multiples of this unit.

A whole number of 16 bits holds every rounded label below 256 nats exactly. A half-precision float takes two bytes too,
but its steps are 1/64 nat or more from 16 nats on.
"""

import numpy as np

from schemas.annotations import ROUNDING_NATS

NO_LABEL = -(2**15)
"""Number that stands for a token without a label."""
MOST_UNITS = 2**15 - 1
AT_A_TIME = 2**20  # labels that are converted at a time, in float64


def whole_units(nats: np.ndarray) -> np.ndarray:
    """Convert labels from nats to whole numbers of 1/128 nat, int64. Labels must be finite or NaN; NaN becomes 0."""
    return _rounded(nats).astype(np.int64)


def short_units(nats: np.ndarray) -> np.ndarray:
    """Convert labels from nats to whole numbers of 1/128 nat, int16. NaN becomes NO_LABEL.

    Raises:
        ValueError: if a label is 256 nats or more.
    """
    numbers = _rounded(nats)
    if np.abs(numbers).max(initial=0) > MOST_UNITS:
        largest = float(np.abs(np.nan_to_num(nats)).max())
        raise ValueError(f"a label of {largest:.0f} nats does not fit into 16 bits of 1/128 nat; mend the labels first")
    numbers[np.isnan(nats)] = NO_LABEL
    return numbers.astype(np.int16)


def held(nats: np.ndarray) -> np.ndarray:
    """Convert labels in nats to the smallest form that holds them exactly. `nats_of` converts them back.

    The form is int16 if every label is a multiple of 1/128 nat below 256 nats, as in annotated datasets. Otherwise,
    labels stay float32. Labels that were moved to other tokens are usually not multiples of 1/128 nat.
    """
    flat, units = nats.reshape(-1), np.empty(nats.size, np.int16)
    for start in range(0, len(flat), AT_A_TIME):
        part = slice(start, start + AT_A_TIME)
        if np.nanmax(np.abs(flat[part]), initial=0) > MOST_UNITS * ROUNDING_NATS:
            return nats
        units[part] = short_units(flat[part])
        if not np.array_equal(_restored(units[part]), flat[part], equal_nan=True):
            return nats
    return units.reshape(nats.shape)


def nats_of(labels: np.ndarray) -> np.ndarray:
    """Convert labels from the form that `held` returns to nats, float32, with NaN for tokens without a label."""
    return _restored(labels) if labels.dtype == np.int16 else labels


def _rounded(nats: np.ndarray) -> np.ndarray:
    finite = np.where(np.isnan(nats), 0, nats.astype(np.float64))
    numbers: np.ndarray = np.round(finite / ROUNDING_NATS)
    return numbers


def _restored(units: np.ndarray) -> np.ndarray:
    nats: np.ndarray = units.astype(np.float32) * np.float32(ROUNDING_NATS)
    nats[units == NO_LABEL] = np.nan
    return nats
