"""A few random inputs of every kind are used or refused. `python -m tests.fuzz` runs any number of inputs."""

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzz import KINDS
from tests.fuzz.kind import Kind, run


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_an_input_is_used_or_refused_in_one_line(kind: Kind) -> None:
    outcomes = run(kind, 40, seed=0)
    assert sum(outcomes.values()) >= 20 and (outcomes["refused"] or len(outcomes) > 1)


def test_what_is_neither_used_nor_refused_is_found() -> None:
    def use(folder: Path, number: int) -> str:
        return str(1 // (number % 7))

    with pytest.raises(ZeroDivisionError):
        run(Kind("division", st.integers(), use), 100, seed=0)


def test_an_input_that_takes_for_ever_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def use(folder: Path, number: int) -> str:
        while True:
            pass

    monkeypatch.setattr("tests.fuzz.kind.MOST_SECONDS", 1)
    with pytest.raises(AssertionError, match="takes longer than 1 s"):
        run(Kind("loop", st.just(1), use), 1, seed=0)
