"""Annotations that are killed at random moments and resumed. `python -m tests.kills` runs hundreds of them."""

from pathlib import Path

import pytest

from tests.kills import Kills


@pytest.mark.parametrize(
    ("hub", "ray_share", "count"),
    [
        (False, 0.0, 2),
        pytest.param(False, 0.0, 12, marks=pytest.mark.slow),
        pytest.param(True, 0.0, 8, marks=pytest.mark.slow),
        pytest.param(False, 1.0, 3, marks=[pytest.mark.cluster, pytest.mark.slow]),
    ],
)
def test_a_killed_and_resumed_annotation_ends_as_if_nothing_had_happened(
    tmp_path: Path, hub: bool, ray_share: float, count: int
) -> None:
    kills, number = Kills(tmp_path, seed=1, hub=hub, ray_share=ray_share), 0
    while kills.kills < count:
        assert list(kills.trial(number)) == []
        number += 1
