"""Steps shared by the training jobs: train a model, then save its checkpoint and its model card.

Jobs with cross-validation folds repeat these steps for each fold. Within `process_group`, a job reads its documents,
creates its output folder with `resume.begin_on_main`, trains and saves. The same command resumes an interrupted job.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from transformers import PreTrainedModel

from pipeline.messages import say
from pipeline.models.checkpoint import fold_folder
from pipeline.models.loading import save_checkpoint
from pipeline.models.model_card import training_length
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training import resume
from pipeline.training.batches import Batch, Windowing, endless_batches
from pipeline.training.config import DryRunSettings, TrainingConfig
from pipeline.training.cost import Cost
from pipeline.training.data import Documents
from pipeline.training.distributed import this_process
from pipeline.training.epoch import Epoch
from pipeline.training.evaluation import window_metrics
from pipeline.training.losses import estimator_loss
from pipeline.training.metrics import Metrics, best_evaluation
from pipeline.training.trainer import train

ModelT = TypeVar("ModelT", bound=PreTrainedModel)
PartT = TypeVar("PartT")


def train_folds(
    parts: Iterable[PartT],
    folds: int,
    output: Path,
    config: TrainingConfig,
    train_fold: Callable[[int, PartT, Path], None],
) -> None:
    """Train one model per cross-validation fold, each in its own folder, and skip models that are already finished.

    Args:
        parts: for each fold, the documents to train its model on. With several folds, none of these documents is in the
            fold.
        train_fold: function that trains and saves a fold's model, given the fold's index, part and folder.
    """
    for fold, part in enumerate(parts):
        folder = fold_folder(output, fold, folds)
        if not resume.is_finished(folder):
            train_fold(fold, part, folder)
    if this_process().is_main_process:
        resume.finish(output, config.lasting_step)


def train_and_save(
    model: ModelT,
    batches: Iterator[Batch],
    loss: Callable[[ModelT, Batch], Tensor],
    evaluate: Callable[[ModelT], Metrics],
    config: TrainingConfig,
    output: Path,
    *,
    tokenizer: Path | None,
    card: Callable[[Metrics], str],
    result: str,
) -> None:
    """Train a model and write its checkpoint to `output`.

    Args:
        tokenizer: folder of the tokenizer to include in the checkpoint.
        card: function that returns the model card, given the metrics of the last evaluation.
        result: format string of the closing message, whose fields are names of metrics.
    """
    output.mkdir(parents=True, exist_ok=True)
    metrics = train(model, batches, loss, evaluate, config, output)
    if this_process().is_main_process:
        save_checkpoint(model, output, dtype=config.save_as, tokenizer_folder=tokenizer, card=card(metrics))
        resume.finish(output, config.lasting_step)
        say(f"{output}: {result.format_map(metrics)}{_best(output)}")


def _best(output: Path) -> str:
    """Return text about the evaluation with the lowest held-out loss, to append to the closing message.

    The text is empty if the last evaluation has the lowest loss, or if the metrics have no `held_out_loss`.
    """
    best = best_evaluation(output)
    return "" if best is None else f", at best {best['held_out_loss']:.3f} (step {best['step']:,})"


def train_on_windows(
    model: WindowEncoder,
    documents: Documents,
    config: TrainingConfig,
    output: Path,
    card: Callable[[Mapping[str, object]], str],
    *,
    varied: bool = False,
    recut: bool = True,
) -> None:
    """Train an estimator or an autoencoder on windows of documents and write its checkpoint to `output`.

    Args:
        card: function that returns the model card, given the rows of the card's table.
        varied: train on windows of random lengths, with every length up to the context equally likely. By default,
            windows have the length of the context, except at the ends of documents.
        recut: cut windows of random lengths again in every epoch.
    """
    windows = Windowing(model.config.context, config.tokens_per_batch)
    seen = Windowing(model.config.context, config.tokens_per_batch, varied=varied, recut=recut)
    train_and_save(
        model,
        endless_batches(documents.blocks, seen, config.seed),
        estimator_loss,
        lambda trained: window_metrics(trained, documents.held_out, windows),
        config,
        output,
        tokenizer=documents.source.folder,
        card=lambda metrics: card({**documents.facts, **_card_rows(model, config, metrics)}),
        result="held-out loss {held_out_loss:.3f} nats per token",
    )


def epoch_on_windows(
    documents: Documents, context: int, tokens_per_batch: int, *, varied: bool = False, folds: int = 1
) -> Epoch:
    """Return the windows of one epoch of `train_on_windows`.

    Windows have at most `context` tokens. With `varied`, their lengths are random. With several folds, the epoch is
    that of one of the `folds` models.
    """
    seen = Windowing(context, tokens_per_batch, varied=varied)
    return Epoch.of_documents(documents, seen).of_fold(folds)


def cost_on_windows(
    model: WindowEncoder, epoch: Epoch, config: TrainingConfig, settings: DryRunSettings, *, models: int = 1
) -> Cost:
    """Return the cost of `train_on_windows`, for `models` models."""
    return Cost(model, estimator_loss, epoch, config, settings, models=models)


def _card_rows(model: WindowEncoder, config: TrainingConfig, metrics: Metrics) -> dict[str, object]:
    return {
        "training": training_length(metrics),
        **config.averaged,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "trained parameters": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "held-out loss, nats per token": metrics["held_out_loss"],
        "with the embedding's cost (float32)": metrics["normalized_loss"],
        "bits per byte, including that cost": metrics.get("bits_per_byte", "unknown: documents came as tokens"),
    }
