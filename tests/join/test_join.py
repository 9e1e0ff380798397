"""Labels of a sidecar, joined by the command to documents that were moved, repeated, left out or changed."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from pipeline.data.annotated import find_annotations
from schemas.calibrations import Fit
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.labels.calibrations import LINEAR, calibration
from tests.mistakes.materials import LABELLED
from tests.sidecars import KeyedDocument, labelled, write_sidecar, write_source

RANDOM = np.random.default_rng(5)
DOCUMENTS = labelled(
    [(f"id-{number}", tuple(RANDOM.integers(0, 90, number % 7).tolist())) for number in range(60)]
    + [("null", None), ("id-1", (7, 7)), ("id-2", tuple(RANDOM.integers(0, 90, 40).tolist()))]
)
JOIN = "pipeline.join"


def joined_rows(output: Path) -> list[dict[str, object]]:
    files = sorted((output / "data").rglob("*.parquet"))
    rows: list[dict[str, object]] = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    return rows


@pytest.mark.parametrize("ids", [True, False])
def test_shuffled_resharded_repeated_and_fewer_documents_have_their_own_labels(
    run_command: RunCommand, tmp_path: Path, ids: bool
) -> None:
    labels = write_sidecar(tmp_path / "a", DOCUMENTS, shards=4, ids=ids)
    order = RANDOM.integers(0, len(DOCUMENTS), 90)
    for number, part in enumerate(np.array_split(order, 3)):
        write_source(tmp_path / "in" / f"{number}.parquet", [DOCUMENTS[row] for row in part], ids=ids)
    arguments = ("--input", tmp_path / "in", "--labels", labels, "--output", tmp_path / "out", "--rows-per-unit", 20)
    assert run_command(JOIN, *arguments, "--memory", 1e-6) == 0
    of_tokens = {each.tokens: each for each in reversed(DOCUMENTS)}  # without ids, the first of equal documents
    for row, at in zip(joined_rows(tmp_path / "out"), order, strict=True):
        document = DOCUMENTS[at] if ids else of_tokens[DOCUMENTS[at].tokens]
        assert row["input_ids"] == [*(document.tokens or ())] and row["entropy"] == [*document.labels]
        assert row["num_tokens"] == len(document.labels)
    dataset = find_annotations(str(tmp_path / "out"))
    assert len(dataset) == 90 and dataset.provenance.joined_sha256
    assert run_command("pipeline.verify", tmp_path / "out", "--sample", 0) == 0


def test_every_planted_edit_is_found(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = labelled([(str(number), tuple(RANDOM.integers(0, 90, number % 9).tolist())) for number in range(400)])
    labels = write_sidecar(tmp_path / "a", own)
    edited = {int(at): KeyedDocument(own[at].id, _edited(own[at].tokens or ())) for at in RANDOM.permutation(400)[:200]}
    source = write_source(tmp_path / "in.parquet", [edited.get(at, each) for at, each in enumerate(own)])
    arguments = ("--input", source, "--labels", labels, "--output")
    assert run_command(JOIN, *arguments, tmp_path / "refused") == 1
    assert (
        f"row {min(edited)} of {source}, counted from 0, has another text than the labelled one"
        in capsys.readouterr().err
    )
    assert run_command(JOIN, *arguments, tmp_path / "kept", "--unmatched", "keep") == 0
    assert "changed        200 with another text" in capsys.readouterr().out
    rows = joined_rows(tmp_path / "kept")
    assert {at for at, row in enumerate(rows) if row["entropy"] != [*own[at].labels]} == edited.keys()


def _edited(tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Return the tokens with one inserted, changed or removed."""
    at = int(RANDOM.integers(0, len(tokens) + 1))
    edits = [(0, (90,)), (1, (90,)), (1, ())] if at < len(tokens) else [(0, (90,))]
    removed, new = edits[RANDOM.integers(len(edits))]
    return (*tokens[:at], *new, *tokens[at + removed :])


def test_documents_without_labels_are_kept_and_counted_when_asked(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_sidecar(tmp_path / "a", DOCUMENTS[:-1])
    changed, new = KeyedDocument("id-3", (1, 2, 3, 4)), KeyedDocument("new", (5, 6))
    source = write_source(tmp_path / "in.parquet", [DOCUMENTS[10], changed, new, DOCUMENTS[13]])
    arguments = ("--input", source, "--labels", labels, "--output", tmp_path / "out")
    assert run_command(JOIN, *arguments) == 1
    assert "row 1" in capsys.readouterr().err
    assert run_command(JOIN, *arguments, "--unmatched", "keep") == 0
    printed = capsys.readouterr().out
    assert "changed        1 with another text" in printed and "unmatched      1 that were not" in printed
    assert "keys           id and text" in printed
    rows = joined_rows(tmp_path / "out")
    assert [row["entropy"] for row in rows] == [
        [*DOCUMENTS[10].labels],
        [None] * 4,
        [None] * 2,
        [*DOCUMENTS[13].labels],
    ]
    assert [row["num_tokens"] for row in rows] == [3, 4, 2, 6]
    assert run_command("pipeline.verify", tmp_path / "out", "--sample", 0) == 0
    assert "2 documents were not labelled" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_a_join_resumes_and_refuses_other_labels(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_sidecar(tmp_path / "a", DOCUMENTS)
    source, output = tmp_path / "a" / "source.parquet", tmp_path / "out"
    assert run_command(JOIN, "--input", source, "--labels", labels, "--output", output) == 0
    shards = sorted((output / "data").rglob("*.parquet"))
    before = {shard: hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards}
    shards[2].unlink()
    assert run_command(JOIN, "--input", source, "--labels", labels, "--output", output) == 0
    assert {shard: hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards} == before
    assert run_command(JOIN, "--input", source, "--labels", labels, "--output", output, "--without-tokens") == 1
    assert "was begun with other columns; give --without-tokens as before" in capsys.readouterr().err
    shards[0].write_bytes(b"")
    assert run_command("pipeline.verify", output, "--sample", 0, "--repair") == 1
    command = f"python -m pipeline.join --input {source} --output {output} --subset exact --labels ..."
    assert command in capsys.readouterr().out
    assert run_command(JOIN, "--input", source, "--labels", labels, "--output", output) == 0
    assert {shard: hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards} == before
    others = write_sidecar(tmp_path / "b", labelled([(each.id, each.tokens) for each in DOCUMENTS], seed=9))
    assert run_command(JOIN, "--input", source, "--labels", others, "--output", output) == 1
    assert "joined_sha256" in capsys.readouterr().err


def test_a_dataset_with_its_documents_is_no_sidecar(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write_sidecar(tmp_path / "a", DOCUMENTS)
    source = tmp_path / "a" / "source.parquet"
    assert run_command(JOIN, "--input", source, "--labels", labels, "--output", tmp_path / "out") == 0
    assert run_command(JOIN, "--input", source, "--labels", tmp_path / "out", "--output", tmp_path / "again") == 1
    assert "is not a sidecar" in capsys.readouterr().err


def test_labels_of_texts_are_those_of_an_annotation_that_keeps_them(run_command: RunCommand, tmp_path: Path) -> None:
    texts = [*sample_texts(5, 300), None, "", sample_texts(1, 300)[0]]
    source = write_documents(tmp_path / "in.parquet", texts, id=[*range(7), None], url=["u"] * 8)
    annotate = ("pipeline.annotate", "--workers", 0, "--input", source, "--rows-per-unit", 3, "--batch-invariant")
    assert run_command(*annotate, "--output", tmp_path / "whole", "--keep-text") == 0
    assert run_command(*annotate, "--output", tmp_path / "labels", "--sidecar") == 0
    moved = write_documents(tmp_path / "moved" / "x.parquet", texts[::-1], id=[*range(7), None][::-1], url=["u"] * 8)
    assert run_command(JOIN, "--input", moved, "--labels", tmp_path / "labels", "--output", tmp_path / "out") == 0
    assert joined_rows(tmp_path / "out") == joined_rows(tmp_path / "whole")[::-1]
    assert {*load_dataset(str(tmp_path / "labels"), split="train").column_names} >= {"id", "document_digest", "entropy"}
    assert json.loads(find_annotations(str(tmp_path / "out")).provenance.to_json())["sidecar"] is False


def test_without_tokens_a_join_has_text_and_labels(run_command: RunCommand, tmp_path: Path) -> None:
    texts = sample_texts(3, 200)
    source = write_documents(tmp_path / "in.parquet", texts)
    annotate = ("pipeline.annotate", "--workers", 0, "--input", source)
    assert run_command(*annotate, "--output", tmp_path / "labels", "--sidecar") == 0
    arguments = ("--input", source, "--labels", tmp_path / "labels", "--output", tmp_path / "out", "--without-tokens")
    assert run_command(JOIN, *arguments) == 0
    rows = joined_rows(tmp_path / "out")
    assert [row["text"] for row in rows] == texts and "input_ids" not in rows[0]
    assert all(len(row["entropy"]) == row["num_tokens"] > 0 for row in rows)  # type: ignore[arg-type, operator]
    assert run_command("pipeline.verify", tmp_path / "out", "--sample", 0) == 0


def test_labels_of_a_sidecar_are_calibrated_by_a_column_that_it_does_not_hold(
    run_command: RunCommand, tmp_path: Path
) -> None:
    texts = sample_texts(4, 300)
    source = write_documents(tmp_path / "in.parquet", texts, kind=["a", "b", "a", "c"])
    halved = calibration(by="kind", pooled=LINEAR, domains={"b": Fit(tokens=9, slope=2.0, bias=1.0)})
    (tmp_path / "fit.json").write_text(replace(halved, labelled=LABELLED).to_json(), encoding="utf-8")
    annotate = ("pipeline.annotate", "--workers", 0, "--input", source, "--calibration", tmp_path / "fit.json")
    assert run_command(*annotate, "--output", tmp_path / "whole", "--keep-text", "--batch-invariant") == 0
    assert run_command(*annotate, "--output", tmp_path / "labels", "--sidecar", "--batch-invariant") == 0
    arguments = ("--input", source, "--labels", tmp_path / "labels", "--output", tmp_path / "out")
    assert run_command(JOIN, *arguments) == 0
    assert joined_rows(tmp_path / "out") == joined_rows(tmp_path / "whole")
