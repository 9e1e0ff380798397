"""Annotation with labels that are transferred to the tokens of another tokenizer, and with cross-validation folds.

With folds, each document is labelled by an estimator that was trained without the documents of its fold.
"""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.data.corpus import fold_of
from pipeline.data.tokenizer import encode, load_tokenizer, tokenizer_sha256
from pipeline.labels import causal, exact
from pipeline.labels.moved_predictions import UNKNOWN, first_tokens
from pipeline.labels.retokenize import encode_with_ends
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer, fold_folder
from pipeline.models.loading import load_own_estimator
from schemas.annotations import NO_PROBABILITY, PROVENANCE_KEY
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.readme.workspace import write_language_model
from tests.tiny_models import random_tokens, tiny_estimator, tiny_language_model
from tests.verify.datasets import verified

ANNOTATE = ("pipeline.annotate", "--workers", 0)


def read(output: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the provenance of an annotated dataset."""
    files = sorted((output / "data").rglob("*.parquet"))
    provenance = json.loads(pq.read_schema(files[0]).metadata[PROVENANCE_KEY])
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pylist(), provenance


def test_labels_move_to_the_tokens_of_another_tokenizer(run_command: RunCommand, tmp_path: Path) -> None:
    texts = [*sample_texts(6, 700), "", None, "naïve 👩‍👩‍👧 e\u0301"]
    file = write_documents(tmp_path / "in.parquet", texts)
    train = ("jobs.train_tokenizer", "--input", file, "--vocabulary", 300, "--output", tmp_path / "small")
    assert run_command(*train) == 0
    label = (*ANNOTATE, "--input", file, "--method", "exact", "--window", 16, "--overlap", 0)
    assert run_command(*label, "--output", tmp_path / "own") == 0
    assert run_command(*label, "--tokenizer", tmp_path / "small", "--output", tmp_path / "moved") == 0
    own, own_provenance = read(tmp_path / "own")
    moved, provenance = read(tmp_path / "moved")
    tokens = encode(load_tokenizer(tmp_path / "small"), [text or "" for text in texts])
    for before, after, ids in zip(own, moved, tokens, strict=True):
        assert after["input_ids"] == ids.tolist() and len(after["entropy"]) == len(ids)
        # each label, before and after the move, is rounded to 1/128 nat
        rounding = (len(before["entropy"]) + len(ids)) / 256
        assert sum(after["entropy"]) == pytest.approx(sum(before["entropy"]), abs=rounding + 1e-4)
    assert own_provenance["estimator_tokenizer_sha256"] is None
    assert provenance["estimator_tokenizer_sha256"] == tokenizer_sha256(SHIPPED / "estimator")
    assert provenance["tokenizer_sha256"] == tokenizer_sha256(tmp_path / "small")


def test_predictions_move_to_the_tokens_of_another_tokenizer(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [*sample_texts(3, 300), "", None, "naïve 👩‍👩‍👧 e\u0301"]
    file = write_documents(tmp_path / "in.parquet", texts)
    train = ("jobs.train_tokenizer", "--input", file, "--vocabulary", 300, "--output", tmp_path / "small")
    assert run_command(*train) == 0
    write_language_model(tmp_path / "model")
    label = (*ANNOTATE, "--input", file, "--method", "causal", "--estimator", tmp_path / "model", "--top-k", 6)
    assert run_command(*label, "--output", tmp_path / "own") == 0
    assert run_command(*label, "--tokenizer", tmp_path / "small", "--output", tmp_path / "moved", "--keep-text") == 0
    shipped, small = load_tokenizer(SHIPPED / "tokenizer"), load_tokenizer(tmp_path / "small")
    first = first_tokens(shipped, small)
    compared = 0
    for before, after, text in zip(read(tmp_path / "own")[0], read(tmp_path / "moved")[0], texts, strict=True):
        ends_S, ends_T = (encode_with_ends(each, [text or ""])[0].ends_T.tolist() for each in (shipped, small))
        begins_S = {begin: place for place, begin in enumerate([0.0, *ends_S[:-1]])}
        for place, begin in enumerate([0.0, *ends_T[:-1]][: len(ends_T)]):
            sums = defaultdict[int, float](float)
            if begin in begins_S:
                source = begins_S[begin]
                for index, logprob in zip(before["top_ids"][source], before["top_logprobs"][source], strict=True):
                    if first[index] != UNKNOWN:
                        sums[int(first[index])] += math.exp(logprob)
            if not sums:
                assert after["top_ids"][place] is after["rest_logprob"][place] is None
                continue
            pairs = zip(after["top_ids"][place], after["top_logprobs"][place], strict=True)
            found = {index: math.exp(logprob) for index, logprob in pairs if logprob > NO_PROBABILITY}
            assert found == pytest.approx(dict(sums), rel=2e-3)
            assert math.exp(after["rest_logprob"][place]) == pytest.approx(1 - sum(sums.values()), abs=2e-3)
            compared += 1
    assert compared > 100
    assert verified(tmp_path / "moved", capsys, sample=6, estimator=(str(tmp_path / "model"),))[0] == 0


def test_a_causal_model_starts_from_what_is_declared_or_asked_for(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_documents(tmp_path / "in.parquet", sample_texts(2, 300))
    model = tiny_language_model(vocabulary=8192)
    model.save_pretrained(tmp_path / "model")
    copy_tokenizer(SHIPPED / "tokenizer", tmp_path / "model")
    label = (*ANNOTATE, "--input", file, "--method", "causal", "--estimator", tmp_path / "model", "--dtype", "float32")
    assert run_command(*label, "--output", tmp_path / "declared") == 0
    assert run_command(*label, "--start-token", "!", "--output", tmp_path / "asked") == 0
    assert run_command(*label, "--start-token", "no such", "--output", tmp_path / "mistake") == 1
    assert "--start-token no such is not a token of" in capsys.readouterr().err
    asked = load_tokenizer(tmp_path / "model").get_vocab()["!"]
    for name, start in (("declared", 0), ("asked", asked)):
        rows, provenance = read(tmp_path / name)
        assert provenance["start_token"] == start
        window = torch.tensor(rows[0]["input_ids"][:32]).unsqueeze(0)
        expected_T = causal.token_entropies(model, window, start)[0]
        np.testing.assert_allclose(rows[0]["entropy"][: window.shape[1]], expected_T, atol=1 / 256 + 1e-4)


def test_a_document_is_labelled_by_the_estimator_of_its_fold(run_command: RunCommand, tmp_path: Path) -> None:
    for fold in range(2):
        estimator = tiny_estimator()
        torch.manual_seed(fold)
        torch.nn.init.normal_(estimator.introduce.get_parameter("weight"), std=0.5)
        estimator.save_pretrained(fold_folder(tmp_path / "folds", fold, 2))
    documents = [random_tokens(1, 20, seed=seed)[0] for seed in range(8)]
    ids = pa.array([document.tolist() for document in documents], pa.list_(pa.int32()))
    pq.write_table(pa.table({"input_ids": ids}), tmp_path / "in.parquet")
    tokenized = ("--input", tmp_path / "in.parquet", "--tokenizer", "none", "--vocabulary", 97)
    exactly = (
        "--method",
        "exact",
        "--estimator",
        tmp_path / "folds",
        "--dtype",
        "float32",
        "--output",
        tmp_path / "out",
    )
    assert run_command(*ANNOTATE, *tokenized, *exactly) == 0
    rows, provenance = read(tmp_path / "out")
    chosen = [fold_of(document.numpy(), 2) for document in documents]
    assert set(chosen) == {0, 1}
    for row, document, fold in zip(rows, documents, chosen, strict=True):
        estimator = load_own_estimator(fold_folder(tmp_path / "folds", fold, 2))
        expected_T = exact.token_entropies(estimator, document.unsqueeze(0))[0]
        np.testing.assert_allclose(row["entropy"], expected_T, atol=1 / 256 + 1e-4)
    assert (provenance["folds"], provenance["source_seen_by_estimator"]) == (2, "no")
