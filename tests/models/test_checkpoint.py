"""Checkpoint folders: what loads, what is refused and how."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from pipeline.models.checkpoint import (
    checkpoint_kind,
    checkpoint_sha256,
    context_and_vocabulary,
    load_causal,
    load_estimator,
    load_second_order,
    save_checkpoint,
)
from pipeline.models.language_model import new_language_model
from pipeline.models.transformer import llama_config
from tests.builders import random_tokens, tiny_estimator, tiny_second_order


def language_model() -> LlamaForCausalLM:
    return new_language_model(llama_config(vocab_size=97, width=24, layers=1, heads=2, context=32), start=0)


@pytest.fixture
def estimator_folder(tmp_path: Path) -> Path:
    save_checkpoint(tiny_estimator(), tmp_path / "estimator", dtype="float32", tokenizer_folder=None, card="# a card")
    return tmp_path / "estimator"


def test_each_kind_is_known_by_its_configuration(tmp_path: Path, estimator_folder: Path) -> None:
    tiny_second_order().save_pretrained(tmp_path / "second-order")
    language_model().save_pretrained(tmp_path / "causal")
    assert checkpoint_kind(estimator_folder) == "estimator"
    assert checkpoint_kind(tmp_path / "second-order") == "second-order"
    assert checkpoint_kind(tmp_path / "causal") == "causal"
    assert {context_and_vocabulary(tmp_path / name) for name in ("estimator", "second-order", "causal")} == {(32, 97)}
    assert load_second_order(tmp_path / "second-order").config.label_deviation == 2.0
    assert load_causal(tmp_path / "causal").config.vocab_size == 97


def test_a_checkpoint_saved_in_bfloat16_loads_in_float32(tmp_path: Path) -> None:
    losses_BT = tiny_estimator().token_losses(random_tokens(2, 9))
    save_checkpoint(tiny_estimator(), tmp_path, dtype="bfloat16", tokenizer_folder=None, card="")
    loaded = load_estimator(tmp_path)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded.token_losses(random_tokens(2, 9)), losses_BT, atol=0.3, rtol=0.1)


def test_the_wrong_kind_is_refused_by_name(estimator_folder: Path) -> None:
    with pytest.raises(ValueError, match="holds a checkpoint of kind estimator; this needs one of kind second-order"):
        load_second_order(estimator_folder)


def test_a_pickle_is_refused_unread(estimator_folder: Path) -> None:
    (estimator_folder / "model.safetensors").unlink()
    (estimator_folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"only pickled ones \(pytorch_model.bin\)"):
        load_estimator(estimator_folder)


def test_a_pickle_under_the_name_of_safetensors_is_refused(estimator_folder: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, estimator_folder / "model.safetensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_estimator(estimator_folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "has no config.json"), ("{", "is not JSON"), (json.dumps({"model_type": "bert"}), "of type 'bert'")],
)
def test_folders_that_are_no_checkpoint_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_estimator(tmp_path)


def test_the_digest_follows_the_weights(tmp_path: Path, estimator_folder: Path) -> None:
    before = checkpoint_sha256(estimator_folder)
    other = tiny_estimator()
    other.down.weight[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    assert checkpoint_sha256(tmp_path / "other") != before == checkpoint_sha256(estimator_folder)
