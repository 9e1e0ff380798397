"""The card of a checkpoint that somebody trained."""

import yaml
from huggingface_hub import ModelCard

from pipeline.models.card import model_card


def test_a_card_claims_no_licence_and_no_language() -> None:
    facts = {"parameters": 1234, "loss": 1.5, "started from": "scratch"}
    text = model_card("A model", "It counts.", facts, command="python -m jobs.x", tags=["counting"], usage="run it")
    data = yaml.safe_load(ModelCard(text).data.to_yaml())
    assert data == {"library_name": "transformers", "tags": ["counting"]}
    assert "| parameters | 1,234 |" in text and "| loss | 1.5 |" in text and "    python -m jobs.x\n" in text
