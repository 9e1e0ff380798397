"""Contest of label methods on a source of known entropy: train their models, then use each to label the same documents.

Models that learn from documents get equal compute; models that learn from labels get the same number of steps.

Shapes: M documents, T tokens per document.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.data.windows import sample_positions
from pipeline.experiments.accuracy import Contestant, Entry, Target, measure
from pipeline.experiments.sources import SOURCES, ContestSettings, Drawn, KnownSource, draw
from pipeline.experiments.trial import ModelT, train_once
from pipeline.labels import attribution, causal, exact, second_order
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.sizes import Form
from pipeline.models.stacks import llama_config, new_language_model
from pipeline.training.batches import Windowing
from pipeline.training.config import TrainingConfig
from pipeline.training.losses import document_loss, estimator_loss, second_order_loss
from schemas.annotations import EXPECTED_ENTROPY


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Recipe for training a second-order model: its form and loss, its initial weights, and the teacher.

    The teacher is the method that labels the training documents.
    """

    name: str
    teacher: Literal["exact", "causal"] = "exact"
    start: Literal["estimator", "causal"] | None = "causal"
    form: Form = "direct"
    causal_weight: float = 0.0
    transformers: int = 1


RECIPES = (
    Recipe(name="second-order, scratch", start=None),
    Recipe(name="second-order, from estimator", start="estimator"),
    Recipe(name="second-order, from causal"),
    Recipe(name="second-order, from causal, joint", causal_weight=1.0),
    Recipe(name="second-order, residual", form="residual"),
    Recipe(name="second-order, residual, joint", form="residual", causal_weight=1.0),
    Recipe(name="second-order, residual, joint, two", form="residual", causal_weight=1.0, transformers=2),
    Recipe(name="second-order, residual, causal teacher", form="residual", teacher="causal"),
)


def new_estimator(vocabulary: int, settings: ContestSettings, **variant: Any) -> EntropyEstimator:
    """Return an untrained estimator with the settings' sizes. `variant` overrides fields of its configuration."""
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "context": settings.document_tokens,
        "encoder_width": settings.width // 2,
        "encoder_layers": max(1, settings.layers - 1),
        "encoder_heads": max(1, settings.heads // 2),
        "decoder_width": settings.width,
        "decoder_layers": settings.layers,
        "decoder_heads": settings.heads,
        "bottleneck_width": settings.bottleneck_width,
    }
    return EntropyEstimator(EstimatorConfig(**{**sizes, **variant}))


def train_estimator(
    corpus: Corpus, vocabulary: int, settings: ContestSettings, folder: Path, **variant: Any
) -> EntropyEstimator:
    """Train and return an estimator.

    Windows have random lengths, up to a whole document. `variant` overrides fields of the estimator's configuration.
    """
    model = new_estimator(vocabulary, settings, **variant)
    return _trained(model, corpus, estimator_loss, settings.steps, settings, folder / "estimator", varied=True)


def train_language_model(
    corpus: Corpus, vocabulary: int, settings: ContestSettings, folder: Path, *, keep_weights: bool = False
) -> PreTrainedModel:
    """Train and return a causal language model of the size of the estimator's decoder, with the estimator's compute.

    The start token is the first id after the vocabulary. With `keep_weights`, the trained weights are saved below
    `folder`. A later call loads these weights instead of training.
    """
    stack = _stack_config(vocabulary + 1, settings)
    model = new_language_model(stack, start=vocabulary)
    steps = round(settings.steps * parameters(new_estimator(vocabulary, settings)) / parameters(model))
    loss = partial(document_loss, start=vocabulary)
    return _trained(model, corpus, loss, steps, settings, folder / "causal", keep_weights=keep_weights)


def train_second_order(
    recipe: Recipe,
    labels: Corpus,
    start: PreTrainedModel | None,
    vocabulary: int,
    settings: ContestSettings,
    folder: Path,
) -> SecondOrderModel:
    """Train a second-order model on labelled documents as the recipe says, and return the model.

    Training starts from the weights of `start`, or from random weights if `start` is None.
    """
    known = labels.given_labels
    scale: dict[str, Any] = {"label_mean": float(known.mean()), "label_deviation": float(known.std())}
    residual = recipe.form == "residual"
    shape: dict[str, Any] = {"form": recipe.form, "gain": residual, "transformers": recipe.transformers}
    if isinstance(start, EntropyEstimator):
        model = SecondOrderModel.from_estimator(start, **shape, **scale)
    elif start is not None:
        model = SecondOrderModel.from_language_model(start, **shape, **scale)
    else:
        stack = _stack_config(vocabulary, settings)
        model = SecondOrderModel.from_scratch(stack, context=settings.document_tokens, **shape, **scale)
    loss = partial(second_order_loss, causal_weight=recipe.causal_weight)
    rate = settings.learning_rate / 3
    return _trained(model, labels, loss, settings.second_order_steps, settings, folder / recipe.name, rate=rate)


def parameters(model: torch.nn.Module) -> int:
    """Return the number of parameters; a tied matrix is counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _stack_config(vocabulary: int, settings: ContestSettings) -> Any:
    return llama_config(
        vocab_size=vocabulary,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        context=settings.document_tokens,
    )


def _trained(
    model: ModelT,
    corpus: Corpus,
    loss: Callable[..., Tensor],
    steps: int,
    settings: ContestSettings,
    folder: Path,
    *,
    rate: float | None = None,
    varied: bool = False,
    keep_weights: bool = False,
) -> ModelT:
    tokens_per_batch = settings.batch * settings.document_tokens
    windowing = Windowing(
        settings.document_tokens, tokens_per_batch, varied=varied, labelled_only=corpus.labels_N is not None
    )
    config = TrainingConfig(
        steps=steps,
        tokens_per_batch=tokens_per_batch,
        learning_rate=rate or settings.learning_rate,
        evaluate_every=steps,
        seed=settings.seed,
    )
    model = train_once(model, corpus, windowing, loss, lambda _: {}, config, folder, keep_weights=keep_weights)
    model.requires_grad_(False)
    return model


TERA = 1e12


def hold_contest(name: str, settings: ContestSettings, folder: Path) -> Iterator[Entry]:
    """Train the models of all label methods on the source called `name`, and yield an entry per method and target.

    Metrics of the training runs are written to `folder`.
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
    flop = 6 * parameters(estimator) * settings.steps * settings.batch * window  # same for the language model
    yield score("causal", causal.token_entropies(language_model, fresh_ids_MT, vocabulary), 1, flop)
    predicted = causal.token_labels(language_model, fresh_ids_MT, vocabulary, {EXPECTED_ENTROPY: ()})
    yield score("causal", predicted[EXPECTED_ENTROPY], 1, flop, target="entropy")
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
    source: KnownSource, estimator: EntropyEstimator, language_model: PreTrainedModel, settings: ContestSettings
) -> dict[str, Corpus]:
    """Return two labelled corpora by the name of the teacher: `exact` (the estimator) or `causal` (a language model).

    Both corpora contain the same documents, and the same random tokens are labelled in both. Neither of the
    teachers' models was trained on these documents.
    """
    unseen = drawn(source, settings.labelled_documents, settings, stream=3)
    unseen_MT, random = torch.from_numpy(unseen.tokens_MT), np.random.default_rng(settings.seed)
    window = settings.document_tokens
    requested_MT = torch.from_numpy(
        np.stack([sample_positions(window, settings.labelled_share, random) for _ in range(len(unseen_MT))])
    )
    labels = {
        "exact": exact.token_entropies(estimator, unseen_MT, positions_BT=requested_MT),
        "causal": causal.token_entropies(language_model, unseen_MT, source.vocabulary).where(requested_MT, torch.nan),
    }
    tokens = list(unseen.tokens_MT.astype(np.int32))
    return {teacher: Corpus.of(tokens, list(labels_MT.numpy())) for teacher, labels_MT in labels.items()}


@dataclass(frozen=True)
class _Scorer:
    """Scorer of label methods: a function that compares labels of the fresh documents with their true values."""

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


def drawn(source: KnownSource, documents: int, settings: ContestSettings, stream: int) -> Drawn:
    """Draw documents with the settings' length and seed. Different values of `stream` give independent documents."""
    return draw(source, documents, settings.document_tokens, np.random.default_rng([settings.seed, stream]))
