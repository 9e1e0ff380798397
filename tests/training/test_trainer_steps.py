"""Steps of several batches, compared with steps of one big batch: every loss, its gradients, and whole trainings."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.stacks import llama_config, new_language_model
from pipeline.training.batches import Batch
from pipeline.training.config import ObjectiveName, ObjectiveSettings, TrainingConfig
from pipeline.training.losses import ObjectiveLoss, document_loss, estimator_loss, second_order_loss
from pipeline.training.objectives import objective_function
from pipeline.training.penalties import penalty_function
from pipeline.training.trainer import joined, steps_of, train
from tests.forkserver import group
from tests.training import step_gradients

VOCABULARY = 23
CONFIG = TrainingConfig(steps=3, tokens_per_batch=40, learning_rate=0.01, evaluate_every=3)
FLOOD = objective_function(ObjectiveSettings(objective="flood"), 2.0)
PENALTY = penalty_function(ObjectiveSettings(**step_gradients.PENALTIES))  # type: ignore[arg-type]


def batches(seed: int, sizes: list[tuple[int, int]]) -> list[Batch]:
    """Return a batch for each (rows, longest row). The batches differ in tokens, padding and missing labels."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for rows, longest in sizes:
        lengths_B = torch.randint(1, longest + 1, (rows,), generator=random)
        lengths_B[0] = longest
        ids_BT = torch.randint(VOCABULARY, (rows, longest), generator=random)
        labels_BT = torch.rand(rows, longest, generator=random) * 4
        missing_BT = torch.rand(rows, longest, generator=random) < 0.5
        missing_BT |= torch.arange(longest) >= lengths_B.unsqueeze(1)
        missing_BT[0, 0] = False
        made.append(Batch(ids_BT, lengths_B, labels_BT.masked_fill(missing_BT, torch.nan)))
    return made


def estimator() -> nn.Module:
    sizes: dict[str, Any] = {
        "encoder_width": 8,
        "encoder_layers": 1,
        "decoder_width": 8,
        "decoder_layers": 1,
        "decoder_heads": 2,
    }
    return EntropyEstimator(EstimatorConfig(vocab_size=VOCABULARY, context=12, **sizes))


def language_model() -> nn.Module:
    return new_language_model(llama_config(vocab_size=VOCABULARY, width=8, layers=1, heads=2, context=12), start=0)


def second_order() -> nn.Module:
    stack = llama_config(vocab_size=VOCABULARY, width=8, layers=1, heads=2, context=12)
    return SecondOrderModel.from_scratch(stack, context=12, label_deviation=1.5)


LOSSES: dict[str, tuple[Callable[[], nn.Module], Callable[[Any, Batch], Tensor]]] = {
    "estimator": (estimator, estimator_loss),
    "flood": (language_model, ObjectiveLoss(FLOOD)),
    "flood with penalties": (language_model, ObjectiveLoss(FLOOD, penalty=PENALTY)),
    "documents": (language_model, partial(document_loss, start=0)),
    "flood of documents": (language_model, ObjectiveLoss(FLOOD, start=0)),
    "second-order": (second_order, partial(second_order_loss, causal_weight=0.7)),
}


@given(seed=st.integers(0, 99), sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 7)), min_size=1, max_size=4))
def test_the_whole_batch_of_a_step_holds_every_row(seed: int, sizes: list[tuple[int, int]]) -> None:
    parts = batches(seed, sizes)
    (step,) = steps_of(iter(parts), len(sizes))
    rows = [(batch, row) for batch in parts for row in range(len(batch.lengths_B))]
    for one in step:
        assert len(one.whole.lengths_B) == len(rows)
        for number, (batch, row) in enumerate(rows):
            length = int(batch.lengths_B[row])
            assert int(one.whole.lengths_B[number]) == length
            assert torch.equal(one.whole.input_ids_BT[number, :length], batch.input_ids_BT[row, :length])
            assert batch.labels_BT is not None and one.whole.labels_BT is not None
            labels_T = one.whole.labels_BT[number]
            torch.testing.assert_close(labels_T[:length], batch.labels_BT[row, :length], equal_nan=True)
            assert labels_T[length:].isnan().all()


def test_steps_take_batches_in_order_and_no_more() -> None:
    source = iter(batches(0, [(1, length) for length in range(1, 8)]))
    lengths = [[int(batch.lengths_B.max()) for batch in step] for step in steps_of(source, 3)]
    assert lengths == [[1, 2, 3], [4, 5, 6], [7]]
    source = iter(batches(0, [(1, 2)] * 7))
    next(steps_of(source, 3))
    assert len(list(source)) == 4


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("processes", [1, 2])
def test_losses_and_gradients_of_a_step_are_those_of_the_big_batch(name: str, processes: int) -> None:
    make, loss = LOSSES[name]
    parts = batches(3, [(2, 9), (3, 4), (1, 6)])
    (step,) = steps_of(iter(parts), 3)
    torch.manual_seed(0)
    model = make()
    expected = loss(model, joined(parts))
    expected.backward()
    gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
    model.zero_grad()
    found = torch.zeros(())
    for batch in step:
        for process in range(processes):
            part = loss(model, batch.part(process, processes))
            part.backward()
            found = found + part.detach()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("objective", get_args(ObjectiveName))
def test_a_process_without_rows_adds_nothing(objective: ObjectiveName) -> None:
    (batch,) = batches(1, [(1, 6)])
    model, function = language_model(), objective_function(ObjectiveSettings(objective=objective), 2.0)
    part = replace(batch, factors_BT=torch.ones(1, 6)).part(1, 2)
    loss = ObjectiveLoss(function)(model, part)  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


@pytest.mark.parametrize("name", LOSSES)
def test_accumulated_training_equals_training_on_big_batches(tmp_path: Path, name: str) -> None:
    make, loss = LOSSES[name]
    parts = batches(5, [(2, 9), (3, 4), (1, 6), (4, 5), (2, 2), (1, 9)])
    models, lines = [], []
    for accumulate in (1, 2):
        output = tmp_path / str(accumulate)
        output.mkdir()
        torch.manual_seed(0)
        model = make()
        source: Iterator[Batch] = iter(parts) if accumulate == 2 else (joined(parts[at : at + 2]) for at in (0, 2, 4))
        config = replace(CONFIG, accumulate=accumulate)
        lines.append(train(model, source, loss, lambda trained: {}, config, output))
        models.append(model)
    assert {**lines[0], "seconds": 0} == pytest.approx({**lines[1], "seconds": 0}, rel=1e-5)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)  # a fiftieth of any of AdamW's steps


@pytest.fixture(scope="module")
def whole_steps() -> dict[str, Tensor]:
    return dict(step_gradients.gradients("whole"))


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and len(expected) == 2 * len(get_args(ObjectiveName))
    for name, gradient in expected.items():
        assert gradient.norm() > 1e-2
        assert torch.allclose(found[name], gradient, atol=1e-6, rtol=1e-6), name


def test_every_objective_has_the_gradient_of_the_big_batch_when_it_accumulates(whole_steps: dict[str, Tensor]) -> None:
    assert_same_gradients(dict(step_gradients.gradients("parts")), whole_steps)


@pytest.mark.parametrize("way", ["whole", "parts"])
def test_every_objective_has_the_gradient_of_the_big_batch_in_two_processes(
    whole_steps: dict[str, Tensor], tmp_path: Path, way: str
) -> None:
    file = tmp_path / "gradients.safetensors"
    processes = group(2, "tests.training.step_gradients", way, file)
    assert [one.wait(200) for one in processes] == [0, 0], processes[0].communicate()
    assert_same_gradients(load_file(file), whole_steps)


@pytest.mark.parametrize("objective", ["flood-mean", "random-share", "reference-share", "loss-share"])
def test_a_part_of_a_step_cannot_be_compared_by_itself(objective: ObjectiveName) -> None:
    loss = ObjectiveLoss(objective_function(ObjectiveSettings(objective=objective), 2.0))
    (step,) = steps_of(iter(batches(3, [(2, 9), (3, 4)])), 2)
    with pytest.raises(AssertionError, match="a part of a step needs factors"):
        loss(language_model(), step[0])  # type: ignore[arg-type]
