"""Combination of the labels of several checkpoints: their mean, and the deviation of their surprisals.

A labeller of an ensemble computes the label columns, and one more column for each member: the member's own surprisals.
These columns stay separate until the labels have been transferred to the dataset's tokens, because a deviation cannot
be divided among tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from schemas.annotations import ENTROPY, ENTROPY_DEVIATION, Shape


class Ensemble(NamedTuple):
    """Checkpoints that read the same tokens and label together; often a single one."""

    checkpoints: tuple[Path, ...]
    starts: tuple[int | None, ...]
    """Id of the token that each checkpoint reads before a window; None for methods other than causal."""


Labels = dict[str, list[np.ndarray]]
"""Labels by column: an array per document, float32, with NaN for tokens without a label."""

SURPRISAL_OF = "surprisal of member "
"""Beginning of the names of the columns with members' surprisals. These columns are never written to a dataset."""


def columns_to_compute(columns: Mapping[str, Shape], members: int) -> dict[str, Shape]:
    """Return the columns that a labeller of `members` checkpoints computes, given the label columns of a dataset.

    The column of deviations is left out, because deviations are computed later from the surprisals of the checkpoints.
    With several checkpoints, one column of surprisals per checkpoint replaces the column of deviations.
    """
    own = {name: shape for name, shape in columns.items() if name != ENTROPY_DEVIATION}
    apart: dict[str, Shape] = dict.fromkeys(member_columns(members), ())
    return own if members == 1 or len(own) == len(columns) else {**own, **apart}


def member_columns(members: int) -> tuple[str, ...]:
    """Return the names of the columns of the members' surprisals."""
    return tuple(f"{SURPRISAL_OF}{index}" for index in range(members))


def combined(readings: Sequence[Mapping[str, list[np.ndarray]]]) -> Labels:
    """Combine the labels of an ensemble's members into the labels of a dataset.

    A reading has the labels, by column, that were made with one tokenizer. These labels are already transferred to the
    dataset's tokens. If all members share a tokenizer, there is one reading, which all members made together. Otherwise
    there is one reading per member, and the labels of the readings are averaged. A token has no label if its label is
    missing in any reading.

    The deviation is the sample standard deviation of the members' surprisals, with the divisor M - 1 for M members.
    With this divisor, the expected variance does not depend on M.
    """
    labels = {
        name: [_mean(arrays) for arrays in zip(*(reading[name] for reading in readings), strict=True)]
        for name in readings[0]
        if not name.startswith(SURPRISAL_OF)
    }
    own = [arrays for name, arrays in readings[0].items() if name.startswith(SURPRISAL_OF)]
    surprisals = own or [reading[ENTROPY] for reading in readings]
    if len(surprisals) > 1:
        labels[ENTROPY_DEVIATION] = [deviation(arrays) for arrays in zip(*surprisals, strict=True)]
    return labels


def deviation(surprisals: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sample standard deviation of the members' surprisals of each token, float32."""
    deviation_N: np.ndarray = np.stack(surprisals).std(axis=0, ddof=1, dtype=np.float64)
    return deviation_N.astype(np.float32)


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    mean_N: np.ndarray = np.stack(arrays).mean(axis=0, dtype=np.float64)
    return mean_N.astype(np.float32)
