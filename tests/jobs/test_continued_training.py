"""Training with labels that starts from a checkpoint.

The new model takes over the checkpoint's weights, tokenizer and sizes. A checkpoint or a setting that does not fit is
refused.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.models.checkpoint import SHIPPED, Checkpoint, copy_tokenizer
from pipeline.models.loading import load_causal
from tests.annotated import write_annotated
from tests.builders import sample_texts
from tests.conftest import RunCommand
from tests.jobs.test_train_language_model import curve
from tests.tiny_models import tiny_language_model

JOB = "jobs.train_language_model"
STILL = ("--training.steps", 1, "--training.learning-rate", 1e-9, "--training.weight-decay", 0)
SMALL = ("--model.context", 24, "--held-out", 4, "--training.tokens-per-batch", 256)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    folder = tmp_path / "start"
    tiny_language_model(vocabulary=8192, context=32).save_pretrained(folder)
    copy_tokenizer(SHIPPED / "tokenizer", folder)
    return folder


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """Write a dataset of twenty texts in the shipped tokenizer's tokens, with random labels."""
    random = np.random.default_rng(0)
    tokens = [ids_N.tolist() for ids_N in encode(load_tokenizer(SHIPPED / "tokenizer"), sample_texts(20, 150))]
    folder = write_annotated(tmp_path / "labels", tokens, [random.gamma(2, size=len(ids)).tolist() for ids in tokens])
    copy_tokenizer(SHIPPED / "tokenizer", folder / "tokenizer" / "exact")
    return folder


def last(output: Path) -> dict[str, float]:
    record: dict[str, float] = json.loads((output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return record


def test_training_begins_with_the_weights_of_the_checkpoint(
    run_command: RunCommand, start: Path, labels: Path, tmp_path: Path
) -> None:
    arguments = ("--labels", labels, "--init-from", start, *SMALL, *STILL, "--objective", "cross-entropy")
    assert run_command(JOB, *arguments, "--output", tmp_path / "out") == 0
    trained, before = load_causal(tmp_path / "out"), load_causal(start)
    for one, other in zip(trained.parameters(), before.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    assert trained.config.max_position_embeddings == before.config.max_position_embeddings
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (start / "tokenizer.json").read_bytes()
    assert "started from" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_more_training_goes_on_from_a_finished_one(
    run_command: RunCommand, labels: Path, start: Path, tmp_path: Path
) -> None:
    more = ("--labels", labels, *SMALL, "--training.steps", 30, "--training.learning-rate", 0.01)
    assert run_command(JOB, *more, "--init-from", start, "--output", tmp_path / "first") == 0
    assert run_command(JOB, *more, "--init-from", tmp_path / "first", "--output", tmp_path / "second") == 0
    first, second = last(tmp_path / "first"), last(tmp_path / "second")
    assert second["training_loss"] < first["training_loss"]


def test_the_same_command_with_more_steps_goes_on_from_a_finished_output(
    run_command: RunCommand, labels: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read = (JOB, "--labels", labels, *SMALL, "--init-from", start, "--dropout", 0.1, "--stream", 400)
    command = (*read, "--training.decay", "trapezoid", "--training.warmup", 2, "--training.evaluate-every", 4)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    assert run_command(*command, "--training.steps", 10, "--output", parts) == 0
    assert load_causal(parts).config.vocab_size == 8192
    assert run_command(*command, "--training.steps", 10, "--output", parts) == 1
    assert "finished with 10 steps; give more steps to continue it" in capsys.readouterr().err
    for output in (parts, whole):
        assert run_command(*command, "--training.steps", 16, "--output", output) == 0
    one, other = (load_file(output / "model.safetensors") for output in (parts, whole))
    assert all(torch.equal(one[name], other[name]) for name in one | other)
    assert curve(parts) == curve(whole) and "16 steps, " in (parts / "README.md").read_text(encoding="utf-8")
    assert Checkpoint.find(str(parts)).sha256 == Checkpoint.find(str(whole)).sha256


def test_labels_move_to_the_tokens_of_the_checkpoint(
    run_command: RunCommand, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, other = tmp_path / "text.jsonl", tmp_path / "other"
    text.write_text("\n".join(json.dumps({"text": each}) for each in sample_texts(12, 150)), encoding="utf-8")
    assert run_command("jobs.train_tokenizer", "--input", text, "--output", other, "--vocabulary", 300) == 0
    annotate = ("pipeline.annotate", "--input", text, "--tokenizer", other, "--workers", 0)
    assert run_command(*annotate, "--output", tmp_path / "moved") == 0
    arguments = ("--labels", tmp_path / "moved", "--init-from", start, *SMALL, *STILL)
    assert run_command(JOB, *arguments, "--output", tmp_path / "out") == 0
    assert last(tmp_path / "out")["documents_left_out"] == 0
    assert load_causal(tmp_path / "out").config.vocab_size == 8192


def test_documents_of_token_ids_are_read_as_the_ids_of_the_checkpoint(
    run_command: RunCommand, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens, nats = [[5, 9, 300, 7] * 6] * 12, [[1.0] * 24] * 12
    few = write_annotated(tmp_path / "few", tokens, nats, vocabulary=400, tokenizer_sha256=None)
    assert run_command(JOB, "--labels", few, "--init-from", start, *SMALL, *STILL, "--output", tmp_path / "out") == 0
    many = write_annotated(tmp_path / "many", tokens, nats, vocabulary=9000, tokenizer_sha256=None)
    assert run_command(JOB, "--labels", many, "--init-from", start, *SMALL, "--output", tmp_path / "no") == 1
    assert "has 8,192 token ids, and the documents have 9,000" in capsys.readouterr().err


def test_another_checkpoint_does_not_continue_an_unfinished_training(
    run_command: RunCommand, start: Path, labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = ("--labels", labels, "--init-from", start, *SMALL, "--training.steps", 2, "--output", output)
    assert run_command(JOB, *arguments, "--training.learning-rate", 1e30) == 1  # not finite: unfinished
    tiny_language_model(vocabulary=8192, context=33).save_pretrained(start)
    capsys.readouterr()
    assert run_command(JOB, *arguments, "--training.learning-rate", 1e30) == 1
    assert "init_from_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model.width", 32), "a model takes its sizes from --init-from; of --model, give only --model.context"),
        (("--tokenizer", "somewhere"), "a model keeps the tokenizer of --init-from; leave out --tokenizer"),
        (("--model.context", 64), "--model.context is 64, but START reads at most 32 tokens; give fewer"),
        (("--init-from", SHIPPED / "estimator"), "holds a checkpoint of kind estimator"),
        (("--init-from", "nowhere"), "no folder nowhere, and no model of that name can be fetched from the Hub"),
        (("--init-from", "BARE"), "BARE has no tokenizer; add its tokenizer.json and tokenizer_config.json"),
        (("--init-from", "GPT2", "--dropout", 0.1), "--dropout is for models with the layers of Llama; GPT2LMHead"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    run_command: RunCommand,
    start: Path,
    labels: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    named = {"BARE": tmp_path / "bare", "GPT2": tmp_path / "gpt2"}
    tiny_language_model(vocabulary=8192, context=32).save_pretrained(named["BARE"])
    sizes: dict[str, Any] = {
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    GPT2LMHeadModel(GPT2Config(vocab_size=8192, **sizes)).save_pretrained(named["GPT2"])
    copy_tokenizer(SHIPPED / "tokenizer", named["GPT2"])
    given = [named.get(str(each), each) for each in arguments]
    settings = tmp_path / "settings.yaml"
    settings.write_text(yaml.safe_dump({"init-from": str(start), "model": {"context": 24}, "held-out": 4}), "utf-8")
    assert run_command(JOB, "--config", settings, "--labels", labels, *given, "--output", tmp_path / "out") == 1
    for name, folder in {"START": start, **named}.items():
        message = message.replace(name, str(folder)) if name != "GPT2" else message
    assert message in capsys.readouterr().err
