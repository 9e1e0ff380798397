"""Sizes and variants of models: one class for each model, whose fields are flags of its training command.

Those of the estimator and the autoencoder are the fields of its configuration too. No torch here, so that `--help`
comes at once.
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
    """The model."""

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
    """The model."""

    heads: int = 6
    """Attention heads, or of a mixer's convolution."""
    kind: StackKind = "transformer"
    """Attention, or a convolution over positions in its place (masked mixer)."""
    kernel: int = 1
    """Neighbouring hidden indices that a mixer's convolution covers."""


@dataclass(frozen=True, kw_only=True)
class SecondOrderSizes:
    """The model."""

    context: int | None = None
    """Longest window, in tokens; that of the labels by default."""
    width: int | None = None
    """From scratch, hidden size; 192 by default."""
    layers: int | None = None
    """From scratch, blocks; 4 by default."""
    heads: int | None = None
    """From scratch, attention heads; 6 by default."""

    @property
    def from_scratch(self) -> dict[str, int]:
        """The requested sizes that another model would bring along."""
        return {name: size for name, size in asdict(self).items() if size is not None and name != "context"}


@dataclass(kw_only=True)  # not frozen, as transformers' configurations, which inherit it, are not
class WindowEncoderSizes:
    """The model."""

    context: int = 256
    """Longest window, in tokens."""
    encoder_kind: StackKind = "transformer"
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
    """Uniform noise of up to this much in training, which makes the embedding tolerate rounding: half of the precision
    that it is to be stored with."""
    noise_place: NoisePlace = "before-down"
    """On the bottleneck's numbers, or on the encoder's state before it is narrowed to them."""
    decoder_kind: StackKind = "transformer"
    """Attention or masked mixer."""
    decoder_width: int = 192
    """Hidden size of the decoder."""
    decoder_layers: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 6
    """Heads of the decoder."""
    decoder_kernel: int = 1
    """Neighbouring hidden indices that a mixer's convolution covers."""

    def __post_init__(self) -> None:
        if self.bottleneck_width is not None and self.bottleneck_width < 1:
            raise ValueError(f"`model.bottleneck_width` must be at least 1, not {self.bottleneck_width}")
        if self.noise < 0:
            raise ValueError(f"`model.noise` must be 0 or more, not {self.noise}")


@dataclass(kw_only=True)
class EstimatorSizes(WindowEncoderSizes):
    """The model."""

    introduction: Introduction = "token"
    """How the decoder gets the embedding: as one more token, beside every token, or added to every token."""
    introduced_above: int = 0
    """Decoder blocks that see tokens alone, so that exact labels compute them once a window."""


@dataclass(kw_only=True)
class AutoencoderSizes(WindowEncoderSizes):
    """The model."""

    given: Given = "unrolled"
    """How the decoder gets the embedding: the same at every position (repeated), which a mixer can tell apart and a
    transformer cannot, or another half of its numbers at each."""
    bottleneck_width: int | None = None
    """Numbers that the window's embedding has: fewer than the encoder is wide make a compressive autoencoder. None: as
    many."""
