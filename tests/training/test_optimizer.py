"""The optimizer that joins Muon and AdamW. It is compared with two separate optimizers, and training is resumed."""

from copy import deepcopy
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.models.stacks import llama_config
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.optimizer import JoinedOptimizer, layer_matrices, new_optimizer
from pipeline.training.trainer import train

CONFIG = TrainingConfig(steps=6, learning_rate=0.01, evaluate_every=3, optimizer="muon")


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(llama_config(vocab_size=23, context=16, width=32, layers=2, heads=2))


def loss(model: nn.Module, batch: Batch) -> Tensor:
    value: Tensor = model(batch.input_ids_BT, labels=batch.input_ids_BT).loss
    return value


def batches() -> list[Batch]:
    tokens = torch.Generator().manual_seed(1)
    return [Batch(torch.randint(23, (3, 12), generator=tokens), torch.tensor([12] * 3)) for _ in range(CONFIG.steps)]


def names(model: nn.Module) -> set[str]:
    chosen = {id(parameter) for parameter in layer_matrices(model)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in chosen}


def test_matrices_of_layers_are_found_in_any_family() -> None:
    matrices = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.split(".")[-2] for name in names(llama())} == set(matrices) and len(names(llama())) == 14
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=23, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
    )
    assert len(names(gpt2)) == 8 and all(name.startswith("transformer.h.") for name in names(gpt2))
    estimator = EntropyEstimator(EstimatorConfig(vocab_size=23, context=16, decoder_width=96, decoder_layers=2))
    assert names(estimator) and all(".layers." in name for name in names(estimator))


def test_frozen_matrices_are_left_out() -> None:
    model = llama()
    model.model.layers[0].requires_grad_(False)
    assert len(names(model)) == 7
    trained = [each for group in new_optimizer(model, CONFIG).param_groups for each in group["params"]]
    assert all(parameter.requires_grad for parameter in trained)


def test_every_parameter_has_one_optimizer() -> None:
    model = llama()
    trained = [each for group in new_optimizer(model, CONFIG).param_groups for each in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, model.parameters()))


def test_steps_are_those_of_two_optimizers(tmp_path: Path) -> None:
    model, apart = llama(), llama()
    train(model, iter(batches()), loss, lambda _: {}, CONFIG, tmp_path)
    matrices = layer_matrices(apart)
    rest = [each for each in apart.parameters() if all(each is not matrix for matrix in matrices)]
    embeddings, vectors = [each for each in rest if each.ndim == 2], [each for each in rest if each.ndim == 1]
    optimizers = (
        Muon(matrices, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        AdamW([{"params": embeddings, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0}], betas=(0.9, 0.95)),
    )
    for step, batch in enumerate(batches(), 1):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = CONFIG.learning_rate_at(step)
        loss(apart, batch).backward()
        nn.utils.clip_grad_norm_(apart.parameters(), CONFIG.gradient_clip)
        for optimizer in optimizers:
            optimizer.step()  # type: ignore[no-untyped-call]
    for one, other in zip(model.parameters(), apart.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_steps_have_the_size_of_adamw_steps() -> None:
    """The size of a step is the root mean square of a matrix's change.

    The bounds are wide, because the updates of Muon are orthogonal only approximately, to within a third.
    """
    model, config = llama(), replace(CONFIG, weight_decay=0.0)
    before = deepcopy(model)
    optimizer = new_optimizer(model, config)
    loss(model, batches()[0]).backward()
    optimizer.step()
    for name in names(model):
        moved = model.get_parameter(name) - before.get_parameter(name)
        assert 0.1 < moved.square().mean().sqrt().item() / config.learning_rate < 0.3


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_training_ends_as_an_undisturbed_one(tmp_path: Path, stop: int) -> None:
    whole, parts, config = llama(), llama(), replace(CONFIG, save_every=1)
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    train(whole, iter(batches()), loss, lambda _: {}, config, tmp_path / "whole")
    train(llama(), islice(batches(), stop), loss, lambda _: {}, config, tmp_path / "parts")
    train(parts, iter(batches()), loss, lambda _: {}, config, tmp_path / "parts")
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_state_dict_returns_to_both_parts() -> None:
    model = llama()
    optimizer = new_optimizer(model, CONFIG)
    loss(model, batches()[0]).backward()
    optimizer.step()
    copied = deepcopy(model)
    other = new_optimizer(copied, CONFIG)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    for trained, its in ((model, optimizer), (copied, other)):
        its.zero_grad()
        loss(trained, batches()[1]).backward()
        its.step()
    assert isinstance(other, JoinedOptimizer)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copied.parameters(), strict=True))
