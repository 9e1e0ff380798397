"""Training methods that a study compares, each with its objective, its labels and the settings to try.

An axis is the name of a setting with the values to try. The axes that all methods share (learning rate, weight decay,
dropout) take the same values in the same order for every method. Every method has the same number of trials, even if it
has further axes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np

from pipeline.comparison.study import NGRAMS, SHUFFLED, WITHIN_TOKENS
from pipeline.training.config import ObjectiveName

Axes = tuple[tuple[str, tuple[float, ...]], ...]
"""Names of settings, each with the values to try."""

LEVELS: Axes = (("margin", (0.0, -1.0, -0.5, -2.0)),)
MOVING: Axes = (("average_decay", (0.9, 0.95, 0.98)), ("average_from", (0.0,)))
FIRST: Axes = (("first_margin", (-2.0, -1.0, 1.0, 2.0)),)
SHARES: Axes = (("share", (0.4, 0.6, 0.8)),)
BASELINE = "cross-entropy"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to train a language model."""

    name: str
    objective: ObjectiveName = "cross-entropy"
    labels: str | None = None
    """Name of the labels; None for a method without labels."""
    own: Axes = ()
    """Settings that only this method needs, besides the settings that all methods share. Each has its values to try."""
    average: Literal["none", "ema", "swa"] = "none"
    distils: int | None = None
    """Number of a teacher's most probable ids to learn from; 0 for all ids, None for a method without a teacher."""
    from_teacher: bool = False
    """True if training starts from the weights of the teacher."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training: a method, a value of each of its settings, and a seed."""

    method: Method
    settings: tuple[tuple[str, float], ...] = ()
    seed: int = 0

    @property
    def chosen(self) -> str:
        """Settings as text, for display and for the name of the trial's folder."""
        return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.settings)

    @property
    def folder(self) -> str:
        """Name of the trial's folder."""
        words = f"{self.method.name}, {self.chosen}, seed {self.seed}"
        return re.sub(r"[ ,()+]+", "-", words)


def methods_for(labels: Sequence[str], chosen: str, *, distils: Sequence[int], from_teacher: bool) -> list[Method]:
    """Return all methods that can be compared with these labels.

    `labels` has the names of all kinds of labels. `flood` and `floor` are tried with every kind. The other objectives
    that need labels are tried with the kind `chosen` only. For each number k in `distils`, there is a method of
    distillation from a teacher's k most probable ids per token. If k is 0, the method uses all ids. With
    `from_teacher`, there are also methods that start from the teacher's weights.
    """
    floods = [
        Method(name=f"{name}, {each}", objective=name, labels=each, own=LEVELS)
        for name in ("flood", "floor")
        for each in labels
    ]
    return [*without_labels(), *floods, *with_labels(chosen), *of_teacher(chosen, distils, from_teacher)]


def without_labels() -> Iterator[Method]:
    """Yield the methods that need no labels."""
    yield Method(name=BASELINE)
    yield Method(name="EMA", average="ema", own=MOVING)
    yield Method(name="SWA", average="swa", own=(("average_from", (0.1, 0.25, 0.5)),))
    yield Method(name="label smoothing", own=(("label_smoothing", (0.05, 0.1, 0.2)),))
    yield Method(name="confidence penalty", own=(("confidence_penalty", (0.05, 0.1, 0.3)),))
    yield Method(name="z-loss", own=(("z_loss", (1e-4, 1e-3, 1e-2)),))
    yield Method(name="random-share", objective="random-share", own=SHARES)
    yield Method(name="loss-share (ESLM)", objective="loss-share", own=SHARES)


def with_labels(chosen: str) -> Iterator[Method]:
    """Yield the methods that use one kind of labels, and their controls."""
    yield Method(name="flood-mean", objective="flood-mean", labels=chosen, own=LEVELS)
    yield Method(name="iflood", objective="iflood", labels=chosen, own=LEVELS)
    yield Method(name="adaflood", objective="adaflood", labels=chosen, own=(("gamma", (0.1, 0.3, 0.5, 0.7)),))
    yield Method(name="weight", objective="weight", labels=chosen)
    yield Method(name="mask", objective="mask", labels=chosen)
    yield Method(name="reference-share (Rho-1)", objective="reference-share", labels=chosen, own=SHARES)
    yield Method(name="token dropout (EntroDrop)", labels=chosen, own=(("token_dropout", (0.1, 0.3, 0.6)),))
    yield Method(name="probability alone", objective="probability", labels=chosen)
    for shuffled in (SHUFFLED, WITHIN_TOKENS):
        name = f"flood, {shuffled}{chosen}"
        yield Method(name=name, objective="flood", labels=f"{shuffled}{chosen}", own=LEVELS)
    for name in NGRAMS:
        yield Method(name=f"flood, {name}", objective="flood", labels=name, own=LEVELS)
    for objective in ("flood", "floor"):
        name = f"{objective} + EMA, {chosen}"
        yield Method(name=name, objective=objective, labels=chosen, average="ema", own=(*LEVELS, *MOVING))
        name = f"{objective}, moving margin, {chosen}"
        yield Method(name=name, objective=objective, labels=chosen, own=FIRST)


def of_teacher(chosen: str, distils: Sequence[int], from_teacher: bool) -> Iterator[Method]:
    """Yield the methods that use a teacher's predictions or its weights."""
    weights: Axes = (("teacher_weight", (0.5, 0.9, 1.0)),)
    for ids in distils:
        yield Method(name=f"distillation, {ids or 'all'} ids", distils=ids, own=weights)
    if from_teacher:
        yield Method(name="student from the teacher", from_teacher=True)
        name = f"flood, student from the teacher, {chosen}"
        yield Method(name=name, objective="flood", labels=chosen, own=LEVELS, from_teacher=True)


def trials_of(method: Method, common: Mapping[str, Sequence[float]], count: int) -> list[Trial]:
    """Return `count` trials of a method, in which all values of a setting occur equally often, up to a difference of 1.

    The values of a setting in `common` are the same for every method. They depend only on the setting and on `count`.
    """
    axes = {**common, **dict(method.own)}
    columns = {name: evenly(values, count, seed=crc32(name.encode())) for name, values in axes.items()}
    return [
        Trial(method=method, settings=tuple((name, column[index]) for name, column in columns.items()))
        for index in range(count)
    ]


def evenly(values: Sequence[float], count: int, seed: int) -> list[float]:
    """Return `count` values in random order. All values occur equally often, up to a difference of 1."""
    repeated = [values[index % len(values)] for index in range(count)]
    return [repeated[index] for index in np.random.default_rng(seed).permutation(count)]
