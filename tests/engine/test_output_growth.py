"""Growth of a dataset: a run with a larger limit adds documents to it.

The grown dataset equals a dataset that a single run with the larger limit makes, even if growth is killed at any step.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from pipeline.data import ledger
from pipeline.data.annotated import find_annotations
from pipeline.data.ledger import Ledger
from pipeline.engine import output as growth
from pipeline.engine.output import existing_plan, grows, open_run, require_growing
from pipeline.engine.plan import Run, Unit
from schemas.receipts import RECEIPTS, Plan
from tests.builders import write_documents
from tests.engine.fakes import load_fake, planned_run, shards, token_rows


class KilledError(BaseException):
    """Error that a test raises instead of ending the process."""


def limited(folder: Path, output: str, limit: int) -> tuple[Run, list[Unit]]:
    """Plan a run over the first `limit` of thirteen rows, in units of three rows."""
    file = folder / "in.parquet"
    if not file.exists():
        write_documents(file, ["text"] * 13, input_ids=token_rows(13))
    run, whole = planned_run(folder / output, [file], rows_per_unit=3)
    units = [replace(unit, stop=min(unit.stop, limit)) for unit in whole if unit.start < limit]
    return replace(
        run,
        provenance=(provenance := replace(run.provenance, source_rows=limit)),
        units=len(units),
        schema=run.schema.with_metadata({b"token_entropy.provenance": provenance.to_json().encode()}),
    ), units


def carry_out(folder: Path, output: str, limit: int) -> Run:
    run, units = limited(folder, output, limit)
    open_run(run.subset, Plan(run.provenance, (), schema=run.schema), units)
    done = Ledger(run.subset).finished()
    annotator = load_fake(run)
    for unit in units:
        if unit.index not in done:
            annotator.annotate(unit)
    return run


@pytest.mark.parametrize(("few", "many"), [(3, 12), (4, 5), (5, 13), (1, 2), (9, 10)])
def test_a_grown_dataset_is_the_one_that_the_larger_limit_makes(tmp_path: Path, few: int, many: int) -> None:
    before = shards(carry_out(tmp_path, "out", few).subset.root)
    run = carry_out(tmp_path, "out", many)
    plain = carry_out(tmp_path, "plain", many)
    assert shards(run.subset.root) == shards(plain.subset.root) != before
    assert Ledger(run.subset).receipts() == Ledger(plain.subset).receipts()
    assert existing_plan(run.subset) == existing_plan(plain.subset)
    assert len(find_annotations(str(run.subset.root))) == many
    loaded = load_dataset(str(run.subset.root), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["input_ids"][:] == token_rows(13)[:many]


def killed_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Make one change of a file raise KilledError: the change with index `call`, counted from 0 over all files."""
    steps = iter(range(1000))

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **named: Any) -> Any:
            if next(steps) == call:
                raise KilledError
            return function(*arguments, **named)

        return step

    for module, name in ((growth, "write_text"), (growth, "write_shard"), (ledger, "write_text")):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    for name in ("unlink", "replace"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


@pytest.mark.parametrize("again", [5, 8])
def test_a_growth_killed_at_any_step_resumes_and_shows_no_row_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: int
) -> None:
    """A run that grows a dataset from 5 to 8 rows is killed at each of its changes of files, and must then resume.

    If the plan already has the limit 8, the run resumes with 8. If the plan still has the limit 5, the run resumes with
    the limit `again`: with 5, the growth is given up, and with 8, it is completed.
    """
    wanted = {limit: shards(carry_out(tmp_path, f"plain-{limit}", limit).subset.root) for limit in (5, 8)}
    kills = 0
    for call in range(60):
        output = f"out-{call}"
        carry_out(tmp_path, output, 5)
        run, units = limited(tmp_path, output, 8)
        with monkeypatch.context() as patched:
            killed_at(patched, call)
            try:
                open_run(run.subset, Plan(run.provenance, (), schema=run.schema), units)
            except KilledError:
                kills += 1
        there = [file.name.split("-of-")[0] for file in run.subset.data.glob("*.parquet")]
        assert len(set(there)) == len(there), "labels of a row lie in two shards"
        plan = existing_plan(run.subset)
        limit = again if plan is not None and plan.provenance.source_rows == 5 else 8
        assert shards(carry_out(tmp_path, output, limit).subset.root) == wanted[limit]
        assert not (run.subset.ledger / growth.GROWING_FILE).exists()
        if kills <= call:
            break
    assert 8 < kills < 60


def test_a_dataset_grows_only_with_the_same_source_and_settings(tmp_path: Path) -> None:
    run, _ = limited(tmp_path, "out", 5)
    five = run.provenance
    eight = replace(five, source_rows=8)
    assert grows(five, eight) and not grows(eight, five) and not grows(five, five)
    assert not grows(five, replace(eight, share=0.5))
    require_growing("out", run.subset, five, eight, published=False)
    require_growing("out", run.subset, five, five, published=True)
    with pytest.raises(ValueError, match="holds 8 documents, more than the 5 of `limit`; give the larger limit again"):
        require_growing("out", run.subset, eight, five, published=False)
    with pytest.raises(ValueError, match="started with 5 documents, not 8, and a published dataset cannot grow"):
        require_growing("out", run.subset, five, eight, published=True)
    (run.subset.ledger / RECEIPTS).mkdir(parents=True)
    (run.subset.ledger / RECEIPTS / "abc.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="a published dataset cannot grow"):
        require_growing("out", run.subset, five, eight, published=False)
