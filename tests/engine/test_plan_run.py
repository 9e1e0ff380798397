"""A run that is prepared on one node and executed on another node."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from pipeline.annotate.config import Config
from pipeline.annotate.members import pin_checkpoints
from pipeline.annotate.prepare import prepare
from pipeline.data.files import find_files
from pipeline.engine.annotator import load_annotator
from pipeline.engine.plan import Run, Unit, inspect
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from schemas.receipts import Plan
from tests.builders import sample_texts, write_documents
from tests.hub import Hub
from tests.tiny_models import tiny_second_order


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_second_order(vocabulary=8192).save_pretrained(folder)
    copy_tokenizer(SHIPPED / "tokenizer", folder)
    return folder


def prepared(tmp_path: Path, output: str, *estimator: str) -> tuple[Run, list[Unit]]:
    file = str(write_documents(tmp_path / "in.parquet", sample_texts(3, 300)))
    config = Config(input=(file,), output=str(tmp_path / output), estimator=estimator)
    return prepare(config, inspect(find_files([file]), config.column), config.input)


def test_a_node_without_the_hubs_cache_fetches_the_commit_that_the_run_was_prepared_with(
    hub: Hub, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("user/model", {file.name: file.read_bytes() for file in model.iterdir()}, kind="models")
    run, units = prepared(tmp_path, "elsewhere", "user/model")
    hub.add("user/model", {"model.safetensors": b"newer"}, kind="models")
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another node's cache"))
    load_annotator(run, "cpu").annotate(units[0])
    (snapshot,) = run.snapshots
    begun = Plan(run.provenance, (), snapshot.name)
    pinned = (snapshot.name,)
    assert pin_checkpoints(("user/model",), begun) == pinned == pin_checkpoints(pinned, begun)
    assert pin_checkpoints(("user/other",), begun) == ("user/other",)
    assert pin_checkpoints(("user/model", "user/model"), begun) == ("user/model", "user/model")
    again, _ = prepared(tmp_path, "elsewhere", snapshot.name)
    assert again.provenance == run.provenance and [each.name for each in again.snapshots] == [snapshot.name]
    here, units = prepared(tmp_path, "here", str(model))
    assert not here.snapshots and here.on_this_node() is here
    load_annotator(here, "cpu").annotate(units[0])
    assert (run.provenance.model, here.provenance.model) == (snapshot.name, "model")
    rows = [pq.read_table(tmp_path / output / "data") for output in ("elsewhere", "here")]
    assert rows[0].equals(rows[1])


def test_every_member_of_an_ensemble_is_fetched_and_pinned(
    hub: Hub, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: 1.1 * tensor for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for name, folder in (("user/model", model), ("user/other", other)):
        hub.add(name, {file.name: file.read_bytes() for file in folder.iterdir()}, kind="models")
    run, units = prepared(tmp_path, "elsewhere", "user/model", str(other), "user/other")
    first, last = (snapshot.name for snapshot in run.snapshots)
    assert run.provenance.model == f"{first} + other + {last}"
    assert [member.model for member in run.provenance.members] == [first, "other", last]
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another node's cache"))
    load_annotator(run, "cpu").annotate(units[0])
    begun = Plan(run.provenance, ())
    assert pin_checkpoints(("user/model", str(other), "user/other"), begun) == (first, str(other), last)
    assert pin_checkpoints(("user/other", str(other), "user/model"), begun)[0] == "user/other"
    here, units = prepared(tmp_path, "here", str(model), str(other), str(other))
    load_annotator(here, "cpu").annotate(units[0])
    assert here.provenance.checkpoint_sha256 == run.provenance.checkpoint_sha256 and not here.snapshots
    rows = [pq.read_table(tmp_path / output / "data") for output in ("elsewhere", "here")]
    assert rows[0].equals(rows[1]) and "entropy_deviation" in rows[0].column_names
