"""Model cards of trained checkpoints."""

import yaml
from huggingface_hub import ModelCard

from pipeline.models.model_card import command_line, model_card


def test_a_card_claims_no_licence_and_no_language() -> None:
    facts = {"parameters": 1234, "loss": 1.5, "started from": "scratch"}
    text = model_card("A model", "It counts.", facts, command="python -m jobs.x", tags=["counting"], usage="run it")
    data = yaml.safe_load(ModelCard(text).data.to_yaml())
    assert data == {"library_name": "transformers", "tags": ["counting"]}
    assert "| parameters | 1,234 |" in text and "| loss | 1.5 |" in text and "    python -m jobs.x\n" in text


def test_values_cannot_break_the_table() -> None:
    evil = "a|b\n# Evil\n<img src=x onerror=alert(1)>\u202e" + "c" * 10**6
    text = model_card("A model", "It.", {"started from": evil}, command="run", tags=["a"], usage="run")
    (row,) = [line for line in text.splitlines() if line.startswith("| started from")]
    assert row.startswith("| started from | a\\|b\\\\n\\# Evil\\\\n&lt;img src=x") and len(row) < 500
    assert "<img" not in text and "\u202e" not in text and "\n# Evil" not in text


def test_a_command_is_one_line_without_credentials() -> None:
    said = command_line("jobs.x", ["--input", "https://user:hunter@host/a", "b\nc"])
    assert said == "python -m jobs.x --input https://***@host/a 'b\\nc'"
