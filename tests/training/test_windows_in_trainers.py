"""`LabelledWindows` in `transformers.Trainer`, in TRL and in torchdata's StatefulDataLoader."""

import math
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import IterableDatasetShard
from datasets import IterableDataset
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

from pipeline.data.annotated import AnnotatedDataset
from pipeline.data.packing import BestFit, CutAtEnd, CutWithOverlap, Packing
from pipeline.models.loading import load_causal
from pipeline.training.config import ObjectiveSettings
from pipeline.training.hf_trainer import (
    IGNORED,
    EntropyCollator,
    entropy_loss,
    unpacked_labels,
    window_rows,
)
from pipeline.training.torch_dataset import LabelledWindows
from tests.forkserver import group
from tests.labelled import LABELS, LENGTHS, TOKENS, write_labelled
from tests.tiny_models import tiny_language_model

LENGTH = 16
CUT = CutWithOverlap(length=LENGTH, separator=0)
VOCABULARY = 200
LABEL_OF = dict(zip(chain(*TOKENS), chain(*LABELS), strict=True))
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.01,
    "lr_scheduler_type": "constant",
    "optim": "sgd",
    "max_grad_norm": 0.0,
    "report_to": [],
    "save_strategy": "no",
    "use_cpu": True,
    "per_device_train_batch_size": 3,
    "remove_unused_columns": False,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedDataset:
    return write_labelled(tmp_path_factory.mktemp("annotated"))


def new_model() -> PreTrainedModel:
    model: PreTrainedModel = tiny_language_model(vocabulary=VOCABULARY).train()
    model.requires_grad_(True)
    return model


def predicted(batches: Iterator[dict[str, Tensor]]) -> list[int]:
    """Return the ids that batches predict, and check that each has its own label."""
    found: list[int] = []
    for batch in batches:
        ids, nats = unpacked_labels(batch["labels"])
        for token, label in zip(ids[ids != IGNORED].tolist(), nats[ids != IGNORED].tolist(), strict=True):
            assert label == LABEL_OF[token] or (math.isnan(label) and math.isnan(LABEL_OF[token]))
            found.append(token)
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("packing", [CUT, BestFit(length=40, separator=0, buffer=2)])
def test_batches_of_windows_predict_every_token_once(dataset: AnnotatedDataset, packing: Packing, workers: int) -> None:
    """Every document begins with a separator, so its first token is predicted too."""
    collator = EntropyCollator(pad_token_id=0, context=packing.length)
    windows = LabelledWindows(dataset, packing, seed=1)
    loader = DataLoader(windows, batch_size=3, num_workers=workers, collate_fn=collator)
    assert sorted(predicted(iter(loader))) == sorted(LABEL_OF)


def test_a_window_beyond_the_context_is_refused(dataset: AnnotatedDataset) -> None:
    window = next(iter(LabelledWindows(dataset, CutAtEnd(length=9))))
    with pytest.raises(ValueError, match=r"9 tokens, but the context is 8: cut .* CutWithOverlap\(length=8\)"):
        EntropyCollator(pad_token_id=0, context=8)([window])


def slow_loss(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the mean of the objective flood over all targets of a packed batch.

    The model reads each piece of a document by itself.
    """
    ids_S, starts = batch["input_ids"][0], (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    values = []
    for start, stop in zip(starts, [*starts[1:], len(ids_S)], strict=True):
        logits_TV = model(input_ids=ids_S[None, start:stop]).logits[0]
        losses_T = cross_entropy(logits_TV[:-1], ids_S[start + 1 : stop], reduction="none")
        for loss, token in zip(losses_T, ids_S[start + 1 : stop].tolist(), strict=True):
            values.append(loss if math.isnan(LABEL_OF[token]) else (loss - LABEL_OF[token]).abs())
    return torch.stack(values).mean()


def trainer(folder: Path, model: PreTrainedModel, windows: Any, **arguments: Any) -> Trainer:
    return Trainer(
        model,
        TrainingArguments(output_dir=str(folder), **{**SETTINGS, **arguments}),
        data_collator=EntropyCollator(0, LENGTH),
        train_dataset=windows,
        compute_loss_func=entropy_loss(ObjectiveSettings(objective="flood")),
    )


def weights(model: PreTrainedModel) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def stepped(dataset: AnnotatedDataset, steps: int, batch_size: int = 3) -> PreTrainedModel:
    """Return a model that an explicit loop has trained for this number of steps."""
    model, collator = new_model(), EntropyCollator(0, LENGTH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(LabelledWindows(dataset, CUT, seed=2, epochs=None), batch_size, collate_fn=collator)
    for batch in islice(loader, steps):
        optimizer.zero_grad()
        slow_loss(model, batch).backward()
        optimizer.step()
    return model


def test_a_trainer_takes_the_steps_of_an_explicit_loop(dataset: AnnotatedDataset, tmp_path: Path) -> None:
    model, windows = new_model(), LabelledWindows(dataset, CUT, seed=2, epochs=None)
    trainer(tmp_path, model, windows, max_steps=4).train()
    torch.testing.assert_close(weights(model), weights(stepped(dataset, 4)), atol=1e-6, rtol=1e-4)
    assert (weights(model) - weights(new_model())).norm() > 1e-3


def test_a_trainer_resumes_within_an_epoch(dataset: AnnotatedDataset, tmp_path: Path) -> None:
    whole, parts = new_model(), new_model()
    read: dict[str, Any] = {"packing": CUT, "seed": 2, "epochs": None}
    trainer(tmp_path / "whole", whole, LabelledWindows(dataset, **read), max_steps=7).train()
    saving = {"save_strategy": "steps", "save_steps": 3}
    trainer(tmp_path / "parts", parts, LabelledWindows(dataset, **read), max_steps=3, **saving).train()
    resumed = new_model()
    again = trainer(tmp_path / "parts", resumed, LabelledWindows(dataset, **read), max_steps=7, **saving)
    again.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_of_a_trainer_divide_the_windows(dataset: AnnotatedDataset, workers: int) -> None:
    """Every process reads all windows, and accelerate keeps a share of them in each process.

    accelerate may repeat some windows, so that all processes have equally many.
    """
    found: list[int] = []
    for process in range(2):
        windows = LabelledWindows(dataset, CUT, seed=1, rank=0, world_size=1)
        part = IterableDatasetShard(windows, batch_size=2, num_processes=2, process_index=process)
        loader = DataLoader(part, batch_size=2, num_workers=workers, collate_fn=EntropyCollator(0, LENGTH))
        found += predicted(iter(loader))
    assert set(found) == set(LABEL_OF) and len(found) < 1.5 * len(LABEL_OF)


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_processes_of_a_trainer_take_the_steps_of_one_loop_over_all_their_windows(
    dataset: AnnotatedDataset, tmp_path: Path, processes: int
) -> None:
    """The job passes `rank=0, world_size=1` and disables the dispatch of batches, as the documentation says."""
    job = ("tests.training.trainer_job", "--labels", dataset.source, "--output", tmp_path, "--steps", 3)
    for process in group(processes, *job):
        assert process.wait(300) == 0, process.communicate()
    trained = load_causal(tmp_path)
    expected = stepped(dataset, 3, batch_size=3 * processes)
    torch.testing.assert_close(weights(trained), weights(expected), atol=1e-6, rtol=1e-4)


def iterable_rows(windows: LabelledWindows) -> IterableDataset:
    dataset: IterableDataset = IterableDataset.from_generator(window_rows, gen_kwargs={"windows": windows})
    return dataset


def test_trl_takes_the_same_steps(dataset: AnnotatedDataset, tmp_path: Path) -> None:
    trl: Any = pytest.importorskip("trl")
    from transformers import PreTrainedTokenizerFast

    from pipeline.models.checkpoint import SHIPPED

    class EntropyTrainer(trl.SFTTrainer):  # type: ignore[misc]
        compute_loss = Trainer.compute_loss

    config = trl.SFTConfig(
        str(tmp_path), **SETTINGS, max_steps=4, dataset_kwargs={"skip_prepare_dataset": True}, bf16=False
    )
    model, windows = new_model(), LabelledWindows(dataset, CUT, seed=2, epochs=None)
    one = EntropyTrainer(
        model,
        config,
        train_dataset=iterable_rows(windows),
        data_collator=EntropyCollator(0, LENGTH),
        processing_class=PreTrainedTokenizerFast.from_pretrained(SHIPPED / "tokenizer"),
    )
    one.compute_loss_func = entropy_loss(ObjectiveSettings(objective="flood"))
    one.train()
    torch.testing.assert_close(weights(model), weights(stepped(dataset, 4)), atol=1e-6, rtol=1e-4)


def test_rows_for_trl_are_the_windows(dataset: AnnotatedDataset) -> None:
    collator = EntropyCollator(0, LENGTH)
    windows = LabelledWindows(dataset, CUT)
    for _ in range(2):
        rows = [*iterable_rows(windows)]
        assert sum(len(row["input_ids"]) for row in rows) > sum(LENGTHS)
        assert sorted(predicted(collator([row]) for row in rows)) == sorted(LABEL_OF)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_resumes_within_an_epoch(dataset: AnnotatedDataset, workers: int) -> None:
    loaders = pytest.importorskip("torchdata.stateful_dataloader")

    def loader() -> Any:
        windows, collator = LabelledWindows(dataset, CUT, seed=4), EntropyCollator(0, LENGTH)
        return loaders.StatefulDataLoader(windows, batch_size=2, num_workers=workers, collate_fn=collator)

    whole = predicted(iter(loader()))
    stopped, resumed = loader(), loader()
    before = predicted(islice(iter(stopped), 3))
    resumed.load_state_dict(stopped.state_dict())
    assert before + predicted(iter(resumed)) == whole and sorted(whole) == sorted(LABEL_OF)
