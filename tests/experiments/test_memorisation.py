"""Memorised nats of documents.

Repeated documents have the most memorised nats. Sums equal a loop over tokens, and intervals agree with a bootstrap.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.corpus import Corpus
from pipeline.experiments.document_reader import DocumentReader, audited
from pipeline.experiments.memorisation import (
    Audit,
    AuditedDocument,
    Comparison,
    Rate,
    by_value,
    markdown,
    most_memorised,
    nats_above,
    summed,
)
from pipeline.experiments.sources import Drawn, MarkovChain, draw, rows_of_different_entropy
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.stacks import llama_config, new_language_model
from pipeline.training.batches import Windowing, endless_batches
from pipeline.training.losses import document_loss
from tests.annotated import write_annotated
from tests.tiny_models import chain_language_model

SYMBOLS, TOKENS = 31, 24
NATS = st.floats(-3, 20, width=32)
LABELLED = st.lists(st.tuples(NATS | st.just(math.nan), NATS), max_size=30)


def trained(documents: np.ndarray, steps: int, folder: Path) -> DocumentReader:
    """Train a language model for some seconds on documents of one length, and return its reader."""
    torch.manual_seed(0)
    config = llama_config(vocab_size=SYMBOLS + 1, width=32, layers=2, heads=2, context=TOKENS)
    model: PreTrainedModel = new_language_model(config, start=SYMBOLS)
    batches = endless_batches([Corpus.of(list(documents.astype(np.int32)))], Windowing(TOKENS, 32 * TOKENS), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    loss = partial(document_loss, start=SYMBOLS)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, next(batches)).backward()
        optimizer.step()
    return saved(model, folder)


def saved(model: PreTrainedModel, folder: Path) -> DocumentReader:
    model.save_pretrained(folder)
    return DocumentReader.load(Checkpoint(folder), None)


def labelled(drawn: Drawn, labels: np.ndarray, folder: Path) -> AnnotatedDataset:
    settings: dict[str, Any] = {"vocabulary": SYMBOLS, "tokenizer_sha256": None}
    return find_annotations(str(write_annotated(folder, drawn.tokens_MT.tolist(), labels.tolist(), **settings)))


def generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_repeated_documents_come_first(tmp_path: Path) -> None:
    """Three of 403 documents occur 24 times each, the others once. The labels are the source's own surprisals."""
    source = MarkovChain(np.random.default_rng(0).dirichlet(np.ones(SYMBOLS), SYMBOLS) + 1e-3)
    copies = np.where(np.isin(np.arange(403), planted := [7, 90, 160]), 24, 1)
    seen = Drawn(*(np.repeat(values_MT, copies, axis=0) for values_MT in draw(source, 403, TOKENS, generator(1))))
    unseen = draw(source, 150, TOKENS, generator(2))
    reader = trained(seen.tokens_MT, 120, tmp_path / "model")
    of_unseen = audited(labelled(unseen, unseen.surprisal_MT, tmp_path / "unseen"), reader, None, None)
    found = audited(labelled(seen, seen.surprisal_MT, tmp_path / "seen"), reader, None, None)
    baseline, rows = Rate.of(of_unseen.documents), np.repeat(np.arange(403), copies)
    for least in (None, baseline):
        first = most_memorised(found.documents, least, 4)
        assert {int(rows[document.row]) for document in first[:3]} == {*planted}
        assert [found.copies[document.digest] for document in first] == [24, 24, 24, 1]
        assert first[2].comparison.memorised > 2 * first[3].comparison.memorised
    once = [document for document in found.documents if found.copies[document.digest] == 1]
    every, others = (Rate.of(documents).above(baseline) for documents in (found.documents, once))
    assert every.mean > 4 * others.mean > 4 * others.error > 0


def test_unseen_text_is_not_memorised_by_a_model_that_is_the_source(tmp_path: Path) -> None:
    """The labels are either the true surprisals or the true entropies.

    With surprisals as labels, no nats must count as memorised. With entropies as labels, the documents must have as
    many memorised nats per token as other unseen text.
    """
    table = rows_of_different_entropy(SYMBOLS, SYMBOLS, generator(0))
    reader = saved(chain_language_model(table, context=TOKENS), tmp_path / "model")
    one, other = (draw(MarkovChain(table), 300, TOKENS, generator(seed)) for seed in (1, 2))
    exact = audited(labelled(one, one.surprisal_MT, tmp_path / "exact"), reader, None, None)
    assert summed(exact.documents).memorised < 1e-3 * one.tokens_MT.size
    noisy, reference = (
        audited(labelled(drawn, drawn.entropy_MT, tmp_path / name), reader, None, None)
        for name, drawn in (("one", one), ("other", other))
    )
    rate, baseline = Rate.of(noisy.documents), Rate.of(reference.documents)
    wanted = np.maximum(one.entropy_MT - one.surprisal_MT, 0).mean()
    assert rate.mean == pytest.approx(wanted, abs=1e-3) and rate.mean > 0.2
    above = rate.above(baseline)
    assert abs(above.mean) < 1.5 * above.error < 0.05


def test_random_tokens_are_memorised_whole(tmp_path: Path) -> None:
    """N uniformly random tokens have N ln V nats. The model has memorised all of these nats except its own loss."""
    tokens_MT = generator(0).integers(SYMBOLS, size=(8, TOKENS))
    truth_MT = np.full(tokens_MT.shape, math.log(SYMBOLS))
    reader = trained(tokens_MT, 100, tmp_path / "model")
    found = audited(labelled(Drawn(tokens_MT, truth_MT, truth_MT), truth_MT, tmp_path / "labels"), reader, None, None)
    losses = reader.losses(list(tokens_MT), [np.full(TOKENS, True)] * 8)
    for document, losses_T in zip(found.documents, losses, strict=True):
        left, whole = float(losses_T.sum(dtype=np.float64)), TOKENS * math.log(SYMBOLS)
        assert losses_T.max() < math.log(SYMBOLS) and left < 0.2 * whole
        assert document.comparison.memorised == pytest.approx(whole - left, abs=TOKENS / 256)  # labels are rounded
        assert document.comparison.bits == pytest.approx((whole - left) / math.log(2), abs=TOKENS / 128)
        assert document.comparison.excess == 0


@given(st.lists(LABELLED, max_size=4))
def test_sums_equal_a_loop_over_tokens(documents: list[list[tuple[float, float]]]) -> None:
    tokens, memorised, excess, label = 0, 0.0, 0.0, 0.0
    for document in documents:
        for e, nats in document:
            if not math.isnan(e):
                tokens, label = tokens + 1, label + e
                memorised, excess = memorised + max(e - nats, 0), excess + max(nats - e, 0)
    arrays = [np.array(document, np.float32).reshape(-1, 2).T for document in documents]
    found = summed(document_of(row, Comparison.of(*each)) for row, each in enumerate(arrays))
    assert found.tokens == tokens
    assert (found.label, found.memorised, found.excess) == pytest.approx((label, memorised, excess))
    if tokens:
        losses = sum(nats for document in documents for e, nats in document if not math.isnan(e))
        assert found.difference == pytest.approx((losses - label) / tokens, abs=1e-9)


def document_of(
    row: int, comparison: Comparison, *, digest: bytes | None = None, value: str | None = None
) -> AuditedDocument:
    return AuditedDocument(row, str(row).encode() if digest is None else digest, comparison, value, None)


def random_documents(count: int, seed: int) -> list[AuditedDocument]:
    """Draw documents of different lengths, whose memorised nats per token differ, too."""
    random = np.random.default_rng(seed)
    lengths = random.integers(5, 200, count).tolist()
    return [
        document_of(row, Comparison(tokens, 2.0 * tokens, tokens * float(random.gamma(2, 0.1)), 0.3 * tokens))
        for row, tokens in enumerate(lengths)
    ]


def test_the_interval_is_that_of_a_bootstrap_over_distinct_documents() -> None:
    documents, random = random_documents(120, 0), np.random.default_rng(1)
    figures = np.array([(each.comparison.memorised, each.comparison.tokens) for each in documents])
    drawn = [figures[random.integers(120, size=120)].sum(axis=0) for _ in range(4000)]
    spread = float(np.std([nats / tokens for nats, tokens in drawn]))
    rate = Rate.of(documents)
    assert rate.error == pytest.approx(1.96 * spread, rel=0.1)
    assert Rate.of(documents * 10) == pytest.approx(rate)
    assert math.isnan(Rate.of(documents[:1] * 10).error) and str(Rate.of(documents[:1])).count("(") == 0
    other = Rate.of(random_documents(120, 2))
    assert rate.above(other) == pytest.approx((rate.mean - other.mean, math.hypot(rate.error, other.error)))


def test_a_baseline_changes_the_order_of_documents() -> None:
    long, short = document_of(0, Comparison(1000, memorised=100.0)), document_of(1, Comparison(100, memorised=60.0))
    assert most_memorised([long, short], None, 2) == [long, short]
    assert most_memorised([long, short, short], Rate(0.1, 0.01), 2) == [short, long]
    assert nats_above(long, Rate(0.1, 0.01)) == pytest.approx(0) and nats_above(short, None) == 60


def test_groups_are_the_largest_values_and_the_others() -> None:
    sizes = {"a": 5, "b": 9, None: 7, "c": 1}
    documents = [document_of(row, Comparison(tokens), value=value) for row, (value, tokens) in enumerate(sizes.items())]
    groups = {name: summed(members).tokens for name, members in by_value(documents, 2)}
    assert groups == {"b": 9, "null": 7, "2 other values": 6}


def test_documents_that_are_left_out_are_told(tmp_path: Path) -> None:
    documents = [document_of(0, Comparison(2, 4.0, 1.0)), document_of(1, Comparison(2, 4.0, 1.0), digest=b"0")]
    dataset = find_annotations(str(write_annotated(tmp_path, [[1, 2], [3, 4]], [[2.0, 2.0]] * 2)))
    report = markdown(Audit(documents, 5, 7), None, dataset, by=None, groups=1, show=9)
    told = "2 documents, 1 of them distinct, 5 without labels left out, 7 left out because their labels cannot move."
    assert report.startswith(f"Audited: {told}")
    assert "| 0 | 2 | 2 | 1.0 | 0.5000 | 1 2 |" in report and "above unseen" not in report
