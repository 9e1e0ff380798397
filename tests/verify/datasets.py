"""A small annotated dataset with its card, and the output of pipeline.verify on a dataset."""

from pathlib import Path

import pytest

from pipeline.data.ledger import Ledger
from pipeline.publish.card import write_card
from pipeline.publish.origin import origin_of
from pipeline.publish.section import THIS_FOLDER, SubsetInfo
from pipeline.publish.subset import with_totals
from pipeline.verify.__main__ import Config, verify
from tests.publish.datasets import annotated

SUBSET, SHARDS = "exact", 6
DATA, RECEIPTS = f"data/{SUBSET}", f"_ledger/{SUBSET}/receipts"


def made(folder: Path) -> Path:
    """Write a dataset of twelve documents in six shards."""
    run = annotated(folder)
    facts = SubsetInfo(
        subset=run.subset,
        path=THIS_FOLDER,
        provenance=run.provenance,
        schema=run.schema,
        origin=origin_of(()),
    )
    write_card(with_totals(facts, Ledger(run.subset).receipts()))
    return run.subset.root


def verified(
    dataset: Path | str, capsys: pytest.CaptureFixture[str], sample: int = 0, **settings: object
) -> tuple[int, list[str]]:
    """Run pipeline.verify, and return the exit code and the printed lines."""
    capsys.readouterr()
    code = verify(Config(str(dataset), sample=sample, **settings))  # type: ignore[arg-type]
    return code, capsys.readouterr().out.splitlines()
