"""Trains the second-order model on an annotated dataset: tokens in, both of a token's entropies out.

The seeing and the expecting output both learn the column `entropy` by mean squared error. Since the expecting one
has not seen the token, the best it can do is the label's mean there, which is the expected entropy. Tokens without
a label count for nothing.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cyclopts
import numpy as np
import torch
from torch import Tensor

from pipeline.command_line import run
from pipeline.data.annotations import AnnotatedDataset, read_annotations
from pipeline.data.corpus import Corpus
from pipeline.data.tokenizer import tokenizer_sha256
from pipeline.models.card import command_line, model_card, training_length
from pipeline.models.checkpoint import load_estimator, require_new_folder, save_checkpoint
from pipeline.models.second_order import Entropies, SecondOrderConfig, SecondOrderModel
from pipeline.training.batches import Batch, Cut, endless_batches
from pipeline.training.evaluation import held_out_batches, r_squared
from pipeline.training.loop import Figures, TrainingConfig, train


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The model, where it does not start from an estimator."""

    context: int = 256
    """Longest window, in tokens."""
    width: int = 192
    """Hidden size."""
    layers: int = 4
    """Blocks."""
    heads: int = 6
    """Attention heads."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train on, what to start from, where to write."""

    labels: Path
    """Annotated dataset whose column `entropy` is learned."""
    output: Path
    """Folder to write the checkpoint to."""
    init_from: Path | None = None
    """Estimator whose decoder the model starts as, sizes and all; else it starts from scratch."""
    limit: int | None = None
    """Documents to read at the most."""
    held_out: int | None = None
    """Last documents to evaluate on and never train on; one in twenty, 500 at the most, by default."""
    model: Sizes = field(default_factory=Sizes)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def train_second_order(config: Config) -> None:
    """Train a second-order model on the labels of an annotated dataset."""
    require_new_folder(config.output)
    dataset = read_annotations(config.labels, config.limit)
    seen, held_out = dataset.corpus.held_out(config.held_out)
    for part in (seen, held_out):
        if len(part.given_labels) < 2:
            raise ValueError(f"{config.labels} has too few labels to train and evaluate on; choose a larger --share")
    torch.manual_seed(config.training.seed)
    model = initial_model(config, dataset, seen.given_labels)
    context = model.config.context
    cut = Cut(context, config.training.tokens_per_batch, overlap=context // 2, labelled_only=True)
    config.output.mkdir(parents=True, exist_ok=True)
    figures = train(
        model,
        endless_batches(seen, cut, config.training.seed),
        lambda trained, batch: squared_error(trained, batch, model.config.label_deviation),
        lambda trained: held_out_figures(trained, held_out_batches(held_out, cut, trained.device)),
        config.training,
        config.output,
    )
    save_checkpoint(
        model,
        config.output,
        dtype=config.training.save_as,
        tokenizer_folder=dataset.tokenizer,
        card=card(model, dataset, seen, held_out, figures, config),
    )
    print(f"{config.output}: held-out R² {figures['r2_seeing']:.3f} seeing, {figures['r2_expecting']:.3f} expecting")


def initial_model(config: Config, dataset: AnnotatedDataset, labels: np.ndarray) -> SecondOrderModel:
    """A fresh model, or one that starts as an estimator's decoder; its outputs are scaled to the labels.

    Raises:
        ValueError: if the estimator has another vocabulary or tokenizer than the labels.
    """
    mean, deviation = float(labels.mean()), max(float(labels.std()), 1e-3)
    vocabulary = dataset.provenance.vocabulary
    if config.init_from is None:
        sizes = vars(config.model)
        return SecondOrderModel(
            SecondOrderConfig(vocab_size=vocabulary, label_mean=mean, label_deviation=deviation, **sizes)
        )
    estimator = load_estimator(config.init_from)
    digests = tokenizer_sha256(config.init_from), dataset.provenance.tokenizer_sha256
    if estimator.config.vocab_size != vocabulary or digests[0] != digests[1]:
        raise ValueError(f"{config.init_from} has another tokenizer than the labels of {config.labels}")
    return SecondOrderModel.from_estimator(estimator, label_mean=mean, label_deviation=deviation)


def squared_error(model: SecondOrderModel, batch: Batch, deviation: float) -> Tensor:
    """Mean squared error of both outputs over labelled tokens, in units of the labels' variance."""
    assert batch.labels_BT is not None
    labelled_BT = ~batch.labels_BT.isnan()
    estimates: Entropies = model(batch.input_ids_BT)
    errors = [(estimate_BT - batch.labels_BT)[labelled_BT] / deviation for estimate_BT in estimates]
    return sum((error.square().mean() for error in errors), start=torch.zeros((), device=batch.labels_BT.device))


def held_out_figures(model: SecondOrderModel, batches: Iterator[Batch]) -> Figures:
    """R² of the seeing and of the expecting output against held-out labels."""
    seeing, expecting, labels = [], [], []
    for batch in batches:
        assert batch.labels_BT is not None
        labelled_BT = ~batch.labels_BT.isnan()
        entropy_BT, expected_BT = model.entropies(batch.input_ids_BT)
        seeing.append(entropy_BT[labelled_BT])
        expecting.append(expected_BT[labelled_BT])
        labels.append(batch.labels_BT[labelled_BT])
    truth = torch.cat(labels)
    return {"r2_seeing": r_squared(torch.cat(seeing), truth), "r2_expecting": r_squared(torch.cat(expecting), truth)}


def card(
    model: SecondOrderModel, dataset: AnnotatedDataset, seen: Corpus, held_out: Corpus, figures: Figures, config: Config
) -> str:
    """The checkpoint's model card."""
    origin = dataset.provenance
    return model_card(
        "Second-order entropy model",
        "Estimates every token's entropy in one causal pass, after seeing the token and before (arXiv 2511.10618).",
        {
            "trained on": f"{len(seen.given_labels):,} {origin.method} labels in {len(seen):,} documents",
            "labels made by": f"python -m pipeline.annotate --method {origin.method} --share {origin.share} "
            f"--window {origin.window} --overlap {origin.overlap}",
            "checkpoint behind the labels, sha256": origin.checkpoint_sha256,
            "training": training_length(figures),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "started from": "the estimator's decoder" if config.init_from else "random weights",
            "held out": f"{len(held_out.given_labels):,} labels in the last {len(held_out):,} documents",
            "held-out R² against labels, seeing": figures["r2_seeing"],
            "held-out R² against labels, expecting": figures["r2_expecting"],
        },
        command=command_line("jobs.train_second_order", sys.argv[1:]),
        tags=["entropy-estimation"],
        usage="python -m pipeline.annotate --method second-order --estimator THIS_FOLDER --input FILES --output DIR",
    )


if __name__ == "__main__":
    run(train_second_order, "jobs.train_second_order")
