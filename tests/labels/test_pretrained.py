"""A published language model: SmolLM2 labels English, and the nats are transferred to the shipped tokenizer's tokens.

S tokens of SmolLM2, T tokens of the shipped tokenizer, B rows.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.labels import exact, second_order
from pipeline.labels.causal import token_entropies
from pipeline.labels.retokenize import Tokens, encode_with_ends, move_nats
from pipeline.labels.torch_labeller import TorchLabeller, in_parts
from pipeline.models.causal_lm import start_token
from pipeline.models.checkpoint import SHIPPED
from pipeline.models.loading import load_causal, load_estimator, load_second_order
from schemas.annotations import ENTROPY
from tests.builders import sample_texts
from tests.engine.fakes import label_documents
from tests.smollm2 import INSTALLED, SEPARATOR, smollm2_folder

pytestmark = [pytest.mark.pretrained, pytest.mark.skipif(not INSTALLED, reason="`make pretrained` was not run")]


@dataclass(frozen=True)
class Pretrained:
    """SmolLM2, its tokenizer, and the id of the token that separated documents in its pretraining."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    separator: int


@dataclass(frozen=True)
class Labelled:
    """Sample texts, with each text's SmolLM2 tokens and an array of the tokens' nats."""

    texts: list[str]
    tokens: list[Tokens]
    nats: list[np.ndarray]


@pytest.fixture(scope="session")
def smollm2() -> Pretrained:
    folder = smollm2_folder()
    tokenizer = load_tokenizer(folder)
    return Pretrained(load_causal(folder), tokenizer, tokenizer.get_vocab()[SEPARATOR])


@pytest.fixture(scope="session")
def labelled(smollm2: Pretrained) -> Labelled:
    texts = sample_texts(2, 1500)
    tokens = encode_with_ends(smollm2.tokenizer, texts)
    return Labelled(texts, tokens, nats_of(smollm2, [ids_S for ids_S, _ in tokens], smollm2.separator))


def nats_of(smollm2: Pretrained, documents: list[np.ndarray], start: int) -> list[np.ndarray]:
    """Return labels from windows of 320 tokens that overlap by 64."""
    losses = partial(in_parts, lambda ids, _: {ENTROPY: token_entropies(smollm2.model, ids, start)})
    labeller = TorchLabeller({ENTROPY: ()}, losses, "cpu", 16384, 16384)
    return label_documents(documents, labeller, window=320, overlap=64)[ENTROPY]


def test_english_costs_about_one_bit_per_byte(labelled: Labelled) -> None:
    """Measured: 0.99 bits per byte. Random guesses among 49,152 tokens would cost 3.8 bits per byte."""
    for nats_S, (ids_S, _) in zip(labelled.nats, labelled.tokens, strict=True):
        assert len(nats_S) == len(ids_S) and np.isfinite(nats_S).all()
    bits = np.concatenate(labelled.nats).sum() / np.log(2)
    bits_a_byte = bits / sum(len(text.encode()) for text in labelled.texts)
    print(f"{bits_a_byte:.4f} bits a byte, perplexity {np.exp(np.concatenate(labelled.nats).mean()):.2f}")
    assert 0.8 < bits_a_byte < 1.2


def test_the_nats_move_to_the_tokens_of_our_tokenizer(labelled: Labelled) -> None:
    ours = load_tokenizer(SHIPPED / "tokenizer")
    plain_ids = encode(ours, labelled.texts)
    for nats_S, (_, ends_S), tokens, ids_T in zip(
        labelled.nats, labelled.tokens, encode_with_ends(ours, labelled.texts), plain_ids, strict=True
    ):
        nats_T = move_nats(nats_S, ends_S, tokens.ends_T)
        assert len(nats_T) == len(ids_T) != len(nats_S)
        np.testing.assert_array_equal(tokens.ids_T, ids_T)
        np.testing.assert_allclose(nats_T.sum(dtype=float), nats_S.sum(dtype=float), rtol=1e-4)


def test_its_pupil_is_nearer_to_it_than_the_exact_labels(labelled: Labelled) -> None:
    """Labels of the shipped second-order model must be nearer to SmolLM2's than exact labels of the shipped estimator.

    The second-order model has learned SmolLM2's labels of other texts. The estimator has learned no labels.
    """
    tokens = encode_with_ends(load_tokenizer(SHIPPED / "tokenizer"), labelled.texts)
    moved = [
        move_nats(nats_S, ends_S, each.ends_T)
        for nats_S, (_, ends_S), each in zip(labelled.nats, labelled.tokens, tokens, strict=True)
    ]
    pupil, estimator = load_second_order(SHIPPED / "second-order"), load_estimator(SHIPPED / "estimator")
    errors = list[tuple[float, float]]()
    for nats_T, each in zip(moved, tokens, strict=True):
        ids_1T = torch.from_numpy(each.ids_T[:256]).long().unsqueeze(0)
        labels = second_order.token_entropies(pupil, ids_1T)[0], exact.token_entropies(estimator, ids_1T)
        errors.append(tuple(np.abs(of_1T[0].numpy() - nats_T[:256]).mean() for of_1T in labels))
    second, first = np.mean(errors, axis=0)
    print(f"mean absolute difference from SmolLM2: pupil {second:.2f}, exact {first:.2f} nats")
    assert second < 0.8 * first


def test_a_random_string_costs_more_than_a_repeated_phrase(smollm2: Pretrained) -> None:
    parts = [
        "The gate to the garden was closed again. " * 2,
        "The gate to the garden was closed again. ",
        "xqv7kz2wpj0u",
    ]
    ids_S, ends_S = encode_with_ends(smollm2.tokenizer, ["".join(parts)])[0]
    (nats_S,) = nats_of(smollm2, [ids_S], smollm2.separator)
    ends_P = np.cumsum([len(part) for part in parts], dtype=float)
    first_two, repeated, random = move_nats(nats_S, ends_S, ends_P) / np.diff(ends_P, prepend=0)
    print(f"nats a byte: phrase {first_two:.2f}, said again {repeated:.3f}, random string {random:.2f}")
    assert random > 10 * repeated and random > first_two > repeated


def test_the_separator_of_pretraining_is_a_better_start_than_the_declared_one(
    smollm2: Pretrained, labelled: Labelled
) -> None:
    heads = [ids_S[:16] for ids_S, _ in labelled.tokens]
    declared = start_token(smollm2.model.config)
    assert declared == smollm2.tokenizer.token_to_id("<|im_start|>")
    separator, chat = (np.concatenate(nats_of(smollm2, heads, start)) for start in (smollm2.separator, declared))
    print(
        f"first 16 tokens: {separator.mean():.2f} nats each after the separator, {chat.mean():.2f} after the declared"
    )
    assert separator.mean() < chat.mean()
