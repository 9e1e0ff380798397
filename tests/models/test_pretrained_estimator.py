"""Estimators that are built around a pretrained language model.

The tests cover model families, the places where the embedding enters, tuning, exact labels and checkpoints. Before
training, such an estimator has the losses of its language model.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.labels import causal
from pipeline.labels.exact import token_entropies
from pipeline.models.backbone import Backbone, record
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.loading import load_estimator, load_own_estimator, require_complete
from pipeline.models.pretrained_estimator import PretrainedEstimator, PretrainedEstimatorConfig
from tests.families import FAMILIES, START, WITHOUT_POSITIONS, tiny_of_family
from tests.tiny_models import frozen, random_tokens, tiny_language_model

ENTRIES: list[dict[str, Any]] = [
    {"entry": "logits"},
    {"entry": "every-token", "entry_layer": 1},
    {"entry": "start-token", "entry_layer": 0},
]
OF_ENTRY = [each["entry"] for each in ENTRIES]


def around(
    model: PreTrainedModel, second: PreTrainedModel | None = None, *, trained: bool = True, **settings: Any
) -> PretrainedEstimator:
    """Return an estimator around a language model.

    The embedding of a new estimator has no effect. If `trained` is True, the weights that introduce the embedding into
    the decoder are random, and the embedding has an effect.
    """
    torch.manual_seed(0)
    sizes = {"vocab_size": model.config.get_text_config().vocab_size, "context": 24, "bottleneck_width": 3}
    config = PretrainedEstimatorConfig(**{**sizes, "start_token": START, **settings})
    estimator = PretrainedEstimator(config, model, second)
    if trained:
        torch.nn.init.normal_(estimator.introduce.weight, std=0.5)
    estimator.eval()  # type: ignore[no-untyped-call]
    return estimator


def slow_entropies(estimator: PretrainedEstimator, tokens_T: Tensor) -> Tensor:
    """Return exact labels: differences between the code lengths of successive prefixes, with one pass per prefix."""
    codes = [estimator.token_losses(tokens_T[: n + 1].unsqueeze(0)).double().sum() for n in range(len(tokens_T))]
    return torch.stack(codes).diff(prepend=torch.zeros(1, dtype=torch.float64)).float()


@pytest.mark.parametrize("entry", ENTRIES, ids=OF_ENTRY)
@pytest.mark.parametrize("family", [*FAMILIES, *WITHOUT_POSITIONS])
def test_every_family_begins_with_its_own_losses_and_has_exact_labels(family: str, entry: dict[str, Any]) -> None:
    model, input_ids_BT = tiny_of_family(family), random_tokens(2, 10, vocabulary=31)
    untrained = around(model, trained=False, **entry)
    own_BT = causal.token_entropies(model, input_ids_BT, START)
    with torch.no_grad():
        assert (untrained.token_losses(input_ids_BT) - own_BT).abs().max() <= 1e-5
        estimator = around(model, **entry)
        labels_T = token_entropies(estimator, input_ids_BT)[1]
        assert (labels_T - slow_entropies(estimator, input_ids_BT[1])).abs().max() <= 1e-3
    assert (labels_T - own_BT[1]).abs().max() > 0.01


@pytest.mark.parametrize("entry", ENTRIES, ids=OF_ENTRY)
def test_padding_and_other_rows_change_no_loss(entry: dict[str, Any]) -> None:
    estimator, input_ids_BT = around(tiny_of_family("llama"), **entry), random_tokens(3, 12, vocabulary=31)
    losses_BT = estimator.token_losses(input_ids_BT, torch.tensor([12, 5, 1]))
    for row, length in enumerate([12, 5, 1]):
        alone_T = estimator.token_losses(input_ids_BT[row : row + 1, :length])[0]
        torch.testing.assert_close(losses_BT[row, :length], alone_T, atol=1e-5, rtol=1e-5)
        assert losses_BT[row, length:].eq(0).all()


@pytest.mark.parametrize("entry", ENTRIES, ids=OF_ENTRY)
def test_another_encoder_gives_other_embeddings(entry: dict[str, Any]) -> None:
    model, input_ids_BT = tiny_of_family("llama"), random_tokens(1, 9, vocabulary=31)
    separate = around(model, tiny_of_family("gpt-2, learned positions"), **entry)
    assert not separate.shares_states
    labels_BT = token_entropies(separate, input_ids_BT)
    torch.testing.assert_close(labels_BT[0], slow_entropies(separate, input_ids_BT[0]), atol=1e-3, rtol=0)
    assert (labels_BT - token_entropies(around(model, **entry), input_ids_BT)).abs().max() > 0.01


def test_a_window_of_the_whole_context_and_longer_texts_have_labels() -> None:
    estimator = around(tiny_of_family("llama"))
    assert token_entropies(estimator, random_tokens(1, 24, vocabulary=31)).isfinite().all()
    assert token_entropies(estimator, random_tokens(2, 61, vocabulary=31)).isfinite().all()


@pytest.mark.parametrize("tuning", ["frozen", "lora", "whole"])
@pytest.mark.parametrize("separate", [False, True])
def test_only_the_tuned_weights_have_gradients(tuning: str, separate: bool) -> None:
    pytest.importorskip("peft") if tuning == "lora" else None
    encoder = tiny_of_family("qwen 2") if separate else None
    estimator = around(tiny_of_family("llama"), encoder, tuning=tuning, lora_rank=2).train()
    estimator.token_losses(random_tokens(4, 12, vocabulary=31)).mean().backward()
    for name, weight in estimator.named_parameters():
        between = name.split(".")[0] in ("down", "up", "introduce")
        expected = between or tuning == "whole" or "lora_" in name
        assert weight.requires_grad == expected, name
        assert expected or weight.grad is None, name
    assert all(weight.grad is not None for weight in estimator.own_weights().values())


def test_a_frozen_model_has_no_dropout_in_training() -> None:
    model = tiny_of_family("gpt-2, learned positions")
    assert any(isinstance(each, torch.nn.Dropout) and each.p > 0 for each in model.modules())
    estimator, input_ids_BT = around(model), random_tokens(2, 9, vocabulary=31)
    before_BT = estimator.token_losses(input_ids_BT)
    estimator.train()
    torch.testing.assert_close(estimator.token_losses(input_ids_BT), before_BT)
    assert around(tiny_of_family("gpt-2, learned positions"), tuning="whole").train().language_model.training


def test_kept_states_give_the_same_losses_and_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator, input_ids_BT = around(tiny_of_family("llama")), random_tokens(3, 12, vocabulary=31)
    lengths_B = torch.tensor([12, 5, 1])
    expected_BT = estimator.token_losses(input_ids_BT, lengths_B)
    computed: list[int] = []
    states = estimator._states

    def counted(ids_BT: Tensor) -> Tensor:
        computed.append(len(ids_BT))
        return states(ids_BT)

    monkeypatch.setattr(estimator, "_states", counted)
    assert estimator.keep_states(20)
    for _ in range(3):
        torch.testing.assert_close(estimator.token_losses(input_ids_BT, lengths_B), expected_BT)
    # 13 and 2 positions are kept; the row between them has 6, for which there is no more room
    assert computed == [3, 1, 1]
    assert not around(tiny_of_family("llama"), entry="every-token").keep_states(20)
    assert not around(tiny_of_family("llama"), tuning="whole").keep_states(20)


def language_model_folder(folder: Path, family: str = "llama") -> Path:
    tiny_of_family(family).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tuning", ["frozen", "lora", "whole"])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_a_saved_estimator_loads_unchanged(tuning: str, held: bool, separate: bool, tmp_path: Path) -> None:
    pytest.importorskip("peft") if tuning == "lora" else None
    folder = language_model_folder(tmp_path / "model")
    named = record(Backbone.named(str(folder), held=held))
    second = tiny_of_family("llama") if separate else None
    records: dict[str, Any] = {"decoder": named, "encoder": named if separate else None}
    estimator = around(tiny_of_family("llama"), second, tuning=tuning, lora_rank=2, **records)
    with torch.no_grad():
        for weight in estimator.parameters():
            if weight.requires_grad:
                weight.add_(0.01 * torch.randn(weight.shape))
    estimator.save_pretrained(tmp_path / "saved")
    require_complete(tmp_path / "saved", "estimator")
    loaded, input_ids_BT = load_estimator(tmp_path / "saved"), random_tokens(2, 9, vocabulary=31)
    torch.testing.assert_close(loaded.token_losses(input_ids_BT), frozen(estimator).token_losses(input_ids_BT))
    stored = {file.relative_to(tmp_path / "saved").as_posix() for file in (tmp_path / "saved").rglob("*.safetensors")}
    roles = {f"{role}/model.safetensors" for role, each in records.items() if each is not None}
    assert stored == {"model.safetensors"} | (roles if held or tuning == "whole" else set())
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_bfloat16_gives_labels_of_about_the_same_value(tmp_path: Path) -> None:
    named = record(Backbone.named(str(language_model_folder(tmp_path / "model"))))
    around(tiny_of_family("llama"), decoder=named).save_pretrained(tmp_path / "saved")
    input_ids_BT = random_tokens(2, 20, vocabulary=31)
    full, half = (load_estimator(tmp_path / "saved", dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    differences_BT = token_entropies(half, input_ids_BT) - token_entropies(full, input_ids_BT)
    assert differences_BT.abs().mean() < 0.2


def test_a_changed_or_missing_language_model_is_refused(tmp_path: Path) -> None:
    named = record(Backbone.named(str(language_model_folder(tmp_path / "model"))))
    around(tiny_of_family("llama"), decoder=named).save_pretrained(tmp_path / "saved")
    language_model_folder(tmp_path / "model", "qwen 2")
    with pytest.raises(ValueError, match=r"whose weights or config\.json have changed"):
        load_estimator(tmp_path / "saved")
    (tmp_path / "model").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"no folder .*model"):
        load_estimator(tmp_path / "saved")


def test_a_name_on_the_hub_needs_its_commit_or_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = Checkpoint(language_model_folder(tmp_path / "copy"), "user/name@0f3c")
    monkeypatch.setattr(Checkpoint, "find", lambda _: fetched)
    assert Backbone.named("user/name") == Backbone("user/name@0f3c", fetched.sha256)
    assert Backbone("user/name@0f3c", "not read").checkpoint(tmp_path, "decoder") == fetched
    assert Backbone("user/name", fetched.sha256).checkpoint(tmp_path, "decoder") == fetched
    with pytest.raises(ValueError, match="have changed since"):
        Backbone("user/name", "another").checkpoint(tmp_path, "decoder")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"decoder": None}, "names no language model"),
        ({"decoder": {"name": 3, "sha256": "0"}}, "name is 3"),
        ({"decoder": {"name": "model"}}, "lacks sha256"),
        ({"bottleneck_width": 5}, "do not fit its config.json"),
        ({"entry": "every-token", "entry_layer": 9}, "above layer 9 of 2"),
        ({"entry": "elsewhere"}, "elsewhere"),
    ],
)
def test_a_broken_configuration_is_refused_in_one_line(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    named = record(Backbone.named(str(language_model_folder(tmp_path / "model"))))
    around(tiny_of_family("llama"), decoder=named).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=reason) as error:
        load_estimator(tmp_path / "saved")
    assert "\n" not in str(error.value)


def test_an_estimator_around_a_language_model_is_an_estimator_but_not_one_to_start_from(tmp_path: Path) -> None:
    named = record(Backbone.named(str(language_model_folder(tmp_path / "model"))))
    around(tiny_of_family("llama"), decoder=named).save_pretrained(tmp_path / "saved")
    checkpoint = Checkpoint(tmp_path / "saved")
    assert (checkpoint.kind, checkpoint.context, checkpoint.vocabulary) == ("estimator", 24, 31)
    with pytest.raises(ValueError, match="around a language model"):
        load_own_estimator(tmp_path / "saved")


def test_the_start_token_of_the_language_model_is_read() -> None:
    model, input_ids_BT = tiny_language_model(), random_tokens(1, 9)
    estimator = around(model, trained=False, start_token=5)
    own_BT = causal.token_entropies(model, input_ids_BT, 5)
    torch.testing.assert_close(estimator.token_losses(input_ids_BT), own_BT, atol=1e-5, rtol=0)
    assert (around(model, trained=False, start_token=6).token_losses(input_ids_BT) - own_BT).abs().max() > 1e-3
