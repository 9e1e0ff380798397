"""Checkpoint folders that load, folders that are refused, and the error messages."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from pipeline.models.checkpoint import SHIPPED, Checkpoint, copy_tokenizer, fold_folder
from pipeline.models.loading import (
    load_autoencoder,
    load_causal,
    load_estimator,
    load_second_order,
    require_complete,
    save_checkpoint,
)
from pipeline.models.stacks import llama_config, new_language_model
from tests.hub import Hub
from tests.models.architectures import CONTEXT, VOCABULARY, tiny_causal
from tests.tiny_models import random_tokens, tiny_autoencoder, tiny_estimator, tiny_second_order


def language_model() -> PreTrainedModel:
    return new_language_model(llama_config(vocab_size=97, width=24, layers=1, heads=2, context=32), start=0)


@pytest.fixture
def estimator_folder(tmp_path: Path) -> Path:
    save_checkpoint(tiny_estimator(), tmp_path / "estimator", dtype="float32", tokenizer_folder=None, card="# a card")
    return tmp_path / "estimator"


def test_the_configuration_tells_the_kind(tmp_path: Path, estimator_folder: Path) -> None:
    tiny_second_order().save_pretrained(tmp_path / "second-order")
    language_model().save_pretrained(tmp_path / "causal")
    tiny_autoencoder(context=32).save_pretrained(tmp_path / "autoencoder")
    assert Checkpoint(estimator_folder).kind == "estimator"
    assert Checkpoint(tmp_path / "autoencoder").kind == "autoencoder"
    assert Checkpoint(tmp_path / "second-order").kind == "second-order"
    assert Checkpoint(tmp_path / "causal").kind == "causal"
    kinds = ("estimator", "autoencoder", "second-order", "causal")
    checkpoints = [Checkpoint(tmp_path / name) for name in kinds]
    assert {(checkpoint.context, checkpoint.vocabulary) for checkpoint in checkpoints} == {(32, 97)}
    assert load_autoencoder(tmp_path / "autoencoder").config.given == "unrolled"
    assert load_second_order(tmp_path / "second-order").config.label_deviation == 2.0
    assert load_causal(tmp_path / "causal").config.vocab_size == 97


def test_classes_named_lm_head_model_are_causal_too(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=97, n_positions=32, n_embd=24, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.kind, checkpoint.context, checkpoint.vocabulary) == ("causal", 31, 97)
    assert load_causal(tmp_path).config.vocab_size == 97


def test_a_checkpoint_saved_in_bfloat16_loads_in_float32(tmp_path: Path) -> None:
    losses_BT = tiny_estimator().token_losses(random_tokens(2, 9))
    save_checkpoint(tiny_estimator(), tmp_path, dtype="bfloat16", tokenizer_folder=None, card="")
    loaded = load_estimator(tmp_path)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded.token_losses(random_tokens(2, 9)), losses_BT, atol=0.3, rtol=0.1)


def test_loading_in_bfloat16_rounds_weights_but_not_rotary_frequencies(tmp_path: Path) -> None:
    """If the frequencies were rounded too, the mean error at a distance of 2,000 tokens would be 1.7 times as large."""
    models = {
        "estimator": (tiny_estimator(), load_estimator),
        "autoencoder": (tiny_autoencoder(), load_autoencoder),
        "second-order": (tiny_second_order(), load_second_order),
        "causal": (language_model(), load_causal),
    }
    for name, (model, load) in models.items():
        model.save_pretrained(tmp_path / name)
        loaded = load(tmp_path / name, "cpu", "bfloat16")
        assert {weight.dtype for weight in loaded.parameters()} == {torch.bfloat16}
        buffers = dict(model.named_buffers())
        assert any("inv_freq" in buffer for buffer in buffers)
        for buffer, value in loaded.named_buffers():
            assert torch.equal(value, buffers[buffer]), f"{name}: {buffer}"


CONTEXTS = {
    "max_position_embeddings": (65, 64),
    "n_positions": (65, 64),
    "max_seq_len": (65, 64),
    "seq_length": (65, 64),
    "n_ctx": (65, 64),
    "context_length": (65, 64),
    "max_target_positions": (65, 64),
    "model_max_length": (65, 64),
    "num_hidden_layers": (65, None),
    "max_sequence_length": (-1, None),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_context_is_found_under_every_name_in_configurations(tmp_path: Path, name: str) -> None:
    said, context = CONTEXTS[name]
    config = {"architectures": ["BloomForCausalLM"], "vocab_size": 97, name: said}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert (Checkpoint(tmp_path).context, Checkpoint(tmp_path).vocabulary) == (context, 97)
    (tmp_path / "config.json").write_text(
        json.dumps({**config, "n_positions": None, "max_position_embeddings": None}), encoding="utf-8"
    )
    assert Checkpoint(tmp_path).context == (None if name in ("max_position_embeddings", "n_positions") else context)


def test_a_model_of_text_and_images_is_causal_with_its_text_configuration(tmp_path: Path) -> None:
    tiny_causal("gemma3").save_pretrained(tmp_path)
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.kind, checkpoint.context, checkpoint.vocabulary) == ("causal", CONTEXT - 1, VOCABULARY)
    assert load_causal(tmp_path).config.model_type == "gemma3"


def without(folder: Path, weight: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[weight]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def reshaped(folder: Path, weight: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[weight] = weights[weight][:-1].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_code(folder: Path, weight: str) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    code = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": code}), encoding="utf-8")
    (folder / "code.py").write_text("raise SystemExit('this must not be run')", encoding="utf-8")


def of_tomorrow(folder: Path, weight: str) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama99"}), encoding="utf-8")


FAULTS: dict[Callable[[Path, str], None], str] = {
    without: r"causal lacks weights: model.layers.0.mlp.up_proj.weight; fetch or save it again",
    reshaped: r"the weights of .*causal do not fit its config.json",
    with_code: r"causal cannot be loaded: it needs code of its own, which is never run; name another checkpoint",
    of_tomorrow: r"causal cannot be loaded: .*llama99",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_faulty_checkpoint_is_refused_before_any_weight_is_read(
    tmp_path: Path, fault: Callable[[Path, str], None]
) -> None:
    folder = tmp_path / "causal"
    language_model().save_pretrained(folder)
    require_complete(folder, "causal")
    fault(folder, "model.layers.0.mlp.up_proj.weight")
    for check in (lambda: require_complete(folder, "causal"), lambda: load_causal(folder)):
        with pytest.raises(ValueError, match=FAULTS[fault]) as raised:
            check()
        assert "\n" not in str(raised.value)


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
def test_folders_that_are_not_checkpoints_are_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_estimator(tmp_path)


def test_the_digest_changes_with_the_weights(tmp_path: Path, estimator_folder: Path) -> None:
    before = Checkpoint(estimator_folder).sha256
    other = tiny_estimator()
    other.down.get_parameter("weight")[0, 0] += 1
    other.save_pretrained(tmp_path / "other")
    assert Checkpoint(tmp_path / "other").sha256 != before == Checkpoint(estimator_folder).sha256


def test_a_folder_of_folds_has_one_checkpoint_per_fold(tmp_path: Path) -> None:
    assert Checkpoint(tmp_path).folds == (Checkpoint(tmp_path),)
    for fold in range(2):
        tiny_estimator().save_pretrained(fold_folder(tmp_path, fold, 2))
    checkpoint = Checkpoint(tmp_path)
    assert [member.name for member in checkpoint.folds] == ["fold-0-of-2", "fold-1-of-2"]
    assert checkpoint.sha256 != checkpoint.folds[0].sha256
    (tmp_path / "fold-1-of-2").rename(tmp_path / "fold-2-of-3")
    with pytest.raises(ValueError, match="does not hold 2 folds: see fold-1-of-2"):
        assert Checkpoint(tmp_path).folds


def test_a_name_is_looked_up_as_a_folder_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user" / "name").mkdir(parents=True)
    assert Checkpoint.find("user/name") == Checkpoint(Path("user/name"))


def test_a_model_of_the_hub_is_fetched_without_its_pickles(hub: Hub, estimator_folder: Path) -> None:
    files = {file.name: file.read_bytes() for file in estimator_folder.iterdir()}
    first = hub.add("user/name", {**files, "pytorch_model.bin": b"\x80\x04."}, kind="models")
    hub.add("user/name", {"README.md": b"a new card"}, kind="models")
    checkpoint = Checkpoint.find(f"user/name@{first}")
    folder = checkpoint.folder
    assert folder.name == first and checkpoint.name == f"user/name@{first}"
    assert load_estimator(folder).config.bottleneck_width == 3
    assert not (folder / "pytorch_model.bin").exists()
    assert not any(request.path.endswith("pytorch_model.bin") for request in hub.requests)
    assert Checkpoint.find("user/name").folder != folder
    with pytest.raises(ValueError, match="no folder user/other, and no model of that name"):
        Checkpoint.find("user/other")
    with pytest.raises(ValueError, match="no folder user/name@absent, and no model of that name"):
        Checkpoint.find("user/name@absent")
    with pytest.raises(ValueError, match="no folder no such name"):
        Checkpoint.find("no such name")


def test_copying_a_tokenizer_replaces_a_link_instead_of_its_target(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokenizer.json").symlink_to(tmp_path / "secret")
    copy_tokenizer(SHIPPED / "tokenizer", tmp_path / "out")
    assert (tmp_path / "secret").read_text(encoding="utf-8") == "secret"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        copied = tmp_path / "out" / name
        assert not copied.is_symlink() and copied.read_bytes() == (SHIPPED / "tokenizer" / name).read_bytes()
    before = sorted(file.name for file in (tmp_path / "out").iterdir())
    copy_tokenizer(tmp_path / "out", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == before and len(before) == 2
