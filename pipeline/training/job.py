"""A training job: from documents and a fresh model to a checkpoint with its card, once or for each fold.

The jobs have in common what stands here. Within `process_group` each reads its documents, begins its folder with
`resume.begin_on_main`, and trains and saves; the same command resumes what was interrupted.
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
from pipeline.training.config import TrainingConfig
from pipeline.training.data import Documents
from pipeline.training.distributed import this_process
from pipeline.training.evaluation import window_metrics
from pipeline.training.losses import estimator_loss
from pipeline.training.metrics import Metrics
from pipeline.training.trainer import train

ModelT = TypeVar("ModelT", bound=PreTrainedModel)
PartT = TypeVar("PartT")


def train_folds(
    parts: Iterable[PartT], folds: int, output: Path, train_fold: Callable[[int, PartT, Path], None]
) -> None:
    """Trains a model on each part, which lacks one fold, in a folder of its own; those that are finished stay.

    Args:
        train_fold: trains and saves a fold's model, given its number, its part and its folder.
    """
    for fold, part in enumerate(parts):
        folder = fold_folder(output, fold, folds)
        if not resume.is_finished(folder):
            train_fold(fold, part, folder)
    if this_process().is_main_process:
        resume.finish(output)


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
    """Trains a model and writes its checkpoint to `output`.

    Args:
        tokenizer: folder of the tokenizer that becomes part of the checkpoint.
        card: makes the model card of the last metrics.
        result: what to say of the last metrics, as a format string.
    """
    output.mkdir(parents=True, exist_ok=True)
    metrics = train(model, batches, loss, evaluate, config, output)
    if this_process().is_main_process:
        save_checkpoint(model, output, dtype=config.save_as, tokenizer_folder=tokenizer, card=card(metrics))
        resume.finish(output)
        say(f"{output}: {result.format_map(metrics)}")


def train_on_windows(
    model: WindowEncoder,
    documents: Documents,
    config: TrainingConfig,
    output: Path,
    card: Callable[[Mapping[str, object]], str],
    *,
    varied: bool = False,
) -> None:
    """`train_and_save` of an estimator or an autoencoder, on windows of documents.

    Args:
        card: makes the model card of its rows.
        varied: train on windows of every length up to the context, equally often.
    """
    windows = Windowing(model.config.context, config.tokens_per_batch)
    seen = Windowing(model.config.context, config.tokens_per_batch, varied=varied)
    train_and_save(
        model,
        endless_batches(documents.blocks, seen, config.seed),
        estimator_loss,
        lambda trained: window_metrics(trained, documents.held_out, windows),
        config,
        output,
        tokenizer=documents.source.folder,
        card=lambda metrics: card({**documents.facts, **_card_rows(model, metrics)}),
        result="held-out loss {held_out_loss:.3f} nats a token",
    )


def _card_rows(model: WindowEncoder, metrics: Metrics) -> dict[str, object]:
    return {
        "training": training_length(metrics),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held-out loss, nats a token": metrics["held_out_loss"],
        "with the embedding's cost (float32)": metrics["normalized_loss"],
        "bits a byte, that cost included": metrics.get("bits_per_byte", "unknown: documents came as tokens"),
    }
