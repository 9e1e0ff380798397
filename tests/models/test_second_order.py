"""The second-order model: the tokens that its outputs read, its direct and residual forms, and warm starts.

The seeing output has read the token whose entropy it estimates. The expecting output has read only the tokens before
this token.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Categorical
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.labels import causal
from pipeline.models.backbone import Backbone
from pipeline.models.causal_lm import next_token_losses, prepend_start
from pipeline.models.loading import load_second_order, require_complete
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.sizes import Form
from tests.families import FAMILIES, START, WITHOUT_POSITIONS, tiny_of_family
from tests.tiny_models import frozen, random_tokens, tiny_estimator, tiny_language_model, tiny_second_order


@pytest.mark.parametrize("changed", [0, 3, 7])
def test_seeing_reads_the_token_itself_and_expecting_only_what_is_before(changed: int) -> None:
    model, input_ids_BT = tiny_second_order(), random_tokens(1, 8)
    other_BT = input_ids_BT.clone()
    other_BT[0, changed] = (other_BT[0, changed] + 1) % 97
    before, after = model.entropies(input_ids_BT), model.entropies(other_BT)
    seeing_T = (after.entropy_BT - before.entropy_BT)[0].abs()
    expecting_T = (after.expected_entropy_BT - before.expected_entropy_BT)[0].abs()
    assert seeing_T[:changed].lt(1e-5).all()
    assert seeing_T[changed] > 1e-4
    assert expecting_T[: changed + 1].lt(1e-5).all()
    assert changed == 7 or expecting_T[changed + 1] > 1e-4


def test_outputs_are_in_nats() -> None:
    model = tiny_second_order()
    model.seeing.weight.zero_()
    model.seeing.bias.fill_(0.5)
    assert model.entropies(random_tokens(2, 5)).entropy_BT.eq(3.0 + 2.0 * 0.5).all()


def test_a_model_from_an_estimator_has_its_decoder() -> None:
    estimator, input_ids_BT = tiny_estimator(), random_tokens(2, 9)
    model = SecondOrderModel.from_estimator(estimator, label_mean=3.0, label_deviation=2.0)
    start_BD = estimator.introduced(torch.zeros(2, 3))
    hidden_BTD = estimator.decode(start_BD, input_ids_BT)
    expected_BT = 3.0 + 2.0 * model.expecting(hidden_BTD).squeeze(-1)
    torch.testing.assert_close(model.entropies(input_ids_BT).expected_entropy_BT, expected_BT, atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_weight() -> None:
    model = tiny_second_order().requires_grad_(True)
    entropy_BT, expected_BT = model.entropies(random_tokens(4, 12))
    (entropy_BT.square().mean() + expected_BT.square().mean()).backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_a_residual_model_starts_with_the_language_models_values() -> None:
    language_model, input_ids_BT = tiny_language_model(), random_tokens(2, 9)
    model = SecondOrderModel.from_language_model(language_model, form="residual", label_deviation=2.0)
    entropy_BT, expected_BT = model.entropies(input_ids_BT)
    logits_BTV = language_model(input_ids=prepend_start(input_ids_BT, 5)).logits
    surprisal_BT = cross_entropy(logits_BTV.transpose(1, 2), input_ids_BT, reduction="none")
    torch.testing.assert_close(entropy_BT, surprisal_BT, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(expected_BT, Categorical(logits=logits_BTV).entropy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", ["direct", "residual"])
@pytest.mark.parametrize("family", [*FAMILIES, *WITHOUT_POSITIONS])
def test_models_of_many_families_are_copied_completely_and_load_unchanged(
    family: str, form: Form, tmp_path: Path
) -> None:
    language_model, input_ids_BT = tiny_of_family(family), random_tokens(3, 20, vocabulary=31)
    made = SecondOrderModel.from_language_model(language_model, form=form, transformers=2, context=32)
    made.save_pretrained(tmp_path)
    model = load_second_order(tmp_path)
    estimates, surprisal_BT, _ = model(input_ids_BT, with_surprisal=True)
    logits_BTV = language_model(input_ids=prepend_start(input_ids_BT, START)).logits.float()
    losses_BT = cross_entropy(logits_BTV.transpose(1, 2), input_ids_BT, reduction="none")
    assert losses_BT.std() > 0.3, "too much alike to tell anything"
    torch.testing.assert_close(surprisal_BT, losses_BT, atol=1e-4, rtol=1e-4)
    if form == "residual":
        torch.testing.assert_close(estimates.entropy_BT, losses_BT, atol=1e-4, rtol=1e-4)
        expected_BT = Categorical(logits=logits_BTV).entropy()
        torch.testing.assert_close(estimates.expected_entropy_BT, expected_BT, atol=1e-4, rtol=1e-4)
        in_half = load_second_order(tmp_path, dtype="bfloat16").entropies(input_ids_BT)
        assert (in_half.entropy_BT - losses_BT).abs().mean() < 0.1 * losses_BT.std()


@pytest.mark.parametrize("family", ["phi, bias", "gemma 2, soft cap", "cohere, scale"])
def test_a_head_is_trained_with_its_scale_and_soft_cap(family: str) -> None:
    language_model, input_ids_BT = tiny_of_family(family), random_tokens(2, 9, vocabulary=31)
    model = frozen(SecondOrderModel.from_language_model(language_model, form="residual")).requires_grad_(True)
    estimates = model(input_ids_BT).entropies
    estimates.entropy_BT.sum().backward()
    language_model.requires_grad_(True)
    logits_BTV = language_model(input_ids=prepend_start(input_ids_BT, START)).logits
    cross_entropy(logits_BTV.transpose(1, 2), input_ids_BT, reduction="sum").backward()
    module = language_model.get_output_embeddings()
    torch.testing.assert_close(model.language_head.weight_VD.grad, module.weight.grad, atol=1e-4, rtol=1e-4)
    if family == "phi, bias":
        assert model.head_bias is not None
        torch.testing.assert_close(model.head_bias.grad, module.bias.grad, atol=1e-4, rtol=1e-4)


def test_with_a_frozen_head_all_other_weights_get_gradients() -> None:
    model = SecondOrderModel.from_language_model(tiny_of_family("phi, bias"))
    model.freeze_head()
    entropy_BT, expected_BT = model.entropies(random_tokens(2, 9, vocabulary=31))
    (entropy_BT.square().sum() + expected_BT.square().sum()).backward()
    assert [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None] == []


def test_a_model_without_positions_needs_a_context() -> None:
    with pytest.raises(ValueError, match="does not say how many positions it has; give a context"):
        SecondOrderModel.from_language_model(tiny_of_family("mamba, state space"))


def test_a_model_with_more_state_than_its_weights_is_refused() -> None:
    language_model = tiny_language_model()
    language_model.model.norm.register_forward_hook(lambda module, inputs, hidden: hidden.flip(-1))
    with pytest.raises(ValueError, match="the losses of LlamaForCausalLM change when its weights are copied"):
        SecondOrderModel.from_language_model(language_model)


def test_a_checkpoint_without_a_start_token_has_a_learned_start(tmp_path: Path) -> None:
    model, input_ids_BT = tiny_second_order(), random_tokens(2, 9)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    for name in ("start_token", "head_bias", "width"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = load_second_order(tmp_path)
    assert loaded.start is not None and model.start is not None and torch.equal(loaded.start.weight, model.start.weight)
    for again, before in zip(loaded.entropies(input_ids_BT), model.entropies(input_ids_BT), strict=True):
        assert torch.equal(again, before)


def test_a_residual_model_corrects_in_nats() -> None:
    model = SecondOrderModel.from_language_model(tiny_language_model(), form="residual", label_deviation=2.0)
    input_ids_BT = random_tokens(2, 9)
    before = model.entropies(input_ids_BT)
    with torch.no_grad():
        model.seeing.bias.fill_(0.5)
        model.expecting.bias.fill_(-1.0)
    after = model.entropies(input_ids_BT)
    torch.testing.assert_close(after.entropy_BT, before.entropy_BT + 1.0)
    torch.testing.assert_close(after.expected_entropy_BT, before.expected_entropy_BT - 2.0)


def test_a_gain_multiplies_what_the_language_model_computes() -> None:
    settings: dict[str, Any] = {"form": "residual", "gain": True, "label_deviation": 2.0}
    model = SecondOrderModel.from_language_model(tiny_language_model(), **settings)
    input_ids_BT = random_tokens(2, 9)
    before = model.entropies(input_ids_BT)
    with torch.no_grad():
        model.seeing.bias.copy_(torch.tensor([0.5, -0.25]))
        model.expecting.bias.copy_(torch.tensor([-1.0, 0.125]))
    after = model.entropies(input_ids_BT)
    torch.testing.assert_close(after.entropy_BT, 0.75 * before.entropy_BT + 1.0)
    torch.testing.assert_close(after.expected_entropy_BT, 1.125 * before.expected_entropy_BT - 2.0)


@pytest.mark.parametrize("gain", [False, True])
def test_a_model_that_is_trained_further_keeps_its_estimates_and_has_a_gain(gain: bool) -> None:
    settings: dict[str, Any] = {"form": "residual", "gain": gain, "label_deviation": 2.0}
    model = SecondOrderModel.from_language_model(tiny_language_model(), **settings)
    for output in (model.seeing, model.expecting):
        torch.nn.init.normal_(output.weight, std=0.1)
        torch.nn.init.normal_(output.bias)
    input_ids_BT = random_tokens(2, 9)
    before = model.entropies(input_ids_BT)
    model.continue_on(context=16, label_mean=4.0, label_deviation=3.0)
    torch.testing.assert_close(model.entropies(input_ids_BT), before)
    assert model.config.gain
    entropy_BT, expected_BT = model.entropies(input_ids_BT)
    (entropy_BT.sum() + expected_BT.sum()).backward()
    for output in (model.seeing, model.expecting):
        assert output.weight.grad is not None and output.weight.grad.ne(0).any(dim=1).all()


def test_two_transformers_share_nothing_but_the_start() -> None:
    model = SecondOrderModel.from_language_model(tiny_language_model(), transformers=2).requires_grad_(True)
    input_ids_BT = random_tokens(3, 7)
    one = SecondOrderModel.from_language_model(tiny_language_model())
    one.load_state_dict(model.state_dict(), strict=False)
    for both, alone in zip(model.entropies(input_ids_BT), one.entropies(input_ids_BT), strict=True):
        torch.testing.assert_close(both, alone)
    model.entropies(input_ids_BT).expected_entropy_BT.sum().backward()
    assert all(weight.grad is None for weight in model.transformer.parameters())
    assert model.expecting_transformer is not None
    assert any(weight.grad is not None for weight in model.expecting_transformer.parameters())


@pytest.mark.parametrize("form", ["direct", "residual"])
def test_own_surprisal_equals_that_of_a_language_model_with_a_separate_head(form: Form) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=31, n_positions=20, n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=False)
    config.bos_token_id, config.initializer_range = 3, 0.2
    language_model, input_ids_BT = frozen(GPT2LMHeadModel(config)), random_tokens(2, 9, vocabulary=31)
    model = frozen(SecondOrderModel.from_language_model(language_model, form=form))
    surprisal_BT = model(input_ids_BT, with_surprisal=True).losses_BT
    expected_BT = next_token_losses(language_model, prepend_start(input_ids_BT, 3), input_ids_BT)
    torch.testing.assert_close(surprisal_BT, expected_BT, atol=1e-4, rtol=1e-4)
    assert model.config.context == 19


@pytest.mark.parametrize(
    "settings", [{}, {"form": "residual"}, {"form": "residual", "gain": True}, {"transformers": 2}]
)
def test_every_form_loads_unchanged(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = frozen(SecondOrderModel.from_language_model(tiny_language_model(), label_mean=1.0, **settings))
    model.save_pretrained(tmp_path)
    loaded, input_ids_BT = load_second_order(tmp_path), random_tokens(2, 9)
    for again, before in zip(loaded.entropies(input_ids_BT), model.entropies(input_ids_BT), strict=True):
        assert torch.equal(again, before)


def test_labelling_and_training_compute_the_same() -> None:
    model = SecondOrderModel.from_language_model(tiny_language_model(), form="residual")
    input_ids_BT = random_tokens(2, 9)
    trained = model.entropies(input_ids_BT)
    with torch.no_grad():
        labelled = model.entropies(input_ids_BT)
    for one, other in zip(trained, labelled, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("tuning", ["frozen", "lora"])
@pytest.mark.parametrize("family", ["llama, head of its own", "gpt-j, bias", "gemma 2, soft cap", "cohere, scale"])
def test_a_model_around_a_language_model_stores_what_was_trained(
    family: str, tuning: str, held: bool, tmp_path: Path
) -> None:
    pytest.importorskip("peft") if tuning == "lora" else None
    tiny_of_family(family).save_pretrained(tmp_path / "model")
    backbone, language_model = Backbone.named(str(tmp_path / "model"), held=held), tiny_of_family(family)
    settings: dict[str, Any] = {"tuning": tuning, "lora_rank": 2, "label_deviation": 2.0, "gain": held}
    model = SecondOrderModel.around_language_model(language_model, backbone, start=START, **settings)
    model.eval()  # type: ignore[no-untyped-call]
    input_ids_BT = random_tokens(2, 9, vocabulary=31)
    own_BT = causal.token_entropies(tiny_of_family(family), input_ids_BT, START)
    with torch.no_grad():
        torch.testing.assert_close(model.entropies(input_ids_BT).entropy_BT, own_BT, atol=1e-5, rtol=1e-5)

    model.train()
    model(input_ids_BT)[0].entropy_BT.mean().backward()
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name in trained if name.startswith(("seeing.", "expecting.")) or "lora_" in name}
    assert {"seeing.weight", "expecting.bias"} <= trained and any("lora_" in name for name in trained) == (
        tuning == "lora"
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in trained:
                weight.add_(0.05 * torch.randn(weight.shape))
    model.save_pretrained(tmp_path / "saved")
    require_complete(tmp_path / "saved", "second-order")
    loaded = load_second_order(tmp_path / "saved")
    model.eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for mine, theirs in zip(model.entropies(input_ids_BT), loaded.entropies(input_ids_BT), strict=True):
            torch.testing.assert_close(mine, theirs)
        assert (loaded.entropies(input_ids_BT).entropy_BT - own_BT).abs().max() > 0.01
    stored = sorted(file.relative_to(tmp_path / "saved").as_posix() for file in (tmp_path / "saved").rglob("*.saf*"))
    assert stored == (["decoder/model.safetensors"] if held else []) + ["model.safetensors"]
    half = load_second_order(tmp_path / "saved", dtype="bfloat16")
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        assert (half.entropies(input_ids_BT).entropy_BT - loaded.entropies(input_ids_BT).entropy_BT).abs().mean() < 0.1
