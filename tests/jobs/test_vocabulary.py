"""Training on a tokenizer with gaps in its ids: its highest id is above the number of its tokens."""

import json
from pathlib import Path

import pytest

from pipeline.data.annotated import find_annotations
from pipeline.data.tokenizer import encode, load_tokenizer, train_byte_pairs
from tests.annotated import write_annotated
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand

HIGHEST = 999
TRAINING = ("--training.steps", 2, "--training.tokens-per-batch", 256, "--held-out", 2)
SIZES = ("--model.context", 16, "--model.width", 8, "--model.layers", 1, "--model.heads", 2)
ENCODER = (
    *("--model.context", 16, "--model.encoder-width", 8, "--model.encoder-layers", 1),
    *("--model.decoder-width", 8, "--model.decoder-layers", 1, "--model.decoder-heads", 2),
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """Write a tokenizer of 280 tokens. The token `e` has the id 999, and the ids of all other tokens are below 280."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    parts = json.loads(train_byte_pairs(sample_texts(4), 280).to_str())
    parts["model"]["vocab"]["e"] = HIGHEST
    (folder / "tokenizer.json").write_text(json.dumps(parts), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|endoftext|>"}), encoding="utf-8")
    return folder


def labels(folder: Path, tokenizer: Path) -> Path:
    """Write an annotated dataset with the tokens of this tokenizer.

    As in older datasets, the recorded vocabulary is the number of tokens, which is below the highest id.
    """
    loaded, subset = load_tokenizer(tokenizer), folder / "tokenizer" / "exact"
    documents = [ids.tolist() for ids in encode(loaded, sample_texts(8, 200))]
    assert HIGHEST in documents[-1]
    nats = [[1.0] * len(ids) for ids in documents]
    write_annotated(folder, documents, nats, vocabulary=loaded.get_vocab_size())
    subset.mkdir(parents=True)
    for file in tokenizer.iterdir():
        (subset / file.name).write_bytes(file.read_bytes())
    return folder


def test_an_estimator_has_a_row_for_every_id(run_command: RunCommand, tokenizer: Path, tmp_path: Path) -> None:
    documents = write_documents(tmp_path / "a.parquet", sample_texts(8, 200))
    arguments = ("--input", documents, "--tokenizer", tokenizer, *ENCODER, *TRAINING)
    assert run_command("jobs.train_estimator", *arguments, "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["vocab_size"] == HIGHEST + 1


@pytest.mark.parametrize("job", ["language_model", "second_order"])
def test_models_trained_on_labels_have_a_row_for_every_id(
    run_command: RunCommand, tokenizer: Path, tmp_path: Path, job: str
) -> None:
    dataset = labels(tmp_path / "labels", tokenizer)
    assert find_annotations(str(dataset)).vocabulary == HIGHEST + 1
    arguments = ("--labels", dataset, *SIZES, *TRAINING)
    assert run_command(f"jobs.train_{job}", *arguments, "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["vocab_size"] == HIGHEST + 1


def test_a_language_model_of_another_tokenizer_has_a_row_for_every_id(
    run_command: RunCommand, tokenizer: Path, tmp_path: Path
) -> None:
    dataset = labels(tmp_path / "labels", tokenizer)
    arguments = ("--labels", dataset, "--tokenizer", tokenizer, *SIZES, *TRAINING)
    assert run_command("jobs.train_language_model", *arguments, "--output", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["vocab_size"] == HIGHEST + 1
