"""Train an autoencoder, which regenerates all tokens of a window in one pass from its embedding (paper section 3).

The autoencoder is trained on windows that are as long as the context, except shorter windows at the ends of documents.
An estimator must learn windows of every length, because its labels are differences of code lengths of prefixes. An
autoencoder makes no labels, and does not need windows of every length. The held-out documents are cut into windows in
the same way as the training documents.

The same command resumes an interrupted run. The job runs in one process, or in the processes that
`accelerate launch -m jobs.train_autoencoder` starts.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated

import cyclopts

from pipeline.cli import run
from pipeline.models.model_card import command_line, model_card
from pipeline.models.sizes import AutoencoderSizes
from pipeline.training.config import DryRunSettings
from pipeline.training.data import DocumentSettings
from pipeline.training.length import TrainingSettings


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the job: documents, model, training and output."""

    documents: Annotated[DocumentSettings, cyclopts.Parameter(name="*")]
    output: Path
    """Folder to write the checkpoint to."""
    model: AutoencoderSizes = field(default_factory=AutoencoderSizes)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    estimate: Annotated[DryRunSettings, cyclopts.Parameter(name="*")] = field(default_factory=DryRunSettings)


def train_autoencoder(config: Config) -> None:
    """Train an autoencoder on documents and write its checkpoint."""
    # imported here because torch takes seconds, and --help does not need it
    import torch

    from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
    from pipeline.training import resume
    from pipeline.training.cost import print_cost
    from pipeline.training.distributed import process_group
    from pipeline.training.job import cost_on_windows, epoch_on_windows, train_on_windows

    with process_group():
        documents = config.documents.read()
        epoch = cache(lambda: epoch_on_windows(documents, config.model.context, config.training.tokens_per_batch))
        training = config.training.resolved(epoch)
        torch.manual_seed(config.training.seed)
        model = Autoencoder(AutoencoderConfig(vocab_size=documents.source.vocabulary, **asdict(config.model)))
        if config.estimate.dry_run:
            print_cost(cost_on_windows(model, epoch(), training, config.estimate))
            return
        fingerprint = {"model": asdict(config.model), "training": training.fingerprint}
        resume.begin_on_main(config.output, {**documents.decisive, **fingerprint}, training)
        train_on_windows(model, documents, training, config.output, card)


def card(facts: Mapping[str, object]) -> str:
    """Return the checkpoint's model card."""
    return model_card(
        "Autoencoder of windows",
        "The decoder regenerates a window from the encoder's last state only, narrowed if there is a bottleneck "
        "(arXiv 2511.10618).",
        facts,
        command=command_line("jobs.train_autoencoder", sys.argv[1:]),
        tags=["autoencoder"],
        usage="python -m jobs.measure_compression --models THIS_FOLDER --input FILES",
    )


if __name__ == "__main__":
    run(train_autoencoder, "jobs.train_autoencoder")
