"""The training of an estimator or an autoencoder: on windows of documents, from a fresh model to its checkpoint."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.corpus import Corpus
from pipeline.models.card import training_length
from pipeline.models.loading import save_checkpoint
from pipeline.models.quantization import Codec
from pipeline.models.stack import Kind
from pipeline.models.window_encoder import NoisePlace, WindowEncoder
from pipeline.training import resume
from pipeline.training.accounting import window_accounting
from pipeline.training.batches import Cut, endless_batches
from pipeline.training.config import TrainingConfig
from pipeline.training.documents import Documents
from pipeline.training.log import Figures
from pipeline.training.loop import train
from pipeline.training.losses import estimator_loss
from pipeline.training.processes import this_process


@dataclass(frozen=True, kw_only=True)
class WindowEncoderSizes:
    """The model."""

    context: int = 256
    """Longest window, in tokens."""
    encoder_kind: Kind = "transformer"
    """Attention, or a convolution over positions in its place (masked mixer)."""
    encoder_width: int = 64
    """Hidden size of the encoder."""
    encoder_layers: int = 3
    """Blocks of the encoder."""
    encoder_heads: int = 2
    """Heads of the encoder."""
    encoder_kernel: int = 1
    """Neighbouring hidden indices that a mixer's convolution covers."""
    bottleneck_width: int | None = 4
    """Numbers that the window's embedding has; fewer make less noisy labels. None: as many as the encoder is wide."""
    noise: float = 0.0
    """Uniform noise of up to so much in training, which makes the embedding bear rounding: half of the precision that
    it is to be stored with."""
    noise_place: NoisePlace = "before-down"
    """On the bottleneck's numbers, or on the encoder's state before it is narrowed to them."""
    decoder_kind: Kind = "transformer"
    """As of the encoder."""
    decoder_width: int = 192
    """Hidden size of the decoder."""
    decoder_layers: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 6
    """Heads of the decoder."""
    decoder_kernel: int = 1
    """As of the encoder."""

    def __post_init__(self) -> None:
        if self.bottleneck_width is not None and self.bottleneck_width < 1:
            raise ValueError(f"--model.bottleneck-width must be at least 1, not {self.bottleneck_width}")
        if self.noise < 0:
            raise ValueError(f"--model.noise must be 0 or more, not {self.noise}")


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
        print(f"{output}: held-out loss {figures['held_out_loss']:.3f} nats a token")


def window_cut(model: WindowEncoder, training: TrainingConfig, *, varied: bool = False) -> Cut:
    """Windows of the whole context, or of every length up to it."""
    return Cut(model.config.context, training.tokens_per_batch, varied=varied)


def held_out_figures(model: WindowEncoder, held_out: Corpus, cut: Cut) -> Figures:
    """Loss in nats a token, the same with the embedding's cost spread over its window, and that in bits a byte."""
    account = window_accounting(model, Codec("float32"), held_out, cut)
    figures = {"held_out_loss": account.loss, "normalized_loss": account.normalized_loss}
    return figures | ({} if account.bits_per_byte is None else {"bits_per_byte": account.bits_per_byte})


def facts(model: WindowEncoder, figures: Figures) -> dict[str, object]:
    """Rows of the checkpoint's card."""
    return {
        "training": training_length(figures),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "held-out loss, nats a token": figures["held_out_loss"],
        "with the embedding's cost (float32)": figures["normalized_loss"],
        "bits a byte, that cost included": figures.get("bits_per_byte", "unknown: documents came as tokens"),
    }
