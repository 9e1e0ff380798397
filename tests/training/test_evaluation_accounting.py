"""Accounting against sums by hand, window by window."""

import math

import numpy as np
import pytest
import torch

from pipeline.data.corpus import Corpus
from pipeline.models.quantization import KINDS, Codec, CodecKind, stored_losses
from pipeline.training.batches import Windowing
from pipeline.training.evaluation import Accounting, causal_accounting, window_accounting, window_embeddings
from tests.tiny_models import random_tokens, tiny_autoencoder, tiny_estimator, tiny_language_model

CUT = Windowing(12, 40)
LENGTHS = [30, 0, 12, 1]
WINDOWS = [(0, 12), (12, 24), (24, 30), (30, 42), (42, 43)]
TOKENS_1N = random_tokens(1, sum(LENGTHS))


def corpus(text_bytes: list[int] | None) -> Corpus:
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
    codec = Codec.calibrated(kind, window_embeddings(model, corpus(None), CUT))
    account = window_accounting(model, codec, corpus([50, 0, 20, 7]), CUT)
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
    found_NE = window_embeddings(model, corpus(None), CUT)
    expected_NE = torch.cat([model.bottlenecks(TOKENS_1N[:, start:stop])[:, -1] for start, stop in WINDOWS])
    torch.testing.assert_close(found_NE.sort(dim=0).values, expected_NE.sort(dim=0).values, atol=1e-5, rtol=1e-5)


def test_a_causal_model_stores_nothing_but_tokens() -> None:
    model = tiny_language_model()
    account = causal_accounting(model, 5, corpus([50, 0, 20, 7]), CUT)
    expected = 0.0
    for start, stop in WINDOWS:
        ids_1T = torch.cat([torch.tensor([[5]]), TOKENS_1N[:, start:stop]], dim=1)
        logits_1TV = model(input_ids=ids_1T).logits[:, :-1]
        expected += torch.nn.functional.cross_entropy(logits_1TV[0], ids_1T[0, 1:], reduction="sum").item()
    assert account.token_nats == pytest.approx(expected, rel=1e-5)
    assert (account.tokens, account.windows, account.stored_bits) == (43, 5, 0)
    assert account.normalized_loss == account.loss


def test_documents_that_came_as_tokens_have_no_bits_per_byte() -> None:
    assert window_accounting(tiny_estimator(), Codec("float16"), corpus(None), CUT).bits_per_byte is None
