"""The stages of docs/python.md, run by the executors of their libraries."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter

from pipeline import Labeller
from tests.readme.document import ROOT, Document

TEXTS = ["One document.", "", "naïve 🙂", *(f"Number {number}." for number in range(300))]
SETTINGS = {"batch_invariant": True, "dtype": "float32"}


def stage_of(library: str) -> Any:
    """Return the class of the page's stage for a library."""
    page = Document((ROOT / "docs" / "python.md").read_text(encoding="utf-8"))
    (snippet,) = (each for each in page.snippets if library in each)
    names: dict[str, Any] = {"Labeller": Labeller}
    exec(compile(snippet, "docs/python.md", "exec"), names)
    return names["EntropyLabels"]


def written(folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.table({"text": TEXTS, "id": [str(place) for place in range(len(TEXTS))]}), folder / "in.parquet")
    return folder


def test_datatrove_passes_every_document_on_with_its_labels(tmp_path: Path) -> None:
    source, output = written(tmp_path / "in"), tmp_path / "out"
    steps = [ParquetReader(str(source)), stage_of("datatrove")(**SETTINGS), ParquetWriter(str(output))]
    LocalPipelineExecutor(steps, logging_dir=str(tmp_path / "log")).run()
    rows = pq.read_table(output).to_pylist()
    expected = Labeller(batch_invariant=True, dtype="float32")(TEXTS)
    assert [row["text"] for row in rows] == [text for text in TEXTS if text]  # datatrove's readers leave empty ones out
    labelled = [each for each in expected if each.text]
    for row, other in zip(rows, labelled, strict=True):
        assert row["metadata"]["entropy"] == other.entropy.tolist()
        assert row["metadata"]["input_ids"] == other.input_ids.tolist()


def test_nemo_curator_adds_the_columns_to_its_batches() -> None:
    pytest.importorskip("nemo_curator", reason="`make peers` was not run")
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline
    from nemo_curator.tasks import DocumentBatch

    batch = DocumentBatch(dataset_name="texts", data=pa.table({"text": TEXTS, "id": [*range(len(TEXTS))]}))
    stages = [stage_of("nemo_curator")(**SETTINGS)]
    (done,) = Pipeline(name="labels", stages=stages).run(RayDataExecutor(), initial_tasks=[batch])
    expected = Labeller(batch_invariant=True, dtype="float32")(TEXTS)
    assert done.data["id"].to_pylist() == [*range(len(TEXTS))]
    assert done.data["entropy"].to_pylist() == [each.entropy.tolist() for each in expected]
