"""Sizes and variants of models, as flags give them; no torch here, so that `--help` comes at once."""

from dataclasses import dataclass
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
    """Uniform noise of up to so much in training, which makes the embedding bear rounding: half of the precision that
    it is to be stored with."""
    noise_place: NoisePlace = "before-down"
    """On the bottleneck's numbers, or on the encoder's state before it is narrowed to them."""
    decoder_kind: StackKind = "transformer"
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
