"""The objectives in a real `transformers.Trainer`."""

import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainingArguments

from pipeline.training.config import ObjectiveName, ObjectiveSettings
from pipeline.training.hf_trainer import (
    IGNORED,
    EntropyCollator,
    EntropyWindows,
    entropy_loss,
    mean_cross_entropy,
    packed_labels,
    token_losses,
    unpacked_labels,
)
from tests.tiny_models import random_tokens, tiny_language_model

CONTEXT = 24
FLOOD = ObjectiveSettings()


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return documents of 3 and more tokens; every fifth label is missing."""
    documents = [random_tokens(1, 3 + row, seed=seed + row)[0].tolist() for row in range(count)]
    return [
        {"input_ids": ids, "entropy": [label(position, row) for position in range(len(ids))]}
        for row, ids in enumerate(documents)
    ]


def label(position: int, row: int) -> float | None:
    return None if (position + row) % 5 == 0 else (7 * position + row) % 11 / 2


def slow_loss(model: PreTrainedModel, documents: list[dict[str, Any]]) -> Tensor:
    """Return the mean of flood over all targets, computed document by document and token by token."""
    values = []
    for document in documents:
        ids_T = torch.tensor(document["input_ids"][:CONTEXT])
        logits_TV = model(input_ids=ids_T[None]).logits[0]
        for position in range(1, len(ids_T)):
            loss, nats = cross_entropy(logits_TV[position - 1], ids_T[position]), document["entropy"][position]
            values.append(loss if nats is None else (loss - nats).abs())
    return torch.stack(values).mean()


@given(
    ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9),
    nats=st.lists(st.floats(width=32, allow_infinity=False), min_size=9, max_size=9),
)
def test_labels_hold_both_numbers_bit_exactly(ids: list[int], nats: list[float]) -> None:
    ids_T, nats_T = torch.tensor(ids), torch.tensor(nats[: len(ids)], dtype=torch.float32)
    labels_T = torch.cat([packed_labels(ids_T, nats_T), torch.tensor([IGNORED])])
    found_T, entropies_T = unpacked_labels(labels_T)
    assert found_T.tolist() == [*ids, IGNORED] and math.isnan(entropies_T[-1])
    assert torch.equal(entropies_T[:-1].view(torch.int32), nats_T.view(torch.int32))
    assert (labels_T != IGNORED).sum() == len(ids)


def test_the_loss_is_the_objective_of_each_token_with_its_own_label() -> None:
    model, documents = tiny_language_model(), rows(4)
    batch = EntropyCollator(0, CONTEXT)(documents)
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    torch.testing.assert_close(entropy_loss(FLOOD)(outputs, batch["labels"]), slow_loss(model, documents))


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_shifted_labels_change_the_loss(shift: int) -> None:
    model, documents = tiny_language_model(), rows(4)
    shifted = [{**row, "entropy": row["entropy"][-shift:] + row["entropy"][:-shift]} for row in documents]
    batch = EntropyCollator(0, CONTEXT)(shifted)
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert (entropy_loss(FLOOD)(outputs, batch["labels"]) - slow_loss(model, documents)).abs() > 1e-2


def trainer(
    folder: Path, model: PreTrainedModel, documents: Any, objective: ObjectiveSettings, **arguments: Any
) -> Trainer:
    """Return a trainer with plain gradient steps on a CPU. By default, a step has one batch of six documents."""
    model.requires_grad_(True)
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 6,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        **arguments,
    }
    return Trainer(
        model,
        TrainingArguments(output_dir=str(folder), **settings),
        data_collator=EntropyCollator(0, CONTEXT),
        train_dataset=documents,
        eval_dataset=documents,
        compute_loss_func=entropy_loss(objective, mean_entropy=3.0),
        preprocess_logits_for_metrics=token_losses,
        compute_metrics=mean_cross_entropy,
    )


def weights(model: PreTrainedModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_trainer_takes_the_same_steps_as_an_explicit_loop(tmp_path: Path, accumulated: int) -> None:
    documents, trained, expected = rows(6), tiny_language_model().train(), tiny_language_model().train()
    batches = {"per_device_train_batch_size": 6 // accumulated, "gradient_accumulation_steps": accumulated}
    trainer(tmp_path, trained, documents, FLOOD, max_steps=3, **batches).train()
    expected.requires_grad_(True)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        slow_loss(expected, documents).backward()
        optimizer.step()
    for one, other in zip(trained.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.parametrize(
    "objective",
    [
        name if name in ("flood", "iflood") else pytest.param(name, marks=pytest.mark.long)
        for name in get_args(ObjectiveName)
    ],
)
def test_a_step_of_several_batches_equals_one_batch_or_is_refused(
    tmp_path: Path, objective: ObjectiveName, packed: bool
) -> None:
    documents = mapped(rows(6), packed=packed)
    models = {}
    for accumulated in (1, 3):
        torch.manual_seed(0)
        models[accumulated] = tiny_language_model().train()
        size = -(-len(documents) // accumulated)
        batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulated}
        settings = ObjectiveSettings(objective=objective, level=4.0)
        one = trainer(tmp_path, models[accumulated], documents, settings, max_steps=1, **batches)
        if accumulated > 1 and objective in ("flood-mean", "random-share", "reference-share", "loss-share"):
            with pytest.raises(ValueError, match=f"{objective} compares all tokens of a step, .*=1 and use one pro"):
                one.train()
            return
        one.train()
    before, whole, parts = (weights(model) for model in (tiny_language_model(), models[1], models[3]))
    assert (whole - before).norm() > 1e-4
    torch.testing.assert_close(parts, whole, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("packed", [False, True])
def test_penalties_are_those_of_each_target(packed: bool) -> None:
    model, documents = tiny_language_model(), mapped(rows(6), packed=packed)
    batch = EntropyCollator(0, CONTEXT)([*documents])
    logits_BTV = model(input_ids=batch["input_ids"]).logits.requires_grad_()
    smoothed = ObjectiveSettings(objective="cross-entropy", label_smoothing=0.2, z_loss=0.1)
    ids_BT = unpacked_labels(batch["labels"])[0][:, 1:]
    found = entropy_loss(smoothed)({"logits": logits_BTV}, batch["labels"])
    logsumexp_BT = logits_BTV[:, :-1].logsumexp(dim=2)
    expected = cross_entropy(logits_BTV[:, :-1].mT, ids_BT, ignore_index=IGNORED, label_smoothing=0.2)
    expected = expected + 0.1 * logsumexp_BT[ids_BT != IGNORED].square().mean()
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, logits_BTV)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_processes_that_count_targets_separately_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With average_tokens_across_devices=False, every process counts its own targets."""
    model, batch = tiny_language_model(), EntropyCollator(0, CONTEXT)(rows(4))
    outputs, loss = model(input_ids=batch["input_ids"]), entropy_loss(ObjectiveSettings(objective="random-share"))
    targets = (batch["labels"] != IGNORED).sum()
    assert loss(outputs, batch["labels"], targets).isfinite()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="compares all tokens of a step"):
        loss(outputs, batch["labels"], targets)


def test_a_trainer_counts_the_targets_whatever_its_version(tmp_path: Path) -> None:
    """Older versions of transformers count all labels, and newer versions exclude the first label of each row."""
    documents = [{"input_ids": [1] * tokens, "entropy": [1.0] * tokens} for tokens in (5, 40, 12, 23)]
    batch = EntropyCollator(0, 40)(documents)
    one = trainer(tmp_path, tiny_language_model(), documents, FLOOD, max_steps=1)
    assert one._get_num_items_in_batch([batch], torch.device("cpu")) == 80 - 4
    assert (batch["labels"] != IGNORED).sum() == (batch["labels"][:, 1:] != IGNORED).sum() == 76


def test_an_evaluation_shows_the_objective_and_cross_entropy(tmp_path: Path) -> None:
    documents, model = rows(6), tiny_language_model()
    metrics = trainer(tmp_path, model, documents, FLOOD, per_device_eval_batch_size=6).evaluate()
    assert metrics["eval_loss"] == pytest.approx(slow_loss(model, documents).item(), rel=1e-5)
    unlabelled = [{**row, "entropy": [None] * len(row["input_ids"])} for row in documents]
    plain = slow_loss(model, unlabelled).item()
    assert metrics["eval_cross_entropy"] == pytest.approx(plain, rel=1e-5)
    assert abs(plain - metrics["eval_loss"]) > 0.1
    in_parts = trainer(tmp_path, model, documents, FLOOD, per_device_eval_batch_size=4).evaluate()
    assert in_parts["eval_cross_entropy"] == pytest.approx(plain, rel=1e-5)


def mapped(documents: list[dict[str, Any]], **settings: Any) -> Dataset:
    """Cut documents into windows with `Dataset.map`, as a user does."""
    dataset = Dataset.from_list(documents)
    windows = EntropyWindows(context=CONTEXT, **settings)
    return dataset.map(windows, batched=True, remove_columns=dataset.column_names)


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), max_size=8),
    context=st.integers(2, 12),
    packed=st.booleans(),
    separator=st.none() | st.just(999),
)
def test_windows_cover_every_token_and_label(
    lengths: list[int], context: int, packed: bool, separator: int | None
) -> None:
    """All tokens differ. Each token is predicted once, except a document's first token if there is no separator."""
    starts = [sum(lengths[:position]) for position in range(len(lengths))]
    ids = [[*range(start, start + length)] for start, length in zip(starts, lengths, strict=True)]
    nats = [[None if token % 3 == 0 else token / 8 for token in document] for document in ids]
    windows = EntropyWindows(context=context, packed=packed, separator=separator)({"input_ids": ids, "entropy": nats})
    each = [dict(zip(windows, values, strict=True)) for values in zip(*windows.values(), strict=True)]
    assert all(1 <= len(row["input_ids"]) <= context for row in each)
    predicted: list[tuple[int, float]] = []
    read: set[int] = set()
    for row in each:
        read |= set(row["input_ids"])
        batch = EntropyCollator(0, context)([row])
        found, entropies = unpacked_labels(batch["labels"][0])
        predicted += [(int(id), float(nats)) for id, nats in zip(found, entropies, strict=True) if id != IGNORED]
    given = sorted(label for row in each for label in row["entropy"] if label is not None)
    assert given == [token / 8 for token in range(sum(lengths)) if token % 3]
    firsts = [start for start, length in zip(starts, lengths, strict=True) if length]
    assert read - {999} == set(range(sum(lengths)))
    assert sorted(id for id, _ in predicted) == [
        token for token in range(sum(lengths)) if separator is not None or token not in firsts
    ]
    assert all(math.isnan(nats) if id % 3 == 0 else nats == id / 8 for id, nats in predicted)


def test_a_long_document_is_cut_into_full_windows() -> None:
    found = EntropyWindows(context=1024)({"input_ids": [[1] * 5000], "entropy": [[1.0] * 5000]})["input_ids"]
    assert [len(ids) for ids in found] == [1024, 1024, 1024, 1024, 5000 - 4 * 1023]
    assert len(EntropyWindows(context=1024)({"input_ids": [[1] * 1024], "entropy": [[1.0] * 1024]})["input_ids"]) == 1
    with pytest.raises(ValueError, match="context of at least 2 tokens, not 1"):
        EntropyWindows(context=1)
    with pytest.raises(ValueError, match=r"a row has 5000 tokens, but the context is 24: cut .* dataset\.map"):
        EntropyCollator(0, CONTEXT)([{"input_ids": [1] * 5000, "entropy": [1.0] * 5000}])


@pytest.mark.parametrize("packed", [False, True])
def test_a_trainer_sees_every_token_of_the_dataset(tmp_path: Path, packed: bool) -> None:
    documents = rows(5) + [row for long in (60, 25, 24, 1) for row in one_row(long)]
    windows = mapped(documents, packed=packed)
    one = trainer(tmp_path, tiny_language_model().train(), windows, FLOOD, num_train_epochs=1, logging_steps=1)
    loss_of, seen = entropy_loss(FLOOD), list[int]()

    def counted(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        seen.append(int((labels != IGNORED).sum()))
        return loss_of(outputs, labels, num_items_in_batch)

    one.compute_loss_func = counted
    one.train()
    assert sum(seen) == sum(len(row["input_ids"]) for row in documents) - len(documents)


def one_row(tokens: int) -> list[dict[str, Any]]:
    ids = random_tokens(1, tokens, seed=tokens)[0].tolist()
    return [{"input_ids": ids, "entropy": [label(position, 0) for position in range(tokens)]}]


def test_packed_documents_have_the_same_loss_and_gradient_as_separate_ones(tmp_path: Path) -> None:
    documents, found, expected = rows(6), tiny_language_model().train(), tiny_language_model().train()
    packed = mapped(documents, packed=True)
    assert len(packed) == 2 < len(documents)
    trainer(tmp_path, found, packed, FLOOD, max_steps=1).train()
    expected.requires_grad_(True)
    slow_loss(expected, documents).backward()
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        assert other.grad is not None
        torch.testing.assert_close(one, other - 0.01 * other.grad, atol=1e-6, rtol=1e-5)


def test_a_batch_without_targets_has_a_loss_of_zero() -> None:
    batch = EntropyCollator(0, CONTEXT)([{"input_ids": [3], "entropy": [1.0]}])
    outputs = tiny_language_model()(input_ids=batch["input_ids"])
    for items in (None, torch.tensor(0)):
        assert entropy_loss(FLOOD)(outputs, batch["labels"], items) == 0


def test_a_dataset_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="`input_ids` and `entropy` are needed: annotate the dataset"):
        EntropyCollator(0, CONTEXT)([{"input_ids": [1, 2]}])
    with pytest.raises(ValueError, match="a row has 1 labels for 2 tokens"):
        EntropyCollator(0, CONTEXT)([{"input_ids": [1, 2], "entropy": [1.0]}])


@settings(deadline=None)
@given(st.sampled_from(["mask", "flood-mean", "iflood"]))
def test_an_objective_that_needs_the_mean_asks_for_it(name: Any) -> None:
    with pytest.raises(ValueError, match="needs mean_entropy"):
        entropy_loss(ObjectiveSettings(objective=name))
    assert callable(entropy_loss(ObjectiveSettings(objective=name), mean_entropy=2.0))
