"""Documents to labels and to shards without Ray: windows put together, every method, bounded files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import PreTrainedModel

from pipeline.engine import labelling
from pipeline.engine.annotation import Annotator, Run
from pipeline.engine.labelling import label_documents, load_labeller
from pipeline.engine.ledger import read_receipts
from pipeline.engine.plan import Unit
from pipeline.labels import exact, second_order
from pipeline.models.second_order import Entropies, SecondOrderModel
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, Dtype, Method, Provenance
from tests.builders import (
    PROVENANCE,
    random_tokens,
    tiny_estimator,
    tiny_language_model,
    tiny_second_order,
    write_documents,
)

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


def everywhere(documents: list[np.ndarray]) -> list[np.ndarray]:
    return [np.ones(len(ids), bool) for ids in documents]


def random_documents(*lengths: int) -> list[np.ndarray]:
    return [random_tokens(1, length, seed=length)[0].numpy().astype(np.int32) for length in lengths]


def test_short_documents_have_the_labels_of_the_bare_method(tmp_path: Path) -> None:
    tiny_second_order().save_pretrained(tmp_path)
    documents = random_documents(7, 0, 32, 1)
    labels = label_documents(
        documents, everywhere(documents), load_labeller("second-order", tmp_path, "cpu"), window=32, overlap=16
    )
    for place, ids in enumerate(documents):
        bare = second_order.token_entropies(tiny_second_order(), torch.from_numpy(ids[None]).long())
        np.testing.assert_allclose(labels[ENTROPY][place], bare.entropy_BT[0], atol=1e-5)
        np.testing.assert_allclose(labels[EXPECTED_ENTROPY][place], bare.expected_entropy_BT[0], atol=1e-5)


@pytest.mark.parametrize(("window", "overlap"), [(16, 8), (16, 0), (16, 15), (10, 3)])
def test_long_documents_are_labelled_where_each_token_has_most_context(
    tmp_path: Path, window: int, overlap: int
) -> None:
    tiny_estimator().save_pretrained(tmp_path)
    documents = random_documents(50)
    labels = label_documents(
        documents, everywhere(documents), load_labeller("exact", tmp_path, "cpu"), window=window, overlap=overlap
    )
    expected = np.full(50, np.nan)
    for start in range(0, 50, window - overlap):
        ids_BT = torch.from_numpy(documents[0][start : start + window][None]).long()
        values = exact.token_entropies(tiny_estimator(), ids_BT)[0].numpy()
        part = expected[start : start + window]
        part[:] = np.where(np.isnan(part), values, part)  # the first window that holds a token gives its label
    np.testing.assert_allclose(labels[ENTROPY][0], expected, atol=1e-4)


def test_only_wanted_tokens_are_labelled_and_with_the_same_values(tmp_path: Path) -> None:
    tiny_estimator().save_pretrained(tmp_path)
    labeller, documents = load_labeller("exact", tmp_path, "cpu"), random_documents(40, 25)
    wanted = [np.random.default_rng(len(ids)).random(len(ids)) < 0.3 for ids in documents]
    every = label_documents(documents, everywhere(documents), labeller, window=16, overlap=8)[ENTROPY]
    some = label_documents(documents, wanted, labeller, window=16, overlap=8)[ENTROPY]
    for chosen, all_labels, labels in zip(wanted, every, some, strict=True):
        assert np.array_equal(np.isnan(labels), ~chosen)
        np.testing.assert_allclose(labels[chosen], all_labels[chosen], atol=1e-4)


def test_batches_keep_within_their_token_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_second_order().save_pretrained(tmp_path)
    labeller, documents = load_labeller("second-order", tmp_path, "cpu"), random_documents(9, 31, 4, 17, 30, 2)
    whole = label_documents(documents, everywhere(documents), labeller, window=32, overlap=16)
    shapes: list[int] = []
    forward = second_order.token_entropies

    def counted(model: SecondOrderModel, input_ids_BT: torch.Tensor) -> Entropies:
        shapes.append(input_ids_BT.numel())
        return forward(model, input_ids_BT)

    monkeypatch.setattr(second_order, "token_entropies", counted)
    monkeypatch.setattr(labelling, "BATCH_TOKENS", 40)
    small = label_documents(documents, everywhere(documents), labeller, window=32, overlap=16)
    assert len(shapes) > 3 and max(shapes) <= 40
    for one, other in zip(whole[ENTROPY], small[ENTROPY], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def provenance(method: Method) -> Provenance:
    return replace(PROVENANCE, method=method, tokenizer_sha256=None, vocabulary=97, window=16, overlap=8)


def test_a_unit_becomes_its_shard_and_receipt(tmp_path: Path) -> None:
    tiny_second_order().save_pretrained(tmp_path / "model")
    file = write_documents(
        tmp_path / "in.parquet", ["a", "b", "c"], input_ids=[ids.tolist() for ids in random_documents(5, 40, 3)]
    )
    run = Run(tmp_path / "out", (tmp_path / "model",), None, None, provenance("second-order"), units=2)
    annotator = Annotator(run, (load_labeller("second-order", tmp_path / "model", "cpu"),), tokenizer=None)
    receipt = annotator.annotate(Unit(0, str(file), 1, 3))
    rows = pq.read_table(run.output / "data" / receipt.shard).to_pylist()
    assert read_receipts(run.output) == {0: receipt}
    assert [row["num_tokens"] for row in rows] == [40, 3]
    assert (receipt.counts.rows, receipt.counts.tokens, receipt.counts.labelled_tokens) == (2, 43, 43)
    assert receipt.counts.nats == pytest.approx(sum(sum(row["entropy"]) for row in rows))


@pytest.mark.parametrize("method", ["exact", "second-order", "causal"])
def test_batch_invariant_labels_are_the_same_bits_whatever_is_beside_them(tmp_path: Path, method: Method) -> None:
    checkpoint(method).save_pretrained(tmp_path)
    labeller, documents = load_labeller(method, tmp_path, "cpu"), random_documents(40, 3, 25, 60, 1)

    def labels(chosen: list[np.ndarray]) -> list[np.ndarray]:
        return label_documents(chosen, everywhere(chosen), labeller, window=32, overlap=16, batch_invariant=True)[
            ENTROPY
        ]

    together = labels(documents)
    for place, ids in enumerate(documents):
        assert np.array_equal(labels([ids])[0], together[place])
    for one, other in zip(together, reversed(labels(documents[::-1])), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("method", ["exact", "second-order", "causal"])
def test_bfloat16_moves_labels_by_a_bounded_amount(tmp_path: Path, method: Method) -> None:
    """Seen with weights ten times the usual size: 0.06, 0.02 and 0.01 nats on average, 0.17, 0.08 and 0.07 at most."""
    checkpoint(method).save_pretrained(tmp_path)
    documents = random_documents(40, 25)
    exactly, roughly = (
        label_documents(
            documents, everywhere(documents), load_labeller(method, tmp_path, "cpu", dtype), window=32, overlap=16
        )[ENTROPY]
        for dtype in DTYPES
    )
    difference = np.abs(np.concatenate(exactly) - np.concatenate(roughly))
    assert 1e-4 < difference.mean() < 0.1 and difference.max() < 0.3


def checkpoint(method: Method) -> PreTrainedModel:
    models = {"exact": tiny_estimator, "second-order": tiny_second_order, "causal": tiny_language_model}
    return models[method]()


def test_a_document_of_half_a_million_tokens_is_labelled_to_its_end(tmp_path: Path) -> None:
    tiny_second_order(context=256).save_pretrained(tmp_path)
    (ids,) = random_documents(500_000)
    (labels,) = label_documents(
        [ids], everywhere([ids]), load_labeller("second-order", tmp_path, "cpu"), window=256, overlap=128
    )[ENTROPY]
    last = second_order.token_entropies(
        tiny_second_order(context=256), torch.from_numpy(ids[499_968 - 128 :][None]).long()
    )
    assert len(labels) == 500_000 and np.isfinite(labels).all()
    np.testing.assert_allclose(labels[-32:], last.entropy_BT[0, -32:], atol=1e-4)
