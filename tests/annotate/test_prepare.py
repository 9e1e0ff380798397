"""Resuming a run from the output folder, where anybody may have put the earlier run."""

import pytest

from pipeline.annotate.members import pin_checkpoints
from pipeline.annotate.prepare import pin_inputs
from schemas.receipts import Plan
from tests.builders import PROVENANCE

NAMED, COMMIT, OTHER = "hf://datasets/user/name", "a" * 40, "b" * 40


def plan(inputs: tuple[str, ...] = (), source: tuple[str, ...] = (), checkpoint: str | None = None) -> Plan:
    return Plan(PROVENANCE, inputs, checkpoint, source)


@pytest.mark.parametrize(
    ("named", "pin"),
    [
        (NAMED, f"{NAMED}@{COMMIT}"),
        (f"{NAMED}/data/*.parquet", f"{NAMED}@{COMMIT}/data/*.parquet"),
        (f"{NAMED}@v1", f"{NAMED}@{COMMIT}"),
        (f"{NAMED}@{COMMIT}", f"{NAMED}@{COMMIT}"),
        ("https://host/a.parquet", "https://host/a.parquet"),
    ],
)
def test_inputs_are_read_at_the_commits_of_the_run_that_is_resumed(named: str, pin: str) -> None:
    assert pin_inputs((named, "here.parquet"), plan((named, "there.parquet"), (pin, "there.parquet"))) == (
        pin,
        "here.parquet",
    )


@pytest.mark.parametrize(
    ("named", "pin"),
    [
        (NAMED, "/etc/passwd"),
        (NAMED, "file:///etc/passwd"),
        (NAMED, "http://127.0.0.1/a.parquet"),
        (NAMED, f"hf://datasets/other/name@{COMMIT}"),
        (NAMED, f"hf://buckets/user/name@{COMMIT}"),
        (NAMED, f"hf://user/name@{COMMIT}"),
        (NAMED, f"{NAMED}@{COMMIT}/private.parquet"),
        (NAMED, f"{NAMED}@main"),
        (NAMED, NAMED),
        (f"{NAMED}/a.parquet", f"{NAMED}@{COMMIT}/b.parquet"),
        (f"{NAMED}@{COMMIT}", f"{NAMED}@{OTHER}"),
        ("https://host/a.parquet", "https://host/b.parquet"),
        ("https://host/a.parquet", "/etc/passwd"),
    ],
)
def test_a_plan_that_reads_other_inputs_than_those_named_is_refused(named: str, pin: str) -> None:
    with pytest.raises(ValueError, match=r"the plan of the run there reads .* for .*; choose another --output"):
        pin_inputs((named,), plan((named,), (pin,)))


def test_a_named_path_is_read_whatever_the_plan_holds() -> None:
    assert pin_inputs(("mine.parquet",), plan(("a",), ("/etc/passwd",))) == ("mine.parquet",)
    assert pin_inputs(("mine.parquet",), plan(("a", "b"), ("a", "b"))) == ("mine.parquet",)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (None, "user/model"),
        (f"user/model@{COMMIT}", f"user/model@{COMMIT}"),
        (f"other/model@{COMMIT}", "user/model"),
        ("user/model", "user/model"),
        ("user/model@main", "user/model"),
        ("user/model@/../../evil", "user/model"),
        (f"user/model@{COMMIT}/../evil", "user/model"),
    ],
)
def test_a_checkpoint_is_the_one_that_is_named_at_a_commit(known: str | None, expected: str) -> None:
    assert pin_checkpoints(("user/model",), plan(checkpoint=known)) == (expected,)
    assert pin_checkpoints((), plan(checkpoint=known)) == ()
    assert pin_checkpoints(("user/model@v1",), plan(checkpoint=known)) == ("user/model@v1",)
