"""`--longest-document`: a document above this limit gets a row without tokens.

The summary, the receipts and the card count these documents.
"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from schemas.annotations import PROVENANCE_KEY, Provenance
from schemas.layout import Subset
from schemas.rows import NO_BOUND
from tests.builders import sample_texts
from tests.conftest import RunCommand


def annotated(output: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted((output / "data").rglob("*.parquet"))])


def test_a_document_that_is_too_long_has_no_tokens_and_is_counted(
    tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, output = [*sample_texts(3, 200), ""], tmp_path / "out"
    texts[1] = texts[1] * 20
    pq.write_table(pa.table({"text": texts, "n": range(4)}), tmp_path / "a.parquet")
    arguments = ("--input", str(tmp_path / "a.parquet"), "--output", str(output), "--workers", "0")
    assert run_command("pipeline.annotate", *arguments, "--longest-document", "1000") == 0
    rows = annotated(output)
    assert rows.column("n").to_pylist() == [0, 1, 2, 3]
    lengths = rows.column("num_tokens").to_pylist()
    assert lengths[1] == lengths[3] == 0 < min(lengths[0], lengths[2])
    assert rows.column("entropy").to_pylist()[1] == [] and rows.column("mean_entropy").to_pylist()[1] is None
    assert "4, 1 without text, 1 longer than 1,000 bytes and not labelled" in capsys.readouterr().out
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "1 documents are longer than 1,000 bytes and have no tokens." in card
    receipts = [json.loads(file.read_text(encoding="utf-8")) for file in output.glob("_ledger/*/receipts/*.json")]
    assert sum(receipt["counts"]["rows_too_long"] for receipt in receipts) == 1
    provenance = Provenance.from_json(rows.schema.metadata[PROVENANCE_KEY].decode())
    assert provenance.longest_document == 1000

    assert run_command("pipeline.annotate", *arguments) == 0  # with the resumed run's bound
    assert run_command("pipeline.annotate", *arguments, "--longest-document", "2000") == 1
    assert "longest_document 1000 there, 2000 now" in capsys.readouterr().err


def test_a_run_of_a_version_without_the_bound_is_resumed_without_it(tmp_path: Path, run_command: RunCommand) -> None:
    output = tmp_path / "out"
    pq.write_table(pa.table({"text": sample_texts(12, 200)}), tmp_path / "a.parquet")
    arguments = ("--input", str(tmp_path / "a.parquet"), "--output", str(output), "--workers", "0")
    longest = ("--longest-document", str(NO_BOUND))
    assert run_command("pipeline.annotate", *arguments, "--rows-per-unit", "4", *longest) == 0
    subset = Subset("second-order", output)
    written = {file.name: file.read_bytes() for file in subset.data.glob("*.parquet")}
    plan = json.loads((subset.ledger / "plan.json").read_text(encoding="utf-8"))
    del plan["run"]["longest_document"]
    (subset.ledger / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    first, second, _ = sorted((subset.ledger / "receipts").glob("*.json"))
    receipt = json.loads(first.read_text(encoding="utf-8"))
    del receipt["counts"]["rows_too_long"]
    first.write_text(json.dumps(receipt), encoding="utf-8")
    (subset.data / json.loads(second.read_text(encoding="utf-8"))["shard"]).unlink()
    second.unlink()
    assert run_command("pipeline.annotate", *arguments, "--rows-per-unit", "4") == 0
    assert {file.name: file.read_bytes() for file in subset.data.glob("*.parquet")} == written
