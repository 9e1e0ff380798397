"""The matched experiment: the same small model on the same few documents for many epochs, once for every trial.

Documents are windows with the start token before each; a trial is one process's, and goes on where it was interrupted.
"""

from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.models.sizes import TransformerSizes
from pipeline.models.stacks import add_dropout, llama_config, new_language_model
from pipeline.training import resume
from pipeline.training.batches import Cut, endless_batches
from pipeline.training.config import ObjectiveSettings, TrainingConfig
from pipeline.training.evaluation import held_out_batches, mean_of
from pipeline.training.losses import ObjectiveLoss, document_losses
from pipeline.training.metrics import Figures, evaluations
from pipeline.training.objectives import objective_function
from pipeline.training.trainer import train
from pipeline.training.trials import Study, Trial

DONE_FILE = "done"


def carry_out(
    trial: Trial, study: Study, sizes: TransformerSizes, config: TrainingConfig, folder: Path
) -> list[dict[str, float]]:
    """Trains the trial's model, if that is not done, and returns its figures at each evaluation.

    `seen_loss` and one for each of `held_out` are plain cross-entropy in nats a token.
    """
    output = folder / trial.name
    if not (output / DONE_FILE).is_file():
        output.mkdir(parents=True, exist_ok=True)
        _train(trial, study, sizes, replace(config, seed=trial.seed), output)
        (output / DONE_FILE).touch()
        resume.finish(output)
    return evaluations(output)


def _train(trial: Trial, study: Study, sizes: TransformerSizes, config: TrainingConfig, output: Path) -> None:
    torch.manual_seed(trial.seed)
    vocabulary = max(study.vocabulary, study.start + 1)
    model = new_language_model(llama_config(vocab_size=vocabulary, **vars(sizes)), study.start)
    add_dropout(model, trial.dropout)
    labelled = study.with_labels(trial.labels, trial.seed)
    settings = ObjectiveSettings(objective=trial.objective, scale=trial.scale, margin=trial.margin)
    objective = objective_function(settings, labelled.mean_label)
    cut = Cut(sizes.context, config.tokens_per_batch)
    evaluated = {"seen": study.seen, **study.held_out}

    def figures(trained: PreTrainedModel) -> Figures:
        return {
            f"{name}_loss": mean_loss(trained, documents, cut, study.start) for name, documents in evaluated.items()
        }

    train(
        model,
        endless_batches([labelled], cut, trial.seed),
        ObjectiveLoss(objective, start=study.start),
        figures,
        config,
        output,
    )


def mean_loss(model: PreTrainedModel, corpus: Corpus, cut: Cut, start: int) -> float:
    """Plain cross-entropy in nats a token."""
    batches = held_out_batches(corpus, cut, model.device)
    return mean_of(document_losses(model, batch, start)[batch.real_BT] for batch in batches)
