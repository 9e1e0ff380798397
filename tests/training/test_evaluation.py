"""Evaluation on held-out documents, compared with loops and sums by hand, window by window."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.data.corpus import Corpus
from pipeline.models.quantization import KINDS, Codec, CodecKind, stored_losses
from pipeline.training.batches import Batch, Windowing
from pipeline.training.evaluation import (
    Accounting,
    causal_accounting,
    embedding_worth,
    held_out_batches,
    mean_of,
    r_squared,
    window_accounting,
    window_embeddings,
)
from tests.tiny_models import random_tokens, tiny_autoencoder, tiny_estimator, tiny_language_model

CPU = torch.device("cpu")


def documents(lengths: list[int]) -> Corpus:
    """Return a corpus in which the id of every token is the token's position in the whole corpus."""
    return Corpus(np.arange(sum(lengths), dtype=np.int32), np.cumsum([0, *lengths]))


def loss_of(token: int) -> float:
    return math.sin(token) + 2


def losses(batch: Batch) -> Tensor:
    return (batch.input_ids_BT.double().sin() + 2)[batch.real_BT]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=8).filter(any), st.integers(1, 12), st.integers(1, 50))
def test_a_mean_is_over_tokens_and_not_over_batches(lengths: list[int], window: int, budget: int) -> None:
    batches = held_out_batches(documents(lengths), Windowing(window, budget), CPU)
    expected = math.fsum(loss_of(token) for token in range(sum(lengths))) / sum(lengths)
    assert mean_of(map(losses, batches)) == pytest.approx(expected, rel=1e-12)


def test_sums_are_in_float64() -> None:
    mean = mean_of(torch.full((10_000,), 0.1, dtype=torch.float32) for _ in range(4))
    assert mean == pytest.approx(float(np.float32(0.1)), rel=1e-13)


def test_held_out_batches_are_always_the_same() -> None:
    corpus, windowing = documents([30, 5, 17]), Windowing(8, 20, varied=True)
    first, second = (
        [batch.input_ids_BT.tolist() for batch in held_out_batches(corpus, windowing, CPU)] for _ in range(2)
    )
    assert first == second


def test_r_squared_by_hand() -> None:
    truth_N = torch.tensor([1.0, 2.0, 3.0, 6.0])
    # the mean is 3, the variance 14 / 4; errors of 1, 0, 1, 2 have a mean square of 6 / 4
    assert r_squared(torch.tensor([2.0, 2.0, 2.0, 4.0]), truth_N) == pytest.approx(1 - 6 / 14)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-100, 100), min_size=2, max_size=20).filter(lambda values: len(set(values)) > 1))
def test_r_squared_is_one_for_the_truth_and_zero_for_its_mean(values: list[int]) -> None:
    truth_N = torch.tensor(values, dtype=torch.float64)
    assert r_squared(truth_N, truth_N) == 1
    assert r_squared(truth_N.mean().expand(len(values)), truth_N) == pytest.approx(0, abs=1e-12)


WINDOWING = Windowing(12, 40)
LENGTHS = [30, 0, 12, 1]
WINDOWS = [(0, 12), (12, 24), (24, 30), (30, 42), (42, 43)]
TOKENS_1N = random_tokens(1, sum(LENGTHS))


def few_documents(text_bytes: list[int] | None) -> Corpus:
    documents = np.split(TOKENS_1N[0].numpy().astype(np.int32), np.cumsum(LENGTHS)[:-1])
    return Corpus.of(documents, text_bytes=text_bytes)


def test_figures_by_hand() -> None:
    account = Accounting(tokens=5, windows=2, bytes=12, token_nats=15 * math.log(2), stored_bits=9)
    assert account.loss == pytest.approx(3 * math.log(2))
    assert account.normalized_loss == pytest.approx((15 + 9) * math.log(2) / 5)
    assert account.bits_per_byte == pytest.approx((15 + 9) / 12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [tiny_estimator, tiny_autoencoder])
def test_every_window_is_counted_once(make: type, kind: CodecKind) -> None:
    model = make()
    codec = Codec.calibrated(kind, window_embeddings(model, few_documents(None), WINDOWING))
    account = window_accounting(model, codec, few_documents([50, 0, 20, 7]), WINDOWING)
    assert (account.tokens, account.windows, account.bytes) == (43, 5, 77)
    alone = [
        stored_losses(model, codec, TOKENS_1N[:, start:stop], torch.tensor([stop - start])) for start, stop in WINDOWS
    ]
    assert account.token_nats == pytest.approx(sum(one.losses_BT.sum().item() for one in alone), rel=1e-5)
    assert account.stored_bits == sum(one.bits for one in alone) == 5 * model.config.embedding_width * codec.bits
    code_length = sum(one.code_lengths_B.sum().item() for one in alone)
    assert account.normalized_loss == pytest.approx(code_length / 43, rel=1e-5)
    assert account.bits_per_byte == pytest.approx(code_length / math.log(2) / 77, rel=1e-5)


def test_embeddings_are_those_of_all_windows() -> None:
    model = tiny_estimator()
    found_NE = window_embeddings(model, few_documents(None), WINDOWING)
    expected_NE = torch.cat([model.bottlenecks(TOKENS_1N[:, start:stop])[:, -1] for start, stop in WINDOWS])
    torch.testing.assert_close(found_NE.sort(dim=0).values, expected_NE.sort(dim=0).values, atol=1e-5, rtol=1e-5)


def test_a_causal_model_stores_nothing_but_tokens() -> None:
    model = tiny_language_model()
    account = causal_accounting(model, 5, few_documents([50, 0, 20, 7]), WINDOWING)
    expected = 0.0
    for start, stop in WINDOWS:
        ids_1T = torch.cat([torch.tensor([[5]]), TOKENS_1N[:, start:stop]], dim=1)
        logits_1TV = model(input_ids=ids_1T).logits[:, :-1]
        expected += torch.nn.functional.cross_entropy(logits_1TV[0], ids_1T[0, 1:], reduction="sum").item()
    assert account.token_nats == pytest.approx(expected, rel=1e-5)
    assert (account.tokens, account.windows, account.stored_bits) == (43, 5, 0)
    assert account.normalized_loss == account.loss


def test_documents_that_came_as_tokens_have_no_bits_per_byte() -> None:
    assert window_accounting(tiny_estimator(), Codec("float16"), few_documents(None), WINDOWING).bits_per_byte is None


def test_the_worth_of_embeddings_is_the_difference_to_those_of_the_next_document() -> None:
    model, lengths = tiny_estimator(), [40, 9, 0, 23]
    tokens = [random_tokens(1, length, seed=length)[0].numpy() for length in lengths]
    worth = embedding_worth(model, Corpus.of(tokens), Windowing(16, 64))
    parts = [torch.from_numpy(each).split(16) for each in tokens if len(each)]
    saved = []
    for index, windows in enumerate(parts):
        others, total = parts[(index + 1) % len(parts)], 0.0
        order = sorted(windows, key=len, reverse=True)
        other = sorted(others, key=len, reverse=True)
        for place, window_T in enumerate(order):
            ids_1T, length_1 = window_T.unsqueeze(0), torch.tensor([len(window_T)])
            of_other_1E = model.bottlenecks(other[place % len(other)].unsqueeze(0))[:, -1]
            total += float(model.decode_losses(of_other_1E, ids_1T, length_1).sum())
            total -= float(model.token_losses(ids_1T).sum())
        saved.append(total / sum(map(len, windows)))
    assert worth.mean == pytest.approx(np.mean(saved), abs=1e-4)
    assert worth.error == pytest.approx(1.96 * np.std(saved, ddof=1) / 3**0.5, abs=1e-4)
    with pytest.raises(ValueError, match="needs two documents"):
        embedding_worth(model, Corpus.of(tokens[:1]), Windowing(16, 64))
