"""A sidecar and its documents are read as one annotated dataset. The documents stay where they are."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.annotated import as_rows, find_annotations
from pipeline.data.loader import Reading, labelled_rows
from tests.labelled import assert_same
from tests.sidecars import KeyedDocument, labelled, write_sidecar, write_source

DOCUMENTS = labelled([(f"id-{number}", (number,) * (number % 5)) for number in range(30)])


def test_a_sidecar_reads_as_a_dataset_with_its_documents(tmp_path: Path) -> None:
    labels = write_sidecar(tmp_path, DOCUMENTS, shards=3)
    dataset = find_annotations(f"{labels}::{tmp_path / 'source.parquet'}")
    assert dataset.schema.names == ["id", "input_ids", "entropy", "num_tokens", "mean_entropy"]
    rows = [row for batch in dataset.batches(("input_ids", "entropy", "id"), 4, 27) for row in as_rows(batch)]
    assert [row["id"] for row in rows] == [each.id for each in DOCUMENTS[4:27]]
    assert [row["input_ids"].tolist() for row in rows] == [[*(each.tokens or ())] for each in DOCUMENTS[4:27]]
    assert [row["entropy"].tolist() for row in rows] == [[*each.labels] for each in DOCUMENTS[4:27]]
    corpus = dataset.corpus()
    assert corpus.labels_N is not None
    assert corpus.labels_N.tolist() == [label for each in DOCUMENTS for label in each.labels]
    assert [len(batch) for batch in dataset.batches(("entropy",))] == [10, 10, 10]


def test_shuffled_rows_and_a_saved_position_are_those_of_the_dataset(tmp_path: Path) -> None:
    labels = write_sidecar(tmp_path, DOCUMENTS, shards=3)
    dataset = find_annotations(f"{labels}::{tmp_path}/*.parquet")
    reading = Reading(seed=3, shuffled_rows=4, epochs=2, rank=1, ranks=2)
    rows = [*labelled_rows(dataset, reading=reading)]
    iterator = labelled_rows(dataset, reading=reading)
    begun = [next(iterator) for _ in range(9)]
    resumed = labelled_rows(dataset, reading=reading)
    resumed.load_state_dict(iterator.state_dict())
    assert_same([*begun, *resumed], rows)
    assert len(rows) == 30


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("{labels}", "is a sidecar, which has no documents"),
        ("{labels}::{folder}/other/source.parquet", "row 7 of .* is not the document that was labelled"),
        ("{labels}::{folder}/short/source.parquet", "ends before row 20, which was labelled"),
        ("{labels}::{folder}/other/renamed.parquet", "none of the documents' files is the labelled source.parquet"),
        ("{labels}::{folder}/absent.parquet", "absent.parquet"),
    ],
)
def test_other_documents_are_refused(tmp_path: Path, named: str, message: str) -> None:
    labels = write_sidecar(tmp_path, DOCUMENTS)
    changed = [*DOCUMENTS[:7], KeyedDocument("id-7", (1, 2)), *DOCUMENTS[8:]]
    write_source(tmp_path / "other" / "source.parquet", changed)
    write_source(tmp_path / "other" / "renamed.parquet", DOCUMENTS)
    write_source(tmp_path / "short" / "source.parquet", DOCUMENTS[:20])
    with pytest.raises((ValueError, OSError), match=message):
        find_annotations(named.format(labels=labels, folder=tmp_path)).corpus()


def test_a_dataset_that_has_its_documents_takes_no_others(tmp_path: Path) -> None:
    from tests.annotated import write_annotated

    folder = write_annotated(tmp_path / "whole", [[1, 2]], [[0.5, 1.0]])
    with pytest.raises(ValueError, match="has its documents; leave ::x out"):
        find_annotations(f"{folder}::x")


def test_a_sidecar_of_text_needs_its_tokenizer(tmp_path: Path) -> None:
    from tests.sidecars import SETTINGS

    labels = write_sidecar(tmp_path, DOCUMENTS, settings=replace(SETTINGS, tokenizer_sha256="t" * 64))
    with pytest.raises(ValueError, match="lacks the tokenizer of its labels"):
        find_annotations(f"{labels}::{tmp_path / 'source.parquet'}")


def test_keys_of_another_type_are_damage(tmp_path: Path) -> None:
    labels = write_sidecar(tmp_path, DOCUMENTS)
    (shard,) = labels.rglob("*.parquet")
    rows = pq.read_table(shard)
    at = rows.schema.get_field_index("document_digest")
    pq.write_table(rows.set_column(at, "document_digest", pa.array(["x"] * len(rows))), shard)
    with pytest.raises(ValueError, match=r"column `document_digest` of .* holds string"):
        find_annotations(f"{labels}::{tmp_path / 'source.parquet'}")
