"""Studies of documents drawn from a source of known entropy, whose true labels and best possible loss are known.

Labels come from models that were trained on other documents of the source, and from the source itself.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from pipeline.comparison.stored_predictions import StoredPredictions
from pipeline.comparison.student import document_nats, sums_by_document
from pipeline.comparison.study import PREDICTIONS, TEACHER, Study
from pipeline.comparison.teachers import BEST
from pipeline.data.corpus import Corpus
from pipeline.experiments.contest import (
    RECIPES,
    drawn,
    parameters,
    teachers_labels,
    train_estimator,
    train_language_model,
    train_second_order,
)
from pipeline.experiments.sources import SOURCES, ContestSettings, Drawn, KnownSource
from pipeline.labels import exact, second_order
from pipeline.training.batches import Windowing

TRUTH, CAUSAL = "truth", "causal"
LABELS = (TRUTH, CAUSAL, f"{CAUSAL} expected", "exact", "second-order")
"""Names of the kinds of labels in a study of documents from a known source."""
RECIPE = next(recipe for recipe in RECIPES if recipe.name == "second-order, residual, joint")
STREAMS = {"fresh": 1, "read by the label models": 2, "few": 4, "development": 5}
"""Number of the random stream for each set of drawn documents. Different streams are independent."""


def drawn_study(name: str, settings: ContestSettings, documents: int, development: int) -> Study:
    """Return a study of documents from the source called `name`, with only their true labels."""
    source = SOURCES[name](np.random.default_rng(settings.seed))
    few = drawn(source, documents, settings, STREAMS["few"])
    fresh = drawn(source, settings.fresh_documents, settings, STREAMS["fresh"])
    test = _corpus(fresh)
    return Study(
        _corpus(few),
        {TRUTH: few.surprisal_MT.flatten().astype(np.float32)},
        _corpus(drawn(source, development, settings, STREAMS["development"])),
        test,
        vocabulary=source.vocabulary + 1,
        start=source.vocabulary,
        teacher_nats={TRUTH: sums_by_document(fresh.surprisal_MT.flatten(), test)},
        truth=float(fresh.surprisal_MT.mean()),
    )


def with_models(study: Study, name: str, settings: ContestSettings, folder: Path) -> Study:
    """Train models on other documents from the source `name`, and return the study with these models' labels added.

    `study` must be a study that `drawn_study` returned for the same source and settings. The models are written to
    `folder`.
    """
    source, windowing = SOURCES[name](np.random.default_rng(settings.seed)), Windowing(settings.document_tokens, 4096)
    read = settings.steps * settings.batch
    corpus = _corpus(drawn(source, read, settings, STREAMS["read by the label models"]))
    torch.manual_seed(settings.seed)
    language_model = train_language_model(corpus, source.vocabulary, settings, folder)
    language_model.save_pretrained(folder / TEACHER / BEST)
    predictions = StoredPredictions(folder / PREDICTIONS)
    predictions.write(study.seen, {0: [language_model]}, study.vocabulary, study.start, windowing)
    labels = {
        **study.labels,
        **predictions.named_labels(CAUSAL),
        **_labels_of_estimators(source, corpus, language_model, study.seen, settings, folder),
    }
    flop = 2.0 * parameters(language_model) * len(study.seen.tokens_N)
    return replace(
        study,
        labels=labels,
        predictions=predictions,
        teacher=folder / TEACHER,
        teacher_nats={
            **study.teacher_nats,
            CAUSAL: document_nats(language_model, study.test, windowing, study.start),
        },
        labelling_flop={CAUSAL: flop, f"{CAUSAL} expected": flop},
    )


def _labels_of_estimators(
    source: KnownSource,
    corpus: Corpus,
    language_model: PreTrainedModel,
    seen: Corpus,
    settings: ContestSettings,
    folder: Path,
) -> dict[str, np.ndarray]:
    """Train an estimator, and a second-order model on its labels. Return the labels of both models."""
    estimator = train_estimator(corpus, source.vocabulary, settings, folder)
    taught = teachers_labels(source, estimator, language_model, settings)[RECIPE.teacher]
    pupil = train_second_order(RECIPE, taught, language_model, source.vocabulary, settings, folder)
    ids_MT = torch.from_numpy(seen.tokens_N).long().view(len(seen), -1)
    labels = {
        "exact": exact.token_entropies(estimator, ids_MT),
        "second-order": second_order.token_entropies(pupil, ids_MT).entropy_BT,
    }
    return {name: nats_MT.flatten().float().numpy() for name, nats_MT in labels.items()}


def _corpus(documents: Drawn) -> Corpus:
    return Corpus.of(list(documents.tokens_MT.astype(np.int32)))
