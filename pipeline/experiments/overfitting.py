"""The matched experiment: every trial trains the same small model on the same few documents for many epochs.

Every document is one window, preceded by the start token. Each trial runs in one process. If a trial is interrupted,
the next run resumes it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.experiments.contest import (
    RECIPES,
    drawn,
    teachers_labels,
    train_estimator,
    train_language_model,
    train_second_order,
)
from pipeline.experiments.sources import SOURCES, ContestSettings, Drawn
from pipeline.experiments.study import TRUTH, ObjectiveTrial, Study
from pipeline.experiments.trial import train_once
from pipeline.labels import causal, exact, second_order
from pipeline.models.sizes import TransformerSizes
from pipeline.models.stacks import add_dropout, llama_config, new_language_model
from pipeline.training.batches import Windowing
from pipeline.training.config import ObjectiveSettings, TrainingConfig
from pipeline.training.evaluation import held_out_batches, mean_of
from pipeline.training.losses import ObjectiveLoss, document_losses
from pipeline.training.metrics import Metrics, evaluations
from pipeline.training.objectives import objective_function


def run_trial(
    trial: ObjectiveTrial, study: Study, sizes: TransformerSizes, config: TrainingConfig, folder: Path
) -> list[dict[str, float]]:
    """Train the trial's model unless it is trained already, and return its evaluations.

    An evaluation has `seen_loss` for the training documents, and `NAME_loss` for each corpus NAME in `study.held_out`.
    These losses are plain cross-entropy in nats per token.
    """
    torch.manual_seed(trial.seed)
    vocabulary = max(study.vocabulary, study.start + 1)
    model = new_language_model(llama_config(vocab_size=vocabulary, **vars(sizes)), study.start)
    add_dropout(model, trial.dropout)
    labelled = study.with_labels(trial.labels, trial.seed)
    settings = ObjectiveSettings(objective=trial.objective, scale=trial.scale, margin=trial.margin)
    loss = ObjectiveLoss(objective_function(settings, labelled.mean_label), start=study.start)
    windowing = Windowing(sizes.context, config.tokens_per_batch)
    evaluated = {"seen": study.seen, **study.held_out}

    def losses(trained: PreTrainedModel) -> Metrics:
        return {
            f"{name}_loss": mean_loss(trained, documents, windowing, study.start)
            for name, documents in evaluated.items()
        }

    output = folder / trial.name
    train_once(model, labelled, windowing, loss, losses, replace(config, seed=trial.seed), output)
    return evaluations(output)


def mean_loss(model: PreTrainedModel, corpus: Corpus, windowing: Windowing, start: int) -> float:
    """Return the model's plain cross-entropy on a corpus, in nats per token."""
    batches = held_out_batches(corpus, windowing, model.device)
    return mean_of(document_losses(model, batch, start)[batch.real_BT] for batch in batches)


RECIPE = next(recipe for recipe in RECIPES if recipe.name == "second-order, residual, joint")


def known_study(name: str, settings: ContestSettings, documents: int, folder: Path) -> tuple[Study, float]:
    """Return a study of documents from the source called `name`, and the true loss of the study's held-out documents.

    The true loss is that of the distribution from which the source draws tokens, in nats per token. No model can have a
    lower expected loss.
    """
    source = SOURCES[name](np.random.default_rng(settings.seed))
    vocabulary = source.vocabulary
    few = drawn(source, documents, settings, stream=4)
    fresh = drawn(source, settings.fresh_documents, settings, stream=1)
    corpus = _corpus(drawn(source, settings.steps * settings.batch, settings, stream=2))
    torch.manual_seed(settings.seed)
    language_model = train_language_model(corpus, vocabulary, settings, folder)
    estimator = train_estimator(corpus, vocabulary, settings, folder)
    taught = teachers_labels(source, estimator, language_model, settings)[RECIPE.teacher]
    pupil = train_second_order(RECIPE, taught, language_model, vocabulary, settings, folder)
    ids_MT = torch.from_numpy(few.tokens_MT)
    labels = {
        TRUTH: torch.from_numpy(few.surprisal_MT),
        "causal": causal.token_entropies(language_model, ids_MT, vocabulary),
        "exact": exact.token_entropies(estimator, ids_MT),
        "second-order": second_order.token_entropies(pupil, ids_MT).entropy_BT,
    }
    flat = {method: nats_MT.flatten().float().numpy() for method, nats_MT in labels.items()}
    study = Study(_corpus(few), flat, {"held_out": _corpus(fresh)}, vocabulary, start=vocabulary)
    return study, float(fresh.surprisal_MT.mean())


def save_study(file: Path, study: Study, truth: float) -> None:
    """Write a study and its true loss to a file. `known_study` returns both."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished.npz")
    arrays: dict[str, Any] = {f"labels {name}": nats_N for name, nats_N in study.labels.items()}
    for name, corpus in (("seen", study.seen), ("held_out", study.held_out["held_out"])):
        arrays[name] = corpus.tokens_N.reshape(len(corpus), -1)
    np.savez(unfinished, numbers=np.array([study.vocabulary, truth]), **arrays)
    unfinished.replace(file)


def load_study(file: Path) -> tuple[Study, float]:
    """Read a study and its true loss from a file written by `save_study`."""
    with np.load(file, allow_pickle=False) as stored:
        vocabulary, truth = int(stored["numbers"][0]), float(stored["numbers"][1])
        labels = {name.partition(" ")[2]: stored[name] for name in stored.files if name.startswith("labels ")}
        seen, held_out = (Corpus.of(list(stored[name])) for name in ("seen", "held_out"))
    return Study(seen, labels, {"held_out": held_out}, vocabulary, vocabulary), truth


def _corpus(documents: Drawn) -> Corpus:
    return Corpus.of(list(documents.tokens_MT.astype(np.int32)))
