"""Sizes and variants of models, one class for each kind of model.

The fields of a class are flags of the model's training command. The fields for the estimator and the autoencoder are
also fields of these models' configurations. This module does not import torch, so that `--help` prints at once.
"""

from dataclasses import asdict, dataclass
from typing import Literal

StackKind = Literal["transformer", "mixer"]
Introduction = Literal["token", "embedding", "projection"]
Given = Literal["repeated", "unrolled"]
NoisePlace = Literal["bottleneck", "before-down"]
Form = Literal["direct", "residual"]
Entry = Literal["logits", "every-token", "start-token"]
Tuning = Literal["frozen", "lora", "whole"]


@dataclass(frozen=True, kw_only=True)
class TransformerSizes:
    """Sizes of a transformer."""

    context: int = 256
    """Longest window, in tokens."""
    width: int = 192
    """Hidden size."""
    layers: int = 4
    """Number of blocks."""
    heads: int = 6
    """Number of attention heads."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelSizes(TransformerSizes):
    """Sizes and kind of a language model."""

    heads: int = 6
    """Number of attention heads of a transformer, or of convolution heads of a mixer."""
    kind: StackKind = "transformer"
    """Kind of the model: with attention (transformer), or with a masked convolution over positions (mixer)."""
    kernel: int = 1
    """Kernel size of a mixer's convolutions, along the hidden dimension; 1 for a transformer."""


@dataclass(frozen=True, kw_only=True)
class SecondOrderSizes:
    """Sizes of a second-order model. None stands for a default that depends on the model to start from."""

    context: int | None = None
    """Longest window, in tokens. The default is the labels' window, or, if the labels were made with another tokenizer,
    the longest window of the model to start from."""
    width: int | None = None
    """Hidden size, only for a model from scratch; 192 by default."""
    layers: int | None = None
    """Number of blocks, only for a model from scratch; 4 by default."""
    heads: int | None = None
    """Number of attention heads, only for a model from scratch; 6 by default."""

    @property
    def from_scratch(self) -> dict[str, int]:
        """Names and values of the sizes that were set, except `context`. Only models from scratch use them."""
        return {name: size for name, size in asdict(self).items() if size is not None and name != "context"}


@dataclass(kw_only=True)  # not frozen, because transformers' configurations, which inherit this class, are not
class BottleneckSizes:
    """Sizes of the windows and of their embeddings, in all models with a window encoder."""

    context: int = 256
    """Longest window, in tokens."""
    bottleneck_width: int | None = 4
    """Size of the window's embedding. A smaller size makes labels less noisy. None for the encoder's width."""
    noise: float = 0.0
    """Amplitude of the uniform noise in training that makes the embedding tolerate rounding; 0 for no noise. Give half
    of the step size with which the embedding will be stored."""
    noise_place: NoisePlace = "before-down"
    """Place of the noise: the bottleneck's values (bottleneck), or the encoder's state before the bottleneck
    (before-down)."""

    def __post_init__(self) -> None:
        if self.bottleneck_width is not None and self.bottleneck_width < 1:
            raise ValueError(f"`model.bottleneck_width` must be at least 1, not {self.bottleneck_width}")
        if self.noise < 0:
            raise ValueError(f"`model.noise` must be 0 or more, not {self.noise}")


@dataclass(kw_only=True)
class WindowEncoderSizes(BottleneckSizes):
    """Sizes and variants that the estimator and the autoencoder share."""

    encoder_kind: StackKind = "transformer"
    """Kind of the encoder: with attention (transformer), or with a masked convolution over positions (mixer)."""
    encoder_width: int = 64
    """Hidden size of the encoder."""
    encoder_layers: int = 3
    """Number of blocks of the encoder."""
    encoder_heads: int = 2
    """Number of heads of the encoder."""
    encoder_kernel: int = 1
    """Kernel size of the convolutions in a mixer encoder, along the hidden dimension; 1 for a transformer."""
    decoder_kind: StackKind = "transformer"
    """Kind of the decoder: with attention (transformer), or with a masked convolution over positions (mixer)."""
    decoder_width: int = 192
    """Hidden size of the decoder."""
    decoder_layers: int = 4
    """Number of blocks of the decoder."""
    decoder_heads: int = 6
    """Number of heads of the decoder."""
    decoder_kernel: int = 1
    """Kernel size of the convolutions in a mixer decoder, along the hidden dimension; 1 for a transformer."""


@dataclass(kw_only=True)
class EstimatorSizes(WindowEncoderSizes):
    """Sizes and variants of an estimator."""

    introduction: Introduction = "token"
    """Form in which the embedding enters the decoder: as one more token (token), concatenated to every token
    (embedding), or added to every token (projection)."""
    introduced_above: int = 0
    """Number of decoder blocks below the embedding's entry. Exact labels compute these blocks once per window."""


@dataclass(kw_only=True)
class TuningSettings:
    """Settings for the training of a pretrained language model that is part of an estimator or a second-order model."""

    tuning: Tuning = "frozen"
    """Training of the language model: none (frozen), low-rank updates of its linear layers (lora), or all weights
    (whole). A checkpoint holds the trained weights. With frozen and lora, it also names the language model."""
    lora_rank: int = 64
    """Rank of the updates with lora."""
    hold: bool = False
    """With the tuning frozen or lora, copy the pretrained language model into the checkpoint. By default, the
    checkpoint only names the language model, and annotation fetches it."""

    def __post_init__(self) -> None:
        if self.lora_rank < 1:
            raise ValueError(f"`backbone.lora_rank` must be at least 1, not {self.lora_rank}")


@dataclass(kw_only=True)
class BackboneSettings(TuningSettings):
    """Settings of an estimator around a pretrained language model."""

    entry: Entry = "logits"
    """Place where the window's embedding enters the language model: its logits (logits), the states of all tokens
    (every-token), or the state of the token before the window (start-token). With logits, exact labels of a window take
    the time of at most 1.5 passes of the language model. With the other places, exact labels take one pass for every
    token."""
    entry_layer: int = 0
    """Layer below which the embedding enters, unless it enters at the logits. Exact labels compute the lower layers
    once per window."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.entry_layer < 0:
            raise ValueError(f"`backbone.entry_layer` must be 0 or more, not {self.entry_layer}")
        if self.entry == "logits" and self.entry_layer:
            raise ValueError("`backbone.entry_layer` needs `backbone.entry` every-token or start-token; leave it out")


@dataclass(kw_only=True)
class AutoencoderSizes(WindowEncoderSizes):
    """Sizes and variants of an autoencoder."""

    given: Given = "unrolled"
    """Input of the decoder: the same embedding at every position (repeated), or a different half of the embedding at
    each position (unrolled). With repeated embeddings, only a mixer can tell positions apart."""
    bottleneck_width: int | None = None
    """Size of the window's embedding. The autoencoder compresses if the size is below the encoder's width. None for the
    encoder's width."""
