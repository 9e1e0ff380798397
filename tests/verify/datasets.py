"""A small dataset that a run made, complete with its card; and what pipeline.verify says of a dataset."""

from pathlib import Path

import pytest

from pipeline.data.ledger import Ledger
from pipeline.publish.card import write_card
from pipeline.publish.licenses import source_facts
from pipeline.publish.section import THIS_FOLDER, SubsetInfo
from pipeline.publish.subset import with_totals
from pipeline.verify.__main__ import Config, verify
from tests.publish.datasets import annotated

SUBSET, SHARDS = "exact", 6
DATA, RECEIPTS = f"data/{SUBSET}", f"_ledger/{SUBSET}/receipts"


def made(folder: Path) -> Path:
    """Twelve documents in six shards."""
    run = annotated(folder)
    facts = SubsetInfo(
        subset=run.subset,
        place=THIS_FOLDER,
        provenance=run.provenance,
        schema=run.schema,
        source=source_facts(()),
    )
    write_card(with_totals(facts, Ledger(run.subset).receipts()))
    return run.subset.root


def verified(
    dataset: Path | str, capsys: pytest.CaptureFixture[str], sample: int = 0, **settings: object
) -> tuple[int, list[str]]:
    """Exit code and lines."""
    capsys.readouterr()
    code = verify(Config(str(dataset), sample=sample, **settings))  # type: ignore[arg-type]
    return code, capsys.readouterr().out.splitlines()
