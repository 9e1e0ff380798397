"""Trains the second-order model on an annotated dataset: tokens in, both of a token's entropies out.

The seeing and the expecting output both learn the column `entropy` by mean squared error. Since the expecting one
has not seen the token, the best it can do is the label's mean there, which is the expected entropy. Tokens without
a label count for nothing. Any method's labels can be the teacher, a stronger language model's among them.

The same command goes on with an interrupted training. Processes: one, or those of `accelerate launch -m
jobs.train_second_order`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cyclopts
import numpy as np

from pipeline.command_line import run
from pipeline.data.annotations import AnnotatedDataset, find_annotations
from pipeline.data.corpus import Corpus
from pipeline.data.flags import require_at_least_one
from pipeline.data.tokenizer import declared_beginning, tokenizer_sha256
from pipeline.models.card import command_line, model_card, training_length
from pipeline.models.checkpoint import (
    checkpoint_kind,
    checkpoint_members,
    checkpoint_sha256,
    context_and_vocabulary,
    find_checkpoint,
    fold_folder,
)
from pipeline.models.sizes import Form, TransformerSizes
from pipeline.training.config import TrainingConfig

if TYPE_CHECKING:  # imports torch, which takes seconds that --help does not need
    from pipeline.models.second_order import SecondOrderModel
    from pipeline.training.log import Figures


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train on, what to start from, where to write."""

    labels: str
    """Annotated dataset whose column `entropy` is learned: a folder, or hf://datasets/USER/NAME."""
    output: Path
    """Folder to write the checkpoint to."""
    init_from: str | None = None
    """Model to start as, sizes and all: an estimator, whose decoder is taken, or a causal language model, each a folder
    (one with folds, where --folds asks for them) or a name on the Hub. Else it starts from scratch."""
    form: Form = "residual"
    """residual: an output is a correction to the model's own loss as a language model. direct: it is the estimate, and
    nothing is projected on the vocabulary."""
    transformers: Literal[1, 2] = 1
    """1: both outputs read one transformer. 2: the expecting output has its own."""
    causal_weight: float = 1.0
    """Weight of the model's own loss as a language model beside the squared error; 0 leaves it out."""
    folds: int = 1
    """Above 1: so many models, each trained without a part of the documents, which it can then label unseen."""
    limit: int | None = None
    """Documents to read at the most."""
    held_out: int | None = None
    """Last documents to evaluate on and never train on; one in twenty, 500 at the most, by default."""
    model: TransformerSizes = field(default_factory=TransformerSizes)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        require_at_least_one(self, "folds", "limit")
        if self.causal_weight < 0:
            raise ValueError(f"--causal-weight must be 0 or more, not {self.causal_weight}")


def train_second_order(config: Config) -> None:
    """Train a second-order model on the labels of an annotated dataset."""
    from pipeline.training import resume
    from pipeline.training.processes import this_process, together

    with together():
        process, dataset = this_process(), find_annotations(config.labels)
        seen, held_out = read_documents(config, dataset)
        starts = starting_points(config, dataset)
        resume.begin_together(config.output, what_decides(config, dataset, starts))
        for fold, part in enumerate(seen.each_without_a_fold(config.folds)):
            folder = fold_folder(config.output, fold, config.folds)
            if not resume.is_finished(folder):
                train_on(part, held_out, dataset, starts[fold], folder, config)
        if process.is_main_process:
            resume.finish(config.output)


def read_documents(config: Config, dataset: AnnotatedDataset) -> tuple[Corpus, Corpus]:
    """What to train on, and what to evaluate on.

    Raises:
        ValueError: if there are not two labels of either.
    """
    seen, held_out = dataset.corpus(stop=config.limit).held_out(config.held_out)
    for part in (seen, held_out):
        if len(part.given_labels) < 2:
            raise ValueError(
                f"{config.labels} has too few labels to train and evaluate on; annotate more documents, or a larger "
                "--share of their tokens"
            )
    return seen, held_out


def what_decides(config: Config, dataset: AnnotatedDataset, starts: Sequence[Path | None]) -> dict[str, Any]:
    """All that the models depend on: not where, nor in how many processes, they are trained."""
    settings = {**asdict(config), "training": config.training.decisive, "provenance": asdict(dataset.provenance)}
    del settings["output"]
    return {**settings, "init_from_sha256": checkpoint_sha256(*filter(None, starts))}


def train_on(
    seen: Corpus, held_out: Corpus, dataset: AnnotatedDataset, start: Path | None, output: Path, config: Config
) -> None:
    """Trains one model and writes it, with its card, to `output`."""
    import torch

    from pipeline.models.loading import save_checkpoint
    from pipeline.training import resume
    from pipeline.training.batches import Cut, endless_batches
    from pipeline.training.evaluation import held_out_batches, second_order_figures
    from pipeline.training.loop import train
    from pipeline.training.losses import second_order_loss
    from pipeline.training.processes import this_process

    torch.manual_seed(config.training.seed)
    model = initial_model(config, dataset, start, seen.given_labels)
    if model.head is not None and config.form == "direct" and config.causal_weight == 0:
        model.head.requires_grad_(False)  # several processes wait for every gradient, and nothing reads this weight
    context = model.config.context
    cut = Cut(context, config.training.tokens_per_batch, overlap=context // 2, labelled_only=True)
    output.mkdir(parents=True, exist_ok=True)
    figures = train(
        model,
        endless_batches([seen], cut, config.training.seed),
        lambda trained, batch: second_order_loss(trained, batch, config.causal_weight),
        lambda trained: second_order_figures(trained, held_out_batches(held_out, cut, trained.device)),
        config.training,
        output,
    )
    if this_process().is_main_process:
        text, kind = card(model, dataset, seen, held_out, figures, config), config.training.save_as
        save_checkpoint(model, output, dtype=kind, tokenizer_folder=dataset.tokenizer, card=text)
        resume.finish(output)
        print(f"{output}: held-out R² {figures['r2_seeing']:.3f} seeing, {figures['r2_expecting']:.3f} expecting")


def starting_points(config: Config, dataset: AnnotatedDataset) -> tuple[Path | None, ...]:
    """For each fold the checkpoint that its model starts as, which must not have seen the fold either.

    Raises:
        ValueError: if they are of another number of folds, or read other tokens than the labels speak of.
    """
    if config.init_from is None:
        return (None,) * config.folds
    members = checkpoint_members(find_checkpoint(config.init_from))
    if len(members) != config.folds:
        raise ValueError(f"{config.init_from} has {len(members)} folds, and --folds is {config.folds}; make them equal")
    for member in members:
        require_same_tokens(member, dataset)
    return members


def initial_model(
    config: Config, dataset: AnnotatedDataset, start: Path | None, labels: np.ndarray
) -> SecondOrderModel:
    """A fresh model, or one that starts as another; its outputs are scaled to the labels."""
    from pipeline.models.loading import load_causal, load_estimator
    from pipeline.models.second_order import SecondOrderModel
    from pipeline.models.transformer import llama_config

    settings: dict[str, Any] = {
        "label_mean": float(labels.mean()),
        "label_deviation": max(float(labels.std()), 1e-3),
        "form": config.form,
        "transformers": config.transformers,
    }
    if start is None:
        stack = llama_config(vocab_size=dataset.vocabulary, **vars(config.model))
        return SecondOrderModel.from_scratch(stack, context=config.model.context, **settings)
    if checkpoint_kind(start) == "estimator":
        return SecondOrderModel.from_estimator(load_estimator(start), **settings)
    return SecondOrderModel.from_language_model(load_causal(start), start=declared_beginning(start), **settings)


def require_same_tokens(start: Path, dataset: AnnotatedDataset) -> None:
    """Refuses a model that reads other token ids than the labels speak of.

    Raises:
        ValueError: if its tokenizer is another or its vocabulary smaller.
    """
    same = tokenizer_sha256(start) == dataset.provenance.tokenizer_sha256
    if not same or context_and_vocabulary(start)[1] < dataset.vocabulary:
        raise ValueError(f"{start} has another tokenizer than the labels; annotate with --tokenizer {start}")


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
            "model behind the labels": origin.labelled_by,
            "checkpoint behind the labels, sha256": origin.checkpoint_sha256,
            "training": training_length(figures),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "form": f"{config.form}, {config.transformers} transformer(s), causal weight {config.causal_weight}",
            "started from": config.init_from or "random weights",
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
