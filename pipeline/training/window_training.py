"""The training of an estimator or an autoencoder: on windows of documents, from a fresh model to its checkpoint."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.data.corpus import Corpus
from pipeline.messages import say
from pipeline.models.loading import save_checkpoint
from pipeline.models.model_card import training_length
from pipeline.models.quantization import Codec
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training import resume
from pipeline.training.batches import Windowing, endless_batches
from pipeline.training.config import TrainingConfig
from pipeline.training.data import Documents
from pipeline.training.distributed import this_process
from pipeline.training.evaluation import window_accounting
from pipeline.training.losses import estimator_loss
from pipeline.training.metrics import Metrics
from pipeline.training.trainer import train


def train_on_windows(
    model: WindowEncoder,
    documents: Documents,
    training: TrainingConfig,
    output: Path,
    card: Callable[[Mapping[str, object]], str],
    *,
    varied: bool = False,
) -> None:
    """Trains a model and writes it to `output`, with the text that `card` makes of what is known of it.

    Args:
        varied: whether to train on windows of every length up to the context, equally often.
    """
    output.mkdir(parents=True, exist_ok=True)
    figures = train(
        model,
        endless_batches(documents.blocks, window_cut(model, training, varied=varied), training.seed),
        estimator_loss,
        lambda trained: held_out_figures(trained, documents.held_out, window_cut(model, training)),
        training,
        output,
    )
    if this_process().is_main_process:
        text = card({**documents.facts, **facts(model, figures)})
        save_checkpoint(model, output, dtype=training.save_as, tokenizer_folder=documents.source.folder, card=text)
        resume.finish(output)
        say(f"{output}: held-out loss {figures['held_out_loss']:.3f} nats a token")


def window_cut(model: WindowEncoder, training: TrainingConfig, *, varied: bool = False) -> Windowing:
    """Windows of the whole context, or of every length up to it."""
    return Windowing(model.config.context, training.tokens_per_batch, varied=varied)


def held_out_figures(model: WindowEncoder, held_out: Corpus, cut: Windowing) -> Metrics:
    """Loss in nats a token, the same with the embedding's cost spread over its window, and that in bits a byte."""
    account = window_accounting(model, Codec("float32"), held_out, cut)
    figures = {"held_out_loss": account.loss, "normalized_loss": account.normalized_loss}
    return figures | ({} if account.bits_per_byte is None else {"bits_per_byte": account.bits_per_byte})


def facts(model: WindowEncoder, figures: Metrics) -> dict[str, object]:
    """Rows of the checkpoint's card."""
    return {
        "training": training_length(figures),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held-out loss, nats a token": figures["held_out_loss"],
        "with the embedding's cost (float32)": figures["normalized_loss"],
        "bits a byte, that cost included": figures.get("bits_per_byte", "unknown: documents came as tokens"),
    }
