"""Verification labels a sample of the documents again, with the checkpoint that the dataset records.

Labels that this checkpoint gave pass. Labels that differ are faults, even if their shards match the receipts.
"""

import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.ledger import Ledger
from pipeline.data.shards import mean_entropies, write_shard
from pipeline.data.tokenizer import train_byte_pairs
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from pipeline.verify.content import count_rows
from pipeline.verify.relabel import SampledRow, spread_rows
from schemas.annotations import ROUNDING_NATS
from schemas.layout import Subset
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.tiny_models import tiny_estimator, tiny_language_model, tiny_second_order
from tests.verify.datasets import verified

WAYS: dict[str, tuple[str, ...]] = {
    "second-order": (),
    "bfloat16": ("--dtype", "bfloat16"),
    "exact": ("--share", "0.3"),
    "causal": ("--keep-text", "--start-token", "<|endoftext|>"),
    "moved": ("--keep-text",),
    "moved, without text": (),
    "folds": (),
}
"""Further flags of pipeline.annotate for each way of labelling. Every way also has a checkpoint and a method."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write documents, checkpoints of every kind, and a tokenizer with fewer tokens than that of the checkpoints."""
    folder = tmp_path_factory.mktemp("sample")
    texts = sample_texts(12, 300)
    write_documents(folder / "in.parquet", [*texts, None])
    models = {
        "exact": tiny_estimator(vocabulary=8192),
        "second-order": tiny_second_order(vocabulary=8192),
        "causal": tiny_language_model(vocabulary=8192),
        "folds/fold-0-of-2": tiny_estimator(vocabulary=8192),
        "folds/fold-1-of-2": tiny_estimator(vocabulary=8192, bottleneck_width=2),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        copy_tokenizer(SHIPPED / "tokenizer", folder / name)
    (folder / "small").mkdir()
    train_byte_pairs(texts, 300).save(str(folder / "small" / "tokenizer.json"))
    return folder


def checkpoint_of(way: str) -> str:
    return {"bfloat16": "second-order", "moved": "second-order", "moved, without text": "second-order"}.get(way, way)


def annotated(folder: Path, output: Path, way: str, run_command: RunCommand) -> Path:
    """Annotate the documents in one of the ways in WAYS, and return the path of the checkpoint."""
    checkpoint = folder / checkpoint_of(way)
    method = "exact" if way == "folds" else checkpoint.name
    arguments = [
        *("--input", folder / "in.parquet", "--output", output, "--estimator", checkpoint, "--method", method),
        *("--workers", 0, "--rows-per-unit", 4, *(WAYS[way] if "--dtype" in WAYS[way] else ("--dtype", "float32"))),
        *(WAYS[way] if "--dtype" not in WAYS[way] else ()),
        *(("--tokenizer", folder / "small") if way.startswith("moved") else ()),
    ]
    assert run_command("pipeline.annotate", *arguments) == 0
    return checkpoint


def changed(dataset: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the labels of every labelled document, with matching receipts and means."""
    subset = Subset(next((dataset / "data").iterdir()).name, dataset)
    for receipt in Ledger(subset).receipts():
        file = subset.data / receipt.shard
        table = pq.read_table(file)
        lists = table.column("entropy").to_pylist()
        changed = [change(np.array(labels, np.float32)).tolist() if labels else labels for labels in lists]
        given = [[None if nats is None or np.isnan(nats) else nats for nats in labels] for labels in changed]
        column = pa.array(given, pa.list_(pa.float32()))
        for name, values in (("entropy", column), ("mean_entropy", mean_entropies(column))):
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
        digest = write_shard(file, [table], table.schema)
        counts = count_rows(table.to_batches())
        size = file.stat().st_size
        Ledger(subset).record(replace(receipt, sha256=digest, size=size, counts=counts))
    (dataset / "README.md").unlink()


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=pytest.mark.long) if way in ("exact", "folds") else way for way in WAYS]
)
def test_labels_of_the_checkpoint_pass_and_others_are_faults(
    way: str, folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    checkpoint = annotated(folder, output, way, run_command)
    code, (sample, last) = verified(output, capsys, sample=13, estimator=(str(checkpoint),))
    assert code == 0 and last.endswith(": all match their receipts")
    if way == "moved, without text":
        assert sample.endswith("labels were moved from another tokenizer, and the text was not kept")
        return
    assert ": 13 documents labelled again, " in sample
    changed(output, lambda labels_N: labels_N + 1)
    code, lines = verified(output, capsys, sample=13, estimator=(str(checkpoint),))
    assert code == 1
    assert sum("nats off what the checkpoint gives now" in line for line in lines) == 12


def test_a_single_wrong_label_is_a_fault_in_float32(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    annotated(folder, tmp_path / "out", "second-order", run_command)
    for steps, code in ((1, 0), (2, 1)):
        shutil.copytree(tmp_path / "out", tmp_path / str(steps))
        changed(tmp_path / str(steps), lambda labels_N, steps=steps: _raised(labels_N, steps))  # type: ignore[misc]
        found, lines = verified(tmp_path / str(steps), capsys, sample=13, estimator=(str(folder / "second-order"),))
        assert sum("off what the checkpoint" in line for line in lines) == 12 * code
        assert found == 1  # the card is gone


def _raised(labels_N: np.ndarray, steps: int) -> np.ndarray:
    labels_N[3] += steps * ROUNDING_NATS
    return labels_N


def test_the_sample_is_skipped_without_its_checkpoint_and_another_is_refused(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    annotated(folder, tmp_path / "out", "second-order", run_command)
    code, (told, _) = verified(tmp_path / "out", capsys, sample=2)
    assert code == 0 and told == (
        "second-order: no document was labelled again: the provenance does not say where to find the checkpoint "
        "second-order; name it with `estimator`"
    )
    with pytest.raises(ValueError, match="exact is not the checkpoint that labelled"):
        verified(tmp_path / "out", capsys, sample=2, estimator=(str(folder / "exact"),))


def test_the_same_annotate_command_restores_what_a_repair_set_aside(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = annotated(folder, tmp_path / "out", "causal", run_command)
    sound = {file: file.read_bytes() for file in tmp_path.rglob("*.parquet")}
    second = sorted(sound)[1]
    second.write_bytes(bytes(reversed(sound[second])))
    code, lines = verified(tmp_path / "out", capsys, repair=True, sample=13, estimator=(str(checkpoint),))
    assert code == 1 and not second.exists()
    wanted = f"  python -m pipeline.annotate --input {folder}/in.parquet --output {tmp_path}/out --subset causal"
    assert lines[-1].startswith(wanted)
    _, _, module, *arguments = shlex.split(lines[-1])
    assert run_command(module, *arguments, "--workers", 0) == 0
    assert {file: file.read_bytes() for file in sound} == sound
    assert verified(tmp_path / "out", capsys, sample=13, estimator=(str(checkpoint),))[0] == 0


def test_the_command_that_a_repair_prints_restores_a_dataset_and_does_not_extend_it(
    tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sampled = ("--share", 0.5, "--keep-text", "--columns", "id", "--window", 64, "--overlap", 0, "--batch-invariant")
    made = ("--limit", 9, "--output", tmp_path / "out", "--workers", 0, *sampled)
    assert run_command("pipeline.annotate", *made) == 0
    sound = {file: file.read_bytes() for file in tmp_path.rglob("*.parquet")}
    first, *_ = sorted(sound)
    first.write_bytes(first.read_bytes()[:-9])
    code, lines = verified(tmp_path / "out", capsys, repair=True, sample=0)
    assert code == 1 and not first.exists()
    python, option, module, *arguments = shlex.split(lines[-1])
    assert (python, option) == ("python", "-m") and arguments[-1] != "..."
    assert run_command(module, *arguments, "--workers", 0) == 0
    assert {file: file.read_bytes() for file in (tmp_path / "out").glob("data/*/*.parquet")} == sound


def test_labels_without_a_ledger_are_compared_with_their_checkpoint_too(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = annotated(folder, tmp_path / "out", "second-order", run_command)
    changed(tmp_path / "out", lambda labels_N: labels_N - 1)
    shutil.rmtree(tmp_path / "out" / "_ledger")
    code, lines = verified(tmp_path / "out", capsys, sample=13, estimator=(str(checkpoint),))
    assert code == 1 and sum("off what the checkpoint" in line for line in lines) == 12


@pytest.mark.parametrize(
    ("rows", "wanted", "found"),
    [
        ([4, 4, 4], 3, [(0, 2), (1, 2), (2, 2)]),
        ([4, 4, 4], 1, [(1, 2)]),
        ([1, 0, 1], 9, [(0, 0), (2, 0)]),
        ([3], 3, [(0, 0), (0, 1), (0, 2)]),
        ([], 3, []),
        ([0], 3, []),
    ],
)
def test_a_sample_is_spread_over_the_shards(rows: Sequence[int], wanted: int, found: Sequence[tuple[int, int]]) -> None:
    documents = spread_rows({str(shard): count for shard, count in enumerate(rows)}, wanted)
    assert documents == [SampledRow(str(shard), row) for shard, row in found]
