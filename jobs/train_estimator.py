"""Train an entropy estimation model (estimator) on documents, in windows of every length up to the context.

Training must cover every length, since an exact label is the difference between the code lengths of two prefixes (paper
section 3). Held-out loss is measured on windows of the whole context.

The same command resumes an interrupted run. The job runs in one process, or in the processes that
`accelerate launch -m jobs.train_estimator` starts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.model_card import command_line, model_card
from pipeline.models.sizes import EstimatorSizes
from pipeline.training.config import DryRunSettings, TrainingConfig
from pipeline.training.data import Documents, DocumentSettings

if TYPE_CHECKING:  # it imports torch, which is slow and not needed for --help
    from pipeline.models.estimator import EntropyEstimator


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the job: documents, model, training and output."""

    documents: Annotated[DocumentSettings, cyclopts.Parameter(name="*")]
    output: Path
    """Folder to write the checkpoint to."""
    init_from: str | None = None
    """Estimator to start from, with the sizes of the model to train. Give a folder or a name on the Hub. By default,
    train from scratch. If the embedding enters the decoders of the two models at different places, only the weights of
    encoder and decoder are copied."""
    folds: int = 1
    """Number of cross-validation folds; one estimator is trained for each fold. With several folds, each estimator is
    trained without the documents of its fold, so that it can label these documents without having seen them."""
    model: EstimatorSizes = field(default_factory=EstimatorSizes)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    estimate: Annotated[DryRunSettings, cyclopts.Parameter(name="*")] = field(default_factory=DryRunSettings)

    def __post_init__(self) -> None:
        require_at_least_one(self, "folds")
        if self.init_from is not None and self.folds > 1:
            raise ValueError("the model of --init-from has seen every fold of --folds; leave out one of the two flags")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All settings that the trained models depend on, by name, except the settings of the documents."""
        own = {"init_from": self.init_from, "folds": self.folds}
        return {**own, "model": asdict(self.model), "training": self.training.fingerprint}


def train_estimator(config: Config) -> None:
    """Train an entropy estimation model on documents and write its checkpoint."""
    # imported here because torch takes seconds, and --help does not need it
    from pipeline.training import resume
    from pipeline.training.cost import print_cost
    from pipeline.training.distributed import process_group
    from pipeline.training.job import cost_on_windows, train_folds

    with process_group():
        documents = config.documents.read()
        if config.estimate.dry_run:
            model, folds = new_model(documents, config), config.folds
            print_cost(cost_on_windows(model, documents, config.training, config.estimate, varied=True, models=folds))
            return
        resume.begin_on_main(config.output, {**documents.decisive, **config.fingerprint})
        parts = documents.leave_one_fold_out(config.folds)
        train_folds(parts, config.folds, config.output, lambda _, part, folder: train_on(part, folder, config))


def train_on(documents: Documents, output: Path, config: Config) -> None:
    """Train one estimator, and write its checkpoint and model card to `output`."""
    from pipeline.training.job import train_on_windows

    model, start = new_model(documents, config), {"started from": config.init_from or "scratch"}
    train_on_windows(model, documents, config.training, output, lambda facts: card({**facts, **start}), varied=True)


def new_model(documents: Documents, config: Config) -> EntropyEstimator:
    """Return the estimator to train, with random weights or those of the estimator to start from."""
    import torch

    from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
    from pipeline.models.loading import load_estimator

    torch.manual_seed(config.training.seed)
    model = EntropyEstimator(EstimatorConfig(vocab_size=documents.source.vocabulary, **asdict(config.model)))
    if config.init_from is not None:
        model.begin_as(load_estimator(Checkpoint.find(config.init_from).folder))
    return model


def card(facts: Mapping[str, object]) -> str:
    """Return the checkpoint's model card."""
    return model_card(
        "Entropy estimation model",
        "A causal decoder with an encoder. The difference between its code lengths of two prefixes is the entropy of "
        "the token between them (arXiv 2511.10618).",
        facts,
        command=command_line("jobs.train_estimator", sys.argv[1:]),
        tags=["entropy-estimation"],
        usage="python -m pipeline.annotate --method exact --estimator THIS_FOLDER --input FILES --output DIR",
    )


if __name__ == "__main__":
    run(train_estimator, "jobs.train_estimator")
