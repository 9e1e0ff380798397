"""Stages of docs/python.md, run by datatrove and NeMo Curator, and the loader of docs/trainers.md for torchtitan."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter

from pipeline import Labeller
from pipeline.data.annotated import find_annotations
from pipeline.data.packing import CutWithOverlap
from pipeline.training.torch_dataset import LabelledWindows
from tests.annotated import write_annotated
from tests.readme.document import ROOT, Document

TEXTS = ["One document.", "", "naïve 🙂", *(f"Number {number}." for number in range(300))]
SETTINGS = {"batch_invariant": True, "dtype": "float32"}


def class_of(page: str, library: str, name: str) -> Any:
    """Return the class of this name from the page's snippet that imports the library."""
    file = ROOT / "docs" / page
    (snippet,) = (each for each in Document(file.read_text(encoding="utf-8")).snippets if f"from {library}" in each)
    names: dict[str, Any] = {"Labeller": Labeller}
    exec(compile(snippet, str(file), "exec"), names)
    return names[name]


def stage_of(library: str) -> Any:
    """Return the class that docs/python.md defines as a stage of this library's pipelines."""
    return class_of("python.md", library, "EntropyLabels")


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


def titan_batches(reading: Iterator[Any], count: int) -> list[tuple[dict[str, list[Any]], list[Any]]]:
    """Return the next `count` batches of torchtitan's loader, with lists instead of tensors."""
    batches = islice(reading, count)
    return [({name: values.tolist() for name, values in inputs.items()}, labels.tolist()) for inputs, labels in batches]


def test_torchtitan_trains_on_tokens_of_few_nats_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("torchtitan.components.dataloader", reason="`make peers` was not run")
    random = np.random.default_rng(0)
    documents = [random.integers(1, 50, size).tolist() for size in (30, 0, 7, 90, 1, 40)]
    nats = [np.where(random.random(len(row)) < 0.2, np.nan, random.gamma(1, 4, len(row))) for row in documents]
    annotated = write_annotated(tmp_path / "set", documents, [row.tolist() for row in nats], shards=2)
    config = class_of("trainers.md", "torchtitan", "EntropyDataLoader").Config(dataset_path=str(annotated), seed=3)
    for rank in range(2):
        given = {"dp_world_size": 2, "dp_rank": rank, "tokenizer": None, "seq_len": 16, "local_batch_size": 2}
        loader = config.build(**given, snapshot_every_n_steps=1)
        reading = iter(loader)
        batches = titan_batches(reading, 3)
        state = loader.state_dict()
        batches += titan_batches(reading, 9)
        order: dict[str, Any] = {"seed": 3, "epochs": None, "rank": rank, "world_size": 2}
        windows = iter(
            LabelledWindows(find_annotations(str(annotated)), CutWithOverlap(length=17, separator=0), **order)
        )
        for inputs, labels in batches:
            for row in range(2):
                ids, entropy, document = next(windows)
                assert inputs["input"][row] == ids[:-1].tolist()
                for place in range(16):
                    unknown = document[place + 1] < 0 or entropy[place + 1] > 4
                    assert labels[row][place] == (-100 if unknown else ids[place + 1])
                    first = place == 0 or document[place] != document[place - 1]
                    assert inputs["positions"][row][place] == (0 if first else inputs["positions"][row][place - 1] + 1)
        resumed = config.build(**given, snapshot_every_n_steps=1)
        resumed.load_state_dict(state)
        assert titan_batches(iter(resumed), 9) == batches[3:]
