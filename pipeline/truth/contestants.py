"""The models of a contest, each trained on one source's documents: at equal compute where they learn from documents,
and for as many steps as each other where they learn from labels.

M documents, T tokens of each.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.sizes import Form
from pipeline.models.stacks import llama_config, new_language_model
from pipeline.training import resume
from pipeline.training.batches import Cut, endless_batches
from pipeline.training.config import TrainingConfig
from pipeline.training.losses import document_loss, estimator_loss, second_order_loss
from pipeline.training.trainer import train
from pipeline.truth.settings import ContestSettings

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A way to train a second-order model."""

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
    """An estimator of the settings' sizes; `variant` are other fields of its configuration."""
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
    """Trained on windows of every length."""
    model = new_estimator(vocabulary, settings, **variant)
    return _trained(model, corpus, estimator_loss, settings.steps, settings, folder / "estimator", varied=True)


def train_language_model(corpus: Corpus, vocabulary: int, settings: ContestSettings, folder: Path) -> PreTrainedModel:
    """The decoder by itself; the id after the vocabulary is its start. It gets the compute of the estimator."""
    stack = _stack_config(vocabulary + 1, settings)
    model = new_language_model(stack, start=vocabulary)
    steps = round(settings.steps * parameters(new_estimator(vocabulary, settings)) / parameters(model))
    loss = partial(document_loss, start=vocabulary)
    return _trained(model, corpus, loss, steps, settings, folder / "causal")


def train_second_order(
    recipe: Recipe,
    labels: Corpus,
    start: PreTrainedModel | None,
    vocabulary: int,
    settings: ContestSettings,
    folder: Path,
) -> SecondOrderModel:
    """Trained on the labels by the recipe, from the model that the recipe starts from."""
    given = labels.given_labels
    scale: dict[str, Any] = {"label_mean": float(given.mean()), "label_deviation": float(given.std())}
    shape: dict[str, Any] = {"form": recipe.form, "transformers": recipe.transformers}
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
    """Numbers that are trained; a tied matrix counts once."""
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
) -> ModelT:
    tokens_per_batch = settings.batch * settings.document_tokens
    cut = Cut(settings.document_tokens, tokens_per_batch, varied=varied, labelled_only=corpus.labels_N is not None)
    config = TrainingConfig(
        steps=steps,
        tokens_per_batch=tokens_per_batch,
        learning_rate=rate or settings.learning_rate,
        evaluate_every=steps,
        seed=settings.seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    train(model, endless_batches([corpus], cut, settings.seed), loss, lambda trained: {}, config, folder)
    resume.finish(folder)
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    return model
