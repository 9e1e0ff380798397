"""Most probable ids (--top-k) and sampled ids (--sampled-ids) for each token, in a dataset that other libraries load.

N tokens, V vocabulary, K most probable ids, S sampled ids.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline.annotate.config import Config
from pipeline.annotate.prepare import predictions_for
from pipeline.data.annotated import find_annotations
from pipeline.data.ledger import Ledger
from pipeline.data.loader import Reading, labelled_rows
from pipeline.models.causal_lm import prepend_start
from schemas.annotations import Provenance, label_type
from schemas.layout import Subset
from schemas.receipts import Plan
from tests.annotate.test_label_columns import START, annotate
from tests.builders import PROVENANCE, sample_texts, write_documents
from tests.conftest import RunCommand
from tests.readme.workspace import write_language_model
from tests.verify.datasets import verified

TOP, SAMPLED = 5, 7
PREDICTIONS = ("top_ids", "top_logprobs", "rest_logprob", "sampled_ids")
FLAGS = ("--top-k", TOP, "--sampled-ids", SAMPLED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictions")
    write_documents(folder / "in.parquet", [*sample_texts(5, 300), "", None])
    write_language_model(folder / "model")
    return folder


@pytest.fixture
def dataset(folder: Path, run_command: RunCommand) -> Path:
    if not (folder / "out").exists():
        assert annotate(run_command, folder, folder / "out", *FLAGS) == 0
    return folder / "out"


def test_predictions_are_those_of_the_model(folder: Path, dataset: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder / "model").eval()
    loaded = datasets.load_dataset(str(dataset), split="train", cache_dir=str(tmp_path))
    assert loaded.num_rows == 7 and loaded[5]["top_ids"] == loaded[6]["sampled_ids"] == []
    for row in loaded.select(range(5)):
        first = slice(model.config.max_position_embeddings - 1)  # tokens of the first window
        ids_1N = torch.tensor([row["input_ids"][first]])
        with torch.no_grad():
            log_p_NV = model(input_ids=prepend_start(ids_1N, START)).logits[0].log_softmax(dim=1)
        top_NK, top_ids_NK = (torch.tensor(row[name][first]) for name in ("top_logprobs", "top_ids"))
        slow = log_p_NV.topk(TOP, dim=1)
        torch.testing.assert_close(top_NK, slow.values, atol=1 / 2048 + 1e-4, rtol=0)
        torch.testing.assert_close(log_p_NV.gather(1, top_ids_NK), slow.values, atol=1e-4, rtol=0)
        rest_N = torch.tensor(row["rest_logprob"][first])
        torch.testing.assert_close(rest_N, (1 - slow.values.exp().sum(dim=1)).log(), atol=1e-3, rtol=0)
        assert (top_NK.exp().sum(dim=1) + rest_N.exp() - 1).abs().max() < 1e-3
        counts_NV = torch.zeros_like(log_p_NV)
        counts_NV.scatter_add_(1, torch.tensor(row["sampled_ids"][first]), torch.ones(len(rest_N), SAMPLED))
        assert ((counts_NV - SAMPLED * log_p_NV.exp()).abs() < 1 + 1e-4).all()


def test_the_columns_are_small_and_others_read_them(dataset: Path) -> None:
    schema = find_annotations(str(dataset)).schema
    assert schema.field("top_ids").type.equals(pa.list_(pa.list_(pa.uint16(), TOP)))
    assert schema.field("top_logprobs").type.equals(pa.list_(pa.list_(pa.float32(), TOP)))
    assert schema.field("sampled_ids").type.equals(pa.list_(pa.list_(pa.uint16(), SAMPLED)))
    assert label_type("top_ids", (3,), 2**16 + 1).equals(pa.list_(pa.list_(pa.uint32(), 3)))
    (shard,) = dataset.glob("data/causal/*.parquet")
    found = (
        duckdb.connect().execute(f"SELECT top_ids[1], top_logprobs[1], input_ids[1] FROM '{shard}' LIMIT 1").fetchall()
    )
    row = pq.read_table(shard).slice(0, 1).to_pylist()[0]
    assert found == [(row["top_ids"][0], row["top_logprobs"][0], row["input_ids"][0])]


@pytest.mark.parametrize(
    "wrong",
    [
        pa.list_(pa.list_(pa.uint16())),
        pa.list_(pa.uint16()),
        pa.list_(pa.list_(pa.float32(), TOP)),
        pa.list_(pa.list_(pa.uint16(), 2**30)),
    ],
)
def test_a_column_of_another_type_is_refused(dataset: Path, tmp_path: Path, wrong: pa.DataType) -> None:
    """A list of a billion nulls would take a few bytes of a file and gigabytes of memory."""
    shutil.copytree(dataset, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "_ledger")
    (shard,) = tmp_path.glob("copy/data/causal/*.parquet")
    table = pq.read_table(shard).slice(5, 2)  # empty documents
    place = table.schema.get_field_index("top_ids")
    pq.write_table(table.set_column(place, "top_ids", pa.array([[], []], wrong)), shard)
    with pytest.raises(ValueError, match=r"column `top_ids` of .* holds .*, not lists of numbers"):
        find_annotations(str(tmp_path / "copy"))


def test_a_dry_run_counts_the_bytes_of_ids(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    assert annotate(run_command, folder, tmp_path / "out", *FLAGS, "--dry-run", "--tokens-per-second", 9) == 0
    printed = capsys.readouterr().out
    assert f"bytes for each of a labelled token's {TOP} ids" in printed
    assert f"bytes for each of a labelled token's {SAMPLED} ids" in printed
    assert "each of a labelled token's 3 columns" in printed


def test_the_card_names_the_columns(dataset: Path) -> None:
    card = (dataset / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` | " in card for name in PREDICTIONS)
    assert f"| `top_ids` | list of lists of {TOP} uint16 |" in card
    assert f"| top_k | {TOP} |" in card and f"| sampled_ids | {SAMPLED} |" in card


def test_the_reader_gives_an_array_for_each_row(dataset: Path) -> None:
    annotations = find_annotations(str(dataset))
    rows = list(labelled_rows(annotations, ("input_ids", *PREDICTIONS), Reading(epochs=1)))
    assert annotations.provenance.label_shapes["top_ids"] == (TOP,)
    for row, stored in zip(rows, pq.read_table(dataset / "data").to_pylist(), strict=True):
        for name, values in row.items():
            expected = np.array(stored[name], values.dtype).reshape(values.shape)
            np.testing.assert_array_equal(values, expected)
            assert len(values) == len(row["input_ids"])


def test_other_columns_are_the_same_bits_without_predictions(
    folder: Path, dataset: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    assert annotate(run_command, folder, tmp_path / "out") == 0
    plain, more = (pq.read_table(each / "data") for each in (tmp_path / "out", dataset))
    assert [name for name in more.column_names if name not in plain.column_names] == [*PREDICTIONS]
    assert plain.equals(more.select(plain.column_names))


def test_a_sample_has_predictions_where_it_has_labels(folder: Path, tmp_path: Path, run_command: RunCommand) -> None:
    assert annotate(run_command, folder, tmp_path / "out", *FLAGS, "--share", 0.3) == 0
    annotations = find_annotations(str(tmp_path / "out"))
    for row in labelled_rows(annotations, ("entropy", *PREDICTIONS), Reading(epochs=1)):
        unlabelled_N = np.isnan(row["entropy"])
        for name in PREDICTIONS:
            missing = np.isnan(row[name])
            assert (unlabelled_N == missing.T).all()


def test_verify_labels_again_and_finds_what_was_changed(
    folder: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = verified(dataset, capsys, sample=7, estimator=(str(folder / "model"),))
    assert code == 0 and "7 documents labelled again" in lines[-2]
    faults = {
        "top_ids": (65535, "an id in `top_ids` is outside the model's vocabulary"),
        "sampled_ids": (65535, "an id in `sampled_ids` is outside the model's vocabulary"),
        "top_logprobs": (0.0, "a token's probabilities and the rest do not add up to 1"),
        "rest_logprob": (np.nan, "a label in `rest_logprob` is not finite"),
    }
    for name, (wrong, message) in faults.items():
        copy = tmp_path / name
        shutil.copytree(dataset, copy)
        (shard,) = copy.glob("data/causal/*.parquet")
        shutil.rmtree(copy / "_ledger")
        table = pq.read_table(shard)
        lists = table.column(name).to_pylist()
        lists[2][3] = [wrong] * len(lists[2][3]) if isinstance(lists[2][3], list) else wrong
        field = table.schema.field(name)
        place = table.schema.get_field_index(name)
        pq.write_table(table.set_column(place, field, pa.array(lists, field.type)), shard)
        code, lines = verified(copy, capsys)
        assert code == 1 and any(f"row 2: {message}" in line for line in lines), lines


def test_draws_depend_neither_on_the_batch_nor_on_the_shard(
    folder: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    """The second run reads the documents in reverse order, in shards of two.

    This run first ends at a limit, and is then resumed with a larger limit.
    """
    texts = [*sample_texts(5, 300), ""]
    flags = (*FLAGS, "--batch-invariant", "--dtype", "float32", "--workers", 0, "--method", "causal")
    for name, order, limits in (("one", texts, (6,)), ("two", texts[::-1], (4, 6))):
        write_documents(tmp_path / f"{name}.parquet", order)
        for limit in limits:
            given = ("--input", tmp_path / f"{name}.parquet", "--limit", limit, "--output", tmp_path / name)
            units = ("--rows-per-unit", 2) if name == "two" else ()
            named = flags if limit == limits[0] else flags[len(FLAGS) :]  # the resumed run knows them
            command = (*given, *units, "--estimator", folder / "model", *named)
            assert run_command("pipeline.annotate", *command) == 0
    one, two = (find_annotations(str(tmp_path / name)) for name in ("one", "two"))
    assert len(two.shards) == 3
    rows, others = (list(labelled_rows(each, ("input_ids", *PREDICTIONS), Reading(epochs=1))) for each in (one, two))
    for row, other in zip(rows, others[::-1], strict=True):
        assert all(np.array_equal(row[name], other[name]) for name in row)


def test_many_numbers_per_token_come_in_small_pieces_that_lose_no_row_and_no_count(
    folder: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    texts = sample_texts(6, 300)
    write_documents(tmp_path / "in.parquet", [*texts[:3], "long " * 300, None, *texts[3:]])
    command = ("--method", "causal", "--estimator", folder / "model", "--workers", 0, "--dtype", "float32")
    for name, flags in (("few", ()), ("many", ("--top-k", 60, "--sampled-ids", 60))):
        places = ("--input", tmp_path / "in.parquet", "--output", tmp_path / name, "--longest-document", 1000)
        assert run_command("pipeline.annotate", *places, *command, *flags) == 0
    few, many = (Ledger(Subset("causal", tmp_path / name)).receipts()[0].counts for name in ("few", "many"))
    assert (many.rows, many.rows_too_long, many.rows_without_text) == (8, 1, 2)
    assert (many.tokens, many.rows_too_long, many.rows_without_text) == (few.tokens, 1, few.rows_without_text)
    tables = [pq.read_table(tmp_path / name / "data") for name in ("few", "many")]
    assert tables[0].column("input_ids").equals(tables[1].column("input_ids"))
    assert all(len(ids_60) == 60 for ids in tables[1].column("top_ids").to_pylist() for ids_60 in ids)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "second-order", "top_k": 4}, "--top-k is for --method causal"),
        ({"method": "exact", "sampled_ids": 4}, "--sampled-ids is for --method causal"),
        ({"method": "causal", "top_k": 0}, "`top_k` must be at least 1, not 0"),
        ({"method": "causal", "sampled_ids": 1025}, "--sampled-ids must be at most 1,024, not 1,025"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config(**settings)  # type: ignore[arg-type]


def test_predictions_need_the_models_own_tokens_and_enough_of_them() -> None:
    with pytest.raises(ValueError, match="ids of --sampled-ids cannot be moved to the tokens of another tokenizer"):
        predictions_for(Config(method="causal", sampled_ids=4), 101, True, None)
    assert predictions_for(Config(method="causal", top_k=4), 101, True, None)["predicted_vocabulary"] == 101
    with pytest.raises(ValueError, match="--top-k 102 is more than the 101 ids that the model predicts"):
        predictions_for(Config(method="causal", top_k=102), 101, False, None)
    assert predictions_for(Config(method="causal", top_k=101), 101, False, None)["top_k"] == 101


def test_a_resumed_run_keeps_its_predictions_and_an_older_one_has_none() -> None:
    newer = replace(PROVENANCE, method="causal", top_k=8, sampled_ids=2, predicted_vocabulary=101)
    values = json.loads(replace(PROVENANCE, method="causal").to_json())
    older = Provenance.from_values({name: value for name, value in values.items() if name not in predictions_of(newer)})
    for run, expected in ((newer, predictions_of(newer)), (older, dict.fromkeys(predictions_of(newer), 0))):
        plan = Plan(run, (), None, ())
        assert predictions_for(Config(method="causal"), 101, False, plan) == expected


def predictions_of(run: Provenance) -> dict[str, int]:
    return {name: getattr(run, name) for name in ("top_k", "sampled_ids", "predicted_vocabulary")}
