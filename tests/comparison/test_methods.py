"""Methods of a comparison: they are unique, and all have equally many trials with the same common settings."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.comparison.methods import BASELINE, evenly, methods_for, trials_of

COMMON = {"learning_rate": (2e-3, 5e-3), "weight_decay": (0.1, 0.8, 2.4), "dropout": (0.0, 0.1)}
LABELS = ("truth", "causal")


def test_names_and_folders_are_unique_and_the_baseline_is_first() -> None:
    methods = methods_for(LABELS, "causal", distils=(0, 50), from_teacher=True)
    assert methods[0].name == BASELINE and methods[0].labels is None
    assert max(Counter(method.name for method in methods).values()) == 1
    folders = {trial.folder for method in methods for trial in trials_of(method, COMMON, 3)}
    assert all("/" not in folder and " " not in folder for folder in folders)
    assert len(folders) >= 2.5 * len(methods)


def test_flood_and_floor_meet_all_labels_and_others_the_chosen_ones() -> None:
    methods = methods_for(LABELS, "causal", distils=(), from_teacher=False)
    assert {method.labels for method in methods if method.objective == "floor"} == {"truth", "causal"}
    assert {method.labels for method in methods if method.objective == "adaflood"} == {"causal"}
    assert not any(method.from_teacher or method.distils is not None for method in methods)


@pytest.mark.parametrize("count", [1, 5, 6, 12])
def test_every_method_meets_the_same_common_settings(count: int) -> None:
    designs = set()
    for method in methods_for(LABELS, "causal", distils=(0, 50), from_teacher=True):
        trials = trials_of(method, COMMON, count)
        assert len(trials) == count and {trial.seed for trial in trials} == {0}
        designs.add(tuple(tuple((name, value) for name, value in trial.settings if name in COMMON) for trial in trials))
        assert {name for name, _ in trials[0].settings} == {*COMMON, *dict(method.own)}
    assert len(designs) == 1


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=5, unique=True), st.integers(1, 20), st.integers(0, 9))
def test_values_are_covered_evenly(values: list[float], count: int, seed: int) -> None:
    drawn = Counter(evenly(values, count, seed))
    assert sum(drawn.values()) == count and set(drawn) <= set(values)
    assert max(drawn.values()) - min(drawn[value] for value in values) <= 1
