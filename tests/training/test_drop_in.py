"""The objectives in a real `transformers.Trainer`."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainingArguments

from pipeline.training.config import ObjectiveSettings
from pipeline.training.drop_in import IGNORED, EntropyCollator, entropy_loss, packed_labels, unpacked_labels
from tests.tiny_models import random_tokens, tiny_language_model

CONTEXT = 24
FLOOD = ObjectiveSettings()


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Documents of 3 and more tokens; every fifth label is missing."""
    documents = [random_tokens(1, 3 + row, seed=seed + row)[0].tolist() for row in range(count)]
    return [
        {"input_ids": ids, "entropy": [label(place, row) for place in range(len(ids))]}
        for row, ids in enumerate(documents)
    ]


def label(place: int, row: int) -> float | None:
    return None if (place + row) % 5 == 0 else (7 * place + row) % 11 / 2


def slow_loss(model: PreTrainedModel, documents: list[dict[str, Any]]) -> Tensor:
    """Flood, written out document by document and token by token."""
    values = []
    for document in documents:
        ids_T = torch.tensor(document["input_ids"][:CONTEXT])
        logits_TV = model(input_ids=ids_T[None]).logits[0]
        for place in range(1, len(ids_T)):
            loss, nats = cross_entropy(logits_TV[place - 1], ids_T[place]), document["entropy"][place]
            values.append(loss if nats is None else (loss - nats).abs())
    return torch.stack(values).mean()


@given(
    ids=st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9),
    nats=st.lists(st.floats(width=32, allow_infinity=False), min_size=9, max_size=9),
)
def test_labels_hold_both_numbers_to_the_bit(ids: list[int], nats: list[float]) -> None:
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
def test_labels_that_are_off_give_another_loss(shift: int) -> None:
    model, documents = tiny_language_model(), rows(4)
    shifted = [{**row, "entropy": row["entropy"][-shift:] + row["entropy"][:-shift]} for row in documents]
    batch = EntropyCollator(0, CONTEXT)(shifted)
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert (entropy_loss(FLOOD)(outputs, batch["labels"]) - slow_loss(model, documents)).abs() > 1e-2


@pytest.mark.parametrize("accumulated", [1, 3])
def test_a_trainer_takes_the_steps_of_a_loop_that_is_written_out(tmp_path: Path, accumulated: int) -> None:
    documents, trained, expected = rows(6), tiny_language_model().train(), tiny_language_model().train()
    for model in (trained, expected):
        model.requires_grad_(True)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=6 // accumulated,
        gradient_accumulation_steps=accumulated,
        max_steps=3,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Trainer(
        trained,
        arguments,
        data_collator=EntropyCollator(0, CONTEXT),
        train_dataset=documents,
        compute_loss_func=entropy_loss(FLOOD),
    )
    trainer.train()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        slow_loss(expected, documents).backward()
        optimizer.step()
    for found, wanted in zip(trained.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_a_dataset_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="`input_ids` and `entropy` are needed: annotate the dataset"):
        EntropyCollator(0, CONTEXT)([{"input_ids": [1, 2]}])
    with pytest.raises(ValueError, match="a row has 1 labels for 2 tokens"):
        EntropyCollator(0, CONTEXT)([{"input_ids": [1, 2], "entropy": [1.0]}])


@settings(deadline=None)
@given(st.sampled_from(["mask", "flood-mean"]))
def test_an_objective_that_needs_the_mean_asks_for_it(name: Any) -> None:
    with pytest.raises(ValueError, match="needs mean_entropy"):
        entropy_loss(ObjectiveSettings(objective=name))
    assert callable(entropy_loss(ObjectiveSettings(objective=name), mean_entropy=2.0))
