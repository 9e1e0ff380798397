"""Checkpoints that come with the project: small, complete, and good enough for a fault to show."""

import pytest
import torch
from transformers import AutoTokenizer

from pipeline.data.corpus import Corpus
from pipeline.data.tokenizer import encode, load_tokenizer, tokenizer_sha256
from pipeline.labels import exact, second_order
from pipeline.models.checkpoint import SHIPPED
from pipeline.models.loading import load_estimator, load_second_order
from tests.builders import sample_texts

FOLDERS = ("tokenizer", "estimator", "second-order")


@pytest.fixture(scope="module")
def input_ids_BT() -> torch.Tensor:
    """Return four windows of help text, on which neither the estimator nor the second-order model was trained."""
    ids = Corpus.of(encode(load_tokenizer(SHIPPED / "tokenizer"), sample_texts(4, 3000))).tokens_N
    return torch.from_numpy(ids[: 4 * 96]).long().view(4, 96)


def test_they_have_at_most_sixteen_megabytes_and_no_pickle() -> None:
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 16_000_000
    assert {file.suffix for file in files} == {".json", ".jsonl", ".md", ".safetensors"}


@pytest.mark.parametrize("name", FOLDERS)
def test_each_has_a_card_with_the_command_that_made_it_and_the_one_tokenizer(name: str) -> None:
    assert "python -m jobs.train_" in (SHIPPED / name / "README.md").read_text(encoding="utf-8")
    assert tokenizer_sha256(SHIPPED / name) == tokenizer_sha256(SHIPPED / "tokenizer")
    assert AutoTokenizer.from_pretrained(SHIPPED / name).bos_token_id == 0


def test_the_estimator_knows_its_language(input_ids_BT: torch.Tensor) -> None:
    """Uniform guessing costs ln 8192 = 9.01 nats per token."""
    assert load_estimator(SHIPPED / "estimator").token_losses(input_ids_BT).mean() < 6.5


def test_second_order_labels_rise_with_the_exact_ones_and_are_lower(input_ids_BT: torch.Tensor) -> None:
    """The second-order model learned SmolLM2's labels, and SmolLM2 needs fewer nats for English than the estimator."""
    exact_BT = exact.token_entropies(load_estimator(SHIPPED / "estimator"), input_ids_BT)
    entropy_BT, expected_BT = second_order.token_entropies(load_second_order(SHIPPED / "second-order"), input_ids_BT)
    assert torch.corrcoef(torch.stack([entropy_BT.flatten(), exact_BT.flatten()]))[0, 1] > 0.6
    assert entropy_BT.mean() < exact_BT.mean() - 0.5
    correlation = torch.corrcoef(torch.stack([expected_BT.flatten(), exact_BT.flatten()]))[0, 1]
    assert correlation < 0.6  # the token is not seen
