"""Sizes and variants of models: one class for each model, whose fields are flags of its training command.

The fields for estimator and autoencoder are also fields of their configurations. This module does not import torch, so
that `--help` prints at once.
"""

from dataclasses import asdict, dataclass
from typing import Literal

StackKind = Literal["transformer", "mixer"]
Introduction = Literal["token", "embedding", "projection"]
Given = Literal["repeated", "unrolled"]
NoisePlace = Literal["bottleneck", "before-down"]
Form = Literal["direct", "residual"]


@dataclass(frozen=True, kw_only=True)
class TransformerSizes:
    """Sizes of a transformer."""

    context: int = 256
    """Longest window, in tokens."""
    width: int = 192
    """Hidden size."""
    layers: int = 4
    """Blocks."""
    heads: int = 6
    """Attention heads."""


@dataclass(frozen=True, kw_only=True)
class LanguageModelSizes(TransformerSizes):
    """Sizes and kind of a language model."""

    heads: int = 6
    """Heads of the attention, or of a mixer's convolution."""
    kind: StackKind = "transformer"
    """Attention (transformer), or a convolution over positions (masked mixer)."""
    kernel: int = 1
    """Number of neighbouring hidden indices that a mixer's convolution covers."""


@dataclass(frozen=True, kw_only=True)
class SecondOrderSizes:
    """Sizes of a second-order model; None for a default that depends on where the model starts."""

    context: int | None = None
    """Longest window, in tokens; by default the window of the labels."""
    width: int | None = None
    """Hidden size, only for a model from scratch; 192 by default."""
    layers: int | None = None
    """Blocks, only for a model from scratch; 4 by default."""
    heads: int | None = None
    """Attention heads, only for a model from scratch; 6 by default."""

    @property
    def from_scratch(self) -> dict[str, int]:
        """Sizes that were set, except `context`; a model to start from has these already."""
        return {name: size for name, size in asdict(self).items() if size is not None and name != "context"}


@dataclass(kw_only=True)  # not frozen, because transformers' configurations, which inherit this class, are not
class WindowEncoderSizes:
    """Sizes and variants that the estimator and the autoencoder share."""

    context: int = 256
    """Longest window, in tokens."""
    encoder_kind: StackKind = "transformer"
    """Attention (transformer), or a convolution over positions (masked mixer)."""
    encoder_width: int = 64
    """Hidden size of the encoder."""
    encoder_layers: int = 3
    """Blocks of the encoder."""
    encoder_heads: int = 2
    """Heads of the encoder."""
    encoder_kernel: int = 1
    """Number of neighbouring hidden indices that a mixer's convolution covers."""
    bottleneck_width: int | None = 4
    """Size of the window's embedding; a smaller one makes less noisy labels. None: the width of the encoder."""
    noise: float = 0.0
    """Amplitude of uniform noise in training, which makes the embedding tolerate rounding; give half of the precision
    that the embedding will be stored with."""
    noise_place: NoisePlace = "before-down"
    """Place of the noise: the bottleneck's values, or the encoder's state before it is narrowed to them."""
    decoder_kind: StackKind = "transformer"
    """Attention (transformer), or a convolution over positions (masked mixer)."""
    decoder_width: int = 192
    """Hidden size of the decoder."""
    decoder_layers: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 6
    """Heads of the decoder."""
    decoder_kernel: int = 1
    """Number of neighbouring hidden indices that a mixer's convolution covers."""

    def __post_init__(self) -> None:
        if self.bottleneck_width is not None and self.bottleneck_width < 1:
            raise ValueError(f"`model.bottleneck_width` must be at least 1, not {self.bottleneck_width}")
        if self.noise < 0:
            raise ValueError(f"`model.noise` must be 0 or more, not {self.noise}")


@dataclass(kw_only=True)
class EstimatorSizes(WindowEncoderSizes):
    """Sizes and variants of an estimator."""

    introduction: Introduction = "token"
    """Entry of the embedding into the decoder: as one more token, alongside every token, or added to every token."""
    introduced_above: int = 0
    """Decoder blocks below the embedding's entry, which exact labels compute once per window."""


@dataclass(kw_only=True)
class AutoencoderSizes(WindowEncoderSizes):
    """Sizes and variants of an autoencoder."""

    given: Given = "unrolled"
    """Input of the decoder: the same embedding at every position (repeated), where a mixer can tell positions apart and
    a transformer cannot, or a different half of the embedding at each position (unrolled)."""
    bottleneck_width: int | None = None
    """Size of the window's embedding; below the encoder's width it makes a compressive autoencoder. None: the width of
    the encoder."""
