"""Annotation by an ensemble of checkpoints: from the flag --estimator to a dataset that other libraries load."""

import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from pipeline.data.corpus import fold_of
from pipeline.data.tokenizer import train_byte_pairs
from pipeline.labels import exact, second_order
from pipeline.models.causal_lm import prepend_start
from pipeline.models.checkpoint import SHIPPED, fold_folder
from pipeline.models.loading import load_causal, load_estimator, load_second_order, save_checkpoint
from schemas.annotations import PROVENANCE_KEY
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.tiny_models import random_tokens, tiny_estimator, tiny_language_model, tiny_second_order
from tests.verify.datasets import verified

ROUNDING = 1 / 256 + 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write documents, two language models with the same tokenizer, and one with another tokenizer."""
    folder = tmp_path_factory.mktemp("ensembles")
    texts = [*sample_texts(5, 400), "", None, "naïve 👩‍👩‍👧 e\u0301"]
    write_documents(folder / "in.parquet", texts)
    tokenizer = train_byte_pairs([text or "" for text in texts], 300)
    (folder / "small").mkdir()
    tokenizer.save(str(folder / "small" / "tokenizer.json"))
    for seed, (name, tokens, context, start) in enumerate(
        [("one", 8192, 32, 0), ("two", 8192, 24, 7), ("other", 300, 40, 0)], 1
    ):
        model = tiny_language_model(vocabulary=tokens, context=context)
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.get_output_embeddings().weight, std=0.4)
        model.config.bos_token_id = start
        save_checkpoint(
            model,
            folder / name,
            dtype="float32",
            tokenizer_folder=SHIPPED / "tokenizer" if tokens == 8192 else folder / "small",
            card="",
        )
        (folder / name / "tokenizer_config.json").unlink(missing_ok=True)  # the start is then the model's
    return folder


def annotate(
    run_command: RunCommand,
    folder: Path,
    output: Path,
    *names: str,
    method: str = "causal",
    flags: tuple[object, ...] = (),
) -> int:
    given = ("--input", folder / "in.parquet", "--method", method, "--estimator", *(folder / name for name in names))
    return run_command("pipeline.annotate", *given, "--output", output, "--workers", 0, "--dtype", "float32", *flags)


def read(output: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the provenance of an annotated dataset."""
    files = sorted((output / "data").rglob("*.parquet"))
    provenance = json.loads(pq.read_schema(files[0]).metadata[PROVENANCE_KEY])
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pylist(), provenance


def probabilities(folder: Path, ids_1T: Tensor, start: int) -> Tensor:
    with torch.no_grad():
        logits_TV: Tensor = load_causal(folder)(input_ids=prepend_start(ids_1T, start)).logits[0]
    return logits_TV.double().softmax(dim=1)


def test_a_mixture_is_written_read_verified_and_resumed(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert annotate(run_command, folder, output, "one", "two") == 0
    assert "model          mean probability of one + two" in capsys.readouterr().out
    dataset = datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.num_rows == 8 and dataset[5]["entropy_deviation"] == []
    for row in dataset.select(range(5)):
        ids_1T = torch.tensor([row["input_ids"][:24]])  # the first window, which the shorter context limits
        p_MTV = torch.stack([probabilities(folder / name, ids_1T, start) for name, start in (("one", 0), ("two", 7))])
        own_MT = -p_MTV.gather(2, ids_1T.T.expand(2, -1, 1)).squeeze(2).log()
        np.testing.assert_allclose(row["entropy"][:24], -(-own_MT).exp().mean(dim=0).log(), atol=ROUNDING)
        np.testing.assert_allclose(row["entropy_deviation"][:24], own_MT.std(dim=0), atol=ROUNDING)
        entropy_T = torch.special.entr(p_MTV.mean(dim=0)).sum(dim=1)
        np.testing.assert_allclose(row["expected_entropy"][:24], entropy_T, atol=ROUNDING)
    _, provenance = read(output)
    assert provenance["model"] == "one + two" and [each["start_token"] for each in provenance["members"]] == [0, 7]
    assert provenance["start_token"] is None and provenance["window"] == 24
    assert annotate(run_command, folder, output, "one", "two") == 0
    for names in (("one",), ("two", "one"), ("one", "one"), ("one", "two", "two")):
        assert annotate(run_command, folder, output, *names) == 1, names
        assert "holds another run's dataset" in capsys.readouterr().err
    pair = tuple(str(folder / name) for name in ("one", "two"))
    code, lines = verified(output, capsys, sample=8, estimator=pair)
    assert code == 0 and any("8 documents labelled again" in line for line in lines)
    with pytest.raises(ValueError, match="are not the checkpoints that labelled"):
        verified(output, capsys, sample=8, estimator=pair[::-1])
    assert any("no document was labelled again" in line for line in verified(output, capsys, sample=8)[1])


def test_a_damaged_shard_is_labelled_again_by_the_command_that_repair_prints(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    output, names = tmp_path / "out", ("one", "other")
    flags = ("--keep-text", "--tokenizer", folder / "small")
    assert annotate(run_command, folder, output, *names, flags=flags) == 0
    (shard,) = (output / "data").rglob("*.parquet")
    content = shard.read_bytes()
    shard.write_bytes(content[:-9])
    pair = tuple(str(folder / name) for name in names)
    code, lines = verified(output, capsys, repair=True, sample=1, estimator=pair)
    assert code == 1 and f"--estimator {' '.join(pair)} " in lines[-1] and "--tokenizer" in lines[-1]
    assert annotate(run_command, folder, output, *names, flags=flags) == 0
    assert shard.read_bytes() == content


def test_a_tokenizer_in_another_layout_is_the_same_tokenizer(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.parquet").symlink_to(folder / "in.parquet")
    shutil.copytree(folder / "one", tmp_path / "one")
    shutil.copytree(folder / "two", tmp_path / "two")
    file = tmp_path / "two" / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**content, "decoder": None}, indent=3), encoding="utf-8")
    assert annotate(run_command, folder, tmp_path / "same", "one", "two") == 0
    assert annotate(run_command, tmp_path, tmp_path / "out", "one", "two") == 0
    assert "mean probability of one + two" in capsys.readouterr().out
    (rows, provenance), (others, _) = read(tmp_path / "out"), read(tmp_path / "same")
    assert rows == others and [each["tokenizer_sha256"] for each in provenance["members"]] == [None, None]
    turned = ("--tokenizer", folder / "small")
    assert annotate(run_command, tmp_path, tmp_path / "moved", "two", "one", flags=turned) == 0
    assert "mean probability of two + one" in capsys.readouterr().out
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content), encoding="utf-8")
    assert annotate(run_command, tmp_path, tmp_path / "lower", "one", "two") == 0
    assert "mean of moved nats of one + two" in capsys.readouterr().out


def test_columns_are_chosen_and_the_card_says_how_models_were_combined(
    folder: Path, tmp_path: Path, run_command: RunCommand
) -> None:
    chosen = ("--label-columns", "entropy", "rank")
    assert annotate(run_command, folder, tmp_path / "out", "one", "two", flags=chosen) == 0
    rows, provenance = read(tmp_path / "out")
    assert {"entropy", "rank"} <= set(rows[0]) and not {"expected_entropy", "entropy_deviation"} & set(rows[0])
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "a label is -ln of the mean of the probabilities" in card and "start token 7" in card
    assert provenance["label_columns"] == ["entropy", "rank"]


def test_models_of_different_tokenizers_are_averaged_in_nats(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = ("--tokenizer", folder / "small", "--keep-text")
    for name in ("one", "other"):
        windows = ("--window", 32, "--overlap", 16)
        assert annotate(run_command, folder, tmp_path / name, name, flags=(*tokens, *windows)) == 0
    assert annotate(run_command, folder, tmp_path / "both", "one", "other", flags=tokens) == 0
    assert "mean of moved nats of one + other" in capsys.readouterr().out
    members, (rows, provenance) = [read(tmp_path / name)[0] for name in ("one", "other")], read(tmp_path / "both")
    for row, one, other in zip(rows, *members, strict=True):
        assert row["input_ids"] == one["input_ids"] == other["input_ids"]
        for column in ("entropy", "expected_entropy"):
            pair = np.array([one[column], other[column]])
            np.testing.assert_allclose(row[column], pair.mean(axis=0), atol=2 * ROUNDING)
        spread = np.array([one["entropy"], other["entropy"]]).std(axis=0, ddof=1)
        np.testing.assert_allclose(row["entropy_deviation"], spread, atol=2 * ROUNDING)
        totals = [sum(each["entropy"]) for each in (one, other)]
        assert sum(row["entropy"]) == pytest.approx(sum(totals) / 2, abs=len(row["entropy"]) / 128 + 1e-3)
    assert provenance["estimator_tokenizer_sha256"] is None
    assert [each["tokenizer_sha256"] is None for each in provenance["members"]] == [False, True]
    assert "not -ln of a mean probability" in (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    named = tuple(str(folder / name) for name in ("one", "other"))
    assert verified(tmp_path / "both", capsys, sample=8, estimator=named)[0] == 0


def test_a_mixture_moves_to_another_tokenizer_with_the_deviation_of_moved_nats(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    window = ("--window", 24, "--overlap", 12)
    tokens = ("--tokenizer", folder / "small", "--keep-text", *window)
    for name in ("one", "two"):
        assert annotate(run_command, folder, tmp_path / name, name, flags=tokens) == 0
    assert annotate(run_command, folder, tmp_path / "own", "one", "two", flags=window) == 0
    assert annotate(run_command, folder, tmp_path / "moved", "one", "two", flags=tokens) == 0
    assert "mean probability of one + two" in capsys.readouterr().out
    (own, _), (rows, _) = read(tmp_path / "own"), read(tmp_path / "moved")
    members = [read(tmp_path / name)[0] for name in ("one", "two")]
    for before, row, *pair in zip(own, rows, *members, strict=True):
        rounding = (len(before["entropy"]) + len(row["entropy"])) / 256 + 1e-3
        assert sum(row["entropy"]) == pytest.approx(sum(before["entropy"]), abs=rounding)
        spread = np.array([each["entropy"] for each in pair]).std(axis=0, ddof=1)
        np.testing.assert_allclose(row["entropy_deviation"], spread, atol=2 * ROUNDING)
    named = tuple(str(folder / name) for name in ("one", "two"))
    assert verified(tmp_path / "moved", capsys, sample=8, estimator=named)[0] == 0


@pytest.mark.parametrize("method", ["exact", "second-order"])
def test_the_other_methods_average_the_labels(
    method: str, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, name in enumerate(("a", "b", "c")):
        model = tiny_estimator() if method == "exact" else tiny_second_order()
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / name)
    documents = random_tokens(4, 20)
    ids = pa.array(documents.tolist(), pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": ids}), tmp_path / "in.parquet")
    flags = ("--tokenizer", "none", "--vocabulary", 97)
    assert annotate(run_command, tmp_path, tmp_path / "out", "a", "b", "c", method=method, flags=flags) == 0
    rows, provenance = read(tmp_path / "out")
    if method == "exact":
        each_MBT = torch.stack([exact.token_entropies(load_estimator(tmp_path / n), documents) for n in "abc"])
    else:
        both = [second_order.token_entropies(load_second_order(tmp_path / n), documents) for n in "abc"]
        each_MBT = torch.stack([labels.entropy_BT for labels in both])
        expected_BT = torch.stack([labels.expected_entropy_BT for labels in both]).mean(dim=0)
        np.testing.assert_allclose([row["expected_entropy"] for row in rows], expected_BT, atol=ROUNDING)
    np.testing.assert_allclose([row["entropy"] for row in rows], each_MBT.mean(dim=0), atol=ROUNDING)
    np.testing.assert_allclose([row["entropy_deviation"] for row in rows], each_MBT.std(dim=0), atol=ROUNDING)
    assert provenance["start_token"] is None and provenance["folds"] == 1
    assert verified(tmp_path / "out", capsys, sample=4, estimator=tuple(str(tmp_path / n) for n in "abc"))[0] == 0


def test_members_with_folds_label_with_the_checkpoints_of_the_documents_fold(
    tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, (name, folds) in enumerate((("a", 2), ("b", 2), ("c", 3), ("d", 1))):
        for fold in range(folds):
            estimator = tiny_estimator()
            torch.manual_seed(10 * number + fold)
            torch.nn.init.normal_(estimator.introduce.get_parameter("weight"), std=0.5)
            estimator.save_pretrained(fold_folder(tmp_path / name, fold, folds))
    documents = [random_tokens(1, 20, seed=seed) for seed in range(6)]
    ids = pa.array([document[0].tolist() for document in documents], pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": ids}), tmp_path / "in.parquet")
    flags = ("--tokenizer", "none", "--vocabulary", 97)
    assert annotate(run_command, tmp_path, tmp_path / "out", "a", "b", method="exact", flags=flags) == 0
    rows, provenance = read(tmp_path / "out")
    chosen = [fold_of(document[0].numpy(), 2) for document in documents]
    assert set(chosen) == {0, 1} and (provenance["folds"], provenance["source_seen_by_estimator"]) == (2, "no")
    for row, document, fold in zip(rows, documents, chosen, strict=True):
        pair = [load_estimator(fold_folder(tmp_path / name, fold, 2)) for name in "ab"]
        labels_MT = torch.stack([exact.token_entropies(estimator, document)[0] for estimator in pair])
        np.testing.assert_allclose(row["entropy"], labels_MT.mean(dim=0), atol=ROUNDING)
        np.testing.assert_allclose(row["entropy_deviation"], labels_MT.std(dim=0), atol=ROUNDING)
    assert verified(tmp_path / "out", capsys, sample=6, estimator=(str(tmp_path / "a"), str(tmp_path / "b")))[0] == 0
    for other, has in (("c", 3), ("d", 1)):
        assert annotate(run_command, tmp_path, tmp_path / "new", "a", other, method="exact", flags=flags) == 1
        assert f"has {has} cross-validation folds, and" in capsys.readouterr().err


def test_a_dry_run_counts_all_checkpoints(
    folder: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    for names, together in ((("one",), ""), (("one", "two"), "2 together"), (("one", "other"), "2 together")):
        assert annotate(run_command, folder, tmp_path / "out", *names, flags=("--dry-run",)) == 0
        printed = capsys.readouterr().out
        assert together in printed and ("checkpoints    " in printed) == (len(names) > 1)
        parameters = sum(sum(weight.numel() for weight in load_causal(folder / name).parameters()) for name in names)
        assert len(names) == 1 or f"{parameters / 1e6:,.3g} M parameters" in printed
