"""Trains the entropy estimation model on documents, in windows of every length up to the context.

Every length must be seen in training, since an exact label is the difference of the code lengths of two
prefixes (paper section 3). Held-out loss is measured on windows of the whole context. The same command resumes an
interrupted training. Processes: one, or those of `accelerate launch -m jobs.train_estimator`.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.model_card import command_line, model_card
from pipeline.models.sizes import EstimatorSizes
from pipeline.training.config import TrainingConfig
from pipeline.training.data import Documents, DocumentSettings


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train on, what to train, where to write."""

    documents: Annotated[DocumentSettings, cyclopts.Parameter(name="*")]
    output: Path
    """Folder to write the checkpoint to."""
    init_from: str | None = None
    """Estimator to start as, of the same sizes: a folder, or a name on the Hub. If its embedding enters elsewhere, its
    encoder and decoder are taken. Else it starts from scratch."""
    folds: int = 1
    """Above 1: so many estimators, each trained without a part of the documents, which it can then label unseen."""
    model: EstimatorSizes = field(default_factory=EstimatorSizes)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        require_at_least_one(self, "folds")
        if self.init_from is not None and self.folds > 1:
            raise ValueError("--init-from with --folds would have seen every fold; leave out one of them")

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that the models depend on, apart from the documents."""
        own = {"init_from": self.init_from, "folds": self.folds}
        return {**own, "model": asdict(self.model), "training": self.training.fingerprint}


def train_estimator(config: Config) -> None:
    """Train an entropy estimation model on documents."""
    # torch takes seconds, which --help does not need
    from pipeline.training import resume
    from pipeline.training.distributed import process_group
    from pipeline.training.job import train_folds

    with process_group():
        documents = config.documents.read()
        resume.begin_on_main(config.output, {**documents.decisive, **config.fingerprint})
        parts = documents.leave_one_fold_out(config.folds)
        train_folds(parts, config.folds, config.output, lambda _, part, folder: train_on(part, folder, config))


def train_on(documents: Documents, output: Path, config: Config) -> None:
    """Trains one estimator and writes it, with its card, to `output`."""
    import torch

    from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
    from pipeline.models.loading import load_estimator
    from pipeline.training.job import train_on_windows

    torch.manual_seed(config.training.seed)
    model = EntropyEstimator(EstimatorConfig(vocab_size=documents.source.vocabulary, **asdict(config.model)))
    if config.init_from is not None:
        model.begin_as(load_estimator(Checkpoint.find(config.init_from).folder))
    start = {"started from": config.init_from or "scratch"}
    train_on_windows(model, documents, config.training, output, lambda facts: card({**facts, **start}), varied=True)


def card(facts: Mapping[str, object]) -> str:
    """The checkpoint's model card."""
    return model_card(
        "Entropy estimation model",
        "An encoder-augmented causal decoder. The difference of the code lengths it gives to two prefixes is the "
        "entropy of the token between them (arXiv 2511.10618).",
        facts,
        command=command_line("jobs.train_estimator", sys.argv[1:]),
        tags=["entropy-estimation"],
        usage="python -m pipeline.annotate --method exact --estimator THIS_FOLDER --input FILES --output DIR",
    )


if __name__ == "__main__":
    run(train_estimator, "jobs.train_estimator")
