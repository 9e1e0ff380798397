"""Training on JSON lines whose text has another key than `text`."""

import gzip
import json
from pathlib import Path

from pipeline.data.tokenizer import load_tokenizer
from tests.builders import sample_texts
from tests.conftest import RunCommand

SIZES = ("--model.context", 16, "--model.encoder-width", 16, "--model.decoder-width", 24, "--model.decoder-heads", 2)
STEPS = ("--training.steps", 2, "--training.evaluate-every", 2, "--training.tokens-per-batch", 64)


def test_a_tokenizer_and_an_estimator_learn_from_compressed_json_lines(run_command: RunCommand, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"body": text, "n": index}) + "\n" for index, text in enumerate(sample_texts(12, 300)))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    documents = ("--input", tmp_path, "--text-column", "body")
    tokenizer, estimator = tmp_path / "tokenizer", tmp_path / "estimator"
    assert run_command("jobs.train_tokenizer", *documents, "--vocabulary", 300, "--output", tokenizer) == 0
    assert load_tokenizer(tokenizer).get_vocab_size() == 300
    train = ("jobs.train_estimator", "--input", tmp_path / "*.gz", "--text-column", "body", "--tokenizer", tokenizer)
    assert run_command(*train, *SIZES, *STEPS, "--output", estimator) == 0
    assert "11 documents" in (estimator / "README.md").read_text(encoding="utf-8")
    assert run_command("jobs.train_tokenizer", "--input", tmp_path / "*.gz", "--output", tmp_path / "none") == 1
