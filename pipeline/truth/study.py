"""A study on a source whose every entropy is known: few documents to overfit, labelled by the truth and by all methods.

The models that label are trained on other documents of the source, as many as they like; none has seen the few.

M documents, T tokens of each.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.corpus import Corpus
from pipeline.labels import causal, exact, second_order
from pipeline.training.trials import TRUTH, Study
from pipeline.truth.contest import drawn, teachers_labels
from pipeline.truth.contestants import RECIPES, train_estimator, train_language_model, train_second_order
from pipeline.truth.settings import ContestSettings
from pipeline.truth.sources import SOURCES, Drawn

RECIPE = next(recipe for recipe in RECIPES if recipe.name == "second-order, residual, joint")


def known_study(name: str, settings: ContestSettings, documents: int, folder: Path) -> tuple[Study, float]:
    """The study, and the truth's own loss on its held-out documents, in nats a token: no model can be better."""
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
    """Writes a study of `known_study`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished.npz")
    arrays: dict[str, Any] = {f"labels {name}": nats_N for name, nats_N in study.labels.items()}
    for name, corpus in (("seen", study.seen), ("held_out", study.held_out["held_out"])):
        arrays[name] = corpus.tokens_N.reshape(len(corpus), -1)
    np.savez(unfinished, numbers=np.array([study.vocabulary, truth]), **arrays)
    unfinished.replace(file)


def load_study(file: Path) -> tuple[Study, float]:
    """What `save_study` wrote."""
    with np.load(file, allow_pickle=False) as stored:
        vocabulary, truth = int(stored["numbers"][0]), float(stored["numbers"][1])
        labels = {name.partition(" ")[2]: stored[name] for name in stored.files if name.startswith("labels ")}
        seen, held_out = (Corpus.of(list(stored[name])) for name in ("seen", "held_out"))
    return Study(seen, labels, {"held_out": held_out}, vocabulary, vocabulary), truth


def _corpus(documents: Drawn) -> Corpus:
    return Corpus.of(list(documents.tokens_MT.astype(np.int32)))
