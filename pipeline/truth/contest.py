"""A contest on one source: models are trained, every method labels the same fresh documents, truth decides.

M documents, T tokens of each, N all of their tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.data.windows import sample_positions
from pipeline.labels import attribution, causal, exact, second_order
from pipeline.models.estimator import EntropyEstimator
from pipeline.truth.accuracy import Accuracy, Contestant, Target, measure
from pipeline.truth.contestants import RECIPES, parameters, train_estimator, train_language_model, train_second_order
from pipeline.truth.settings import ContestSettings
from pipeline.truth.sources import SOURCES, Drawn, Source, draw

TERA = 1e12


@dataclass(frozen=True)
class Entry:
    """A result, with the labels behind it for a plot."""

    accuracy: Accuracy
    estimates_N: np.ndarray
    truth_N: np.ndarray


def hold_contest(name: str, settings: ContestSettings, folder: Path) -> Iterator[Entry]:
    """Trains every model on the source, and yields each method's result as it is known.

    Metrics of the trainings go to `folder`.
    """
    torch.manual_seed(settings.seed)
    source = SOURCES[name](np.random.default_rng(settings.seed))
    vocabulary, window = source.vocabulary, settings.document_tokens
    fresh = drawn(source, settings.fresh_documents, settings, stream=1)
    fresh_ids_MT = torch.from_numpy(fresh.tokens_MT)
    score = _Scorer(name, fresh)

    seen = drawn(source, settings.steps * settings.batch, settings, stream=2)
    corpus = Corpus.of(list(seen.tokens_MT.astype(np.int32)))

    language_model = train_language_model(corpus, vocabulary, settings, folder)
    estimator = train_estimator(corpus, vocabulary, settings, folder)
    flop = 6 * parameters(estimator) * settings.steps * settings.batch * window  # the language model spends as much
    yield score("causal", causal.token_entropies(language_model, fresh_ids_MT, vocabulary), 1, flop)
    expected_MT = causal.expected_entropies(language_model, fresh_ids_MT, vocabulary)
    yield score("causal", expected_MT, 1, flop, target="entropy")
    exact_passes = (window + 1) / 2
    yield score("exact", exact.token_entropies(estimator, fresh_ids_MT), exact_passes, flop)
    for measured in get_args(attribution.Measure):
        scores_MT = attribution.token_entropies(estimator, fresh_ids_MT, measure=measured)
        yield score(measured, scores_MT, 2, flop, in_nats=False)

    labels = teachers_labels(source, estimator, language_model, settings)
    passes = {"exact": exact_passes * settings.labelled_share, "causal": 1.0}
    starts = {"estimator": estimator, "causal": language_model, None: None}
    for recipe in RECIPES:
        taught = labels[recipe.teacher]
        model = train_second_order(recipe, taught, starts[recipe.start], vocabulary, settings, folder)
        learned_from = {recipe.teacher.replace("exact", "estimator"), recipe.start} - {None}
        before = flop * len(learned_from) + 2 * parameters(model) * len(taught.tokens_N) * passes[recipe.teacher]
        spent = before + 6 * parameters(model) * settings.second_order_steps * settings.batch * window
        both = second_order.token_entropies(model, fresh_ids_MT)
        yield score(recipe.name, both.entropy_BT, 1, spent)
        yield score(recipe.name, both.expected_entropy_BT, 1, spent, target="entropy")


def teachers_labels(
    source: Source, estimator: EntropyEstimator, language_model: PreTrainedModel, settings: ContestSettings
) -> dict[str, Corpus]:
    """Documents that neither model has seen, a share of their tokens labelled by each."""
    unseen = drawn(source, settings.labelled_documents, settings, stream=3)
    unseen_MT, random = torch.from_numpy(unseen.tokens_MT), np.random.default_rng(settings.seed)
    window = settings.document_tokens
    wanted_MT = torch.from_numpy(
        np.stack([sample_positions(window, settings.labelled_share, random) for _ in range(len(unseen_MT))])
    )
    labels = {
        "exact": exact.token_entropies(estimator, unseen_MT, positions_BT=wanted_MT),
        "causal": causal.token_entropies(language_model, unseen_MT, source.vocabulary).where(wanted_MT, torch.nan),
    }
    tokens = list(unseen.tokens_MT.astype(np.int32))
    return {teacher: Corpus.of(tokens, list(labels_MT.numpy())) for teacher, labels_MT in labels.items()}


@dataclass(frozen=True)
class _Scorer:
    """Labels of the fresh documents against their truth."""

    source: str
    fresh: Drawn

    def __call__(
        self,
        method: str,
        estimates_MT: Tensor,
        passes: float,
        flop: float,
        *,
        target: Target = "surprisal",
        in_nats: bool = True,
    ) -> Entry:
        truth_MT = self.fresh.surprisal_MT if target == "surprisal" else self.fresh.entropy_MT
        contestant = Contestant(
            source=self.source, method=method, target=target, token_passes=passes, training_tflop=flop / TERA
        )
        estimates_N, truth_N = estimates_MT.flatten(), torch.from_numpy(truth_MT).flatten()
        return Entry(measure(contestant, estimates_N, truth_N, in_nats=in_nats), estimates_N.numpy(), truth_N.numpy())


def drawn(source: Source, documents: int, settings: ContestSettings, stream: int) -> Drawn:
    """Documents of the source; another stream gives others."""
    return draw(source, documents, settings.document_tokens, np.random.default_rng([settings.seed, stream]))
