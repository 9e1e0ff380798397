"""The window encoder that the estimator and the autoencoder share.

The encoder's state at a window's last token, narrowed by a bottleneck, is the embedding of the window. Because the
encoder is causal, one pass gives the embedding of every prefix. Noise on the embedding in training makes the embedding
tolerate storage in lower precision (paper: noise injection).

B rows, T tokens, C encoder width, E bottleneck width.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from pipeline.models.cross_entropy import token_cross_entropy
from pipeline.models.sizes import BottleneckSizes, StackKind, WindowEncoderSizes
from pipeline.models.stacks import causal_hidden, input_embeddings, new_stack, real_positions, stack_config


class BottleneckConfig(PreTrainedConfig, BottleneckSizes):
    """Vocabulary, windows and embeddings of any model with a window encoder."""

    vocab_size: int = 8192

    def narrowing(self, wide: int) -> tuple[nn.Module, nn.Module]:
        """Return two new layers, into and out of the bottleneck; without a bottleneck, two identities."""
        narrow = self.bottleneck_width
        return (nn.Identity(), nn.Identity()) if narrow is None else (nn.Linear(wide, narrow), nn.Linear(narrow, wide))


class WindowEncoderConfig(BottleneckConfig, WindowEncoderSizes):
    """Sizes and vocabulary of a window encoder."""

    initializer_range: float = 0.02

    @property
    def embedding_width(self) -> int:
        """Size of a window's embedding."""
        return self.encoder_width if self.bottleneck_width is None else self.bottleneck_width

    def encoder_stack(self) -> PreTrainedModel:
        """Return a new encoder with random weights."""
        sizes = {"width": self.encoder_width, "layers": self.encoder_layers, "heads": self.encoder_heads}
        return self._stack(self.encoder_kind, kernel=self.encoder_kernel, **sizes)

    def decoder_stack(self, *, width: int, layers: int) -> PreTrainedModel:
        """Return new decoder layers with random weights."""
        sizes = {"width": width, "layers": layers, "heads": self.decoder_heads}
        return self._stack(self.decoder_kind, kernel=self.decoder_kernel, **sizes)

    def _stack(self, kind: StackKind, **sizes: int) -> PreTrainedModel:
        shared: dict[str, Any] = {"vocab_size": self.vocab_size, "context": self.context}
        return new_stack(stack_config(kind, initializer_range=self.initializer_range, **shared, **sizes))


class WindowEncoder(PreTrainedModel, ABC):
    """Base class of models with an encoder, a decoder, and the layers `down` and `up` into and out of the bottleneck.

    A subclass creates these parts.
    """

    encoder: PreTrainedModel
    down: nn.Module
    up: nn.Module
    config: BottleneckConfig

    def encoded(self, input_ids_BT: Tensor) -> Tensor:
        """Return the encoder's states [B, T, C]. State i depends on the tokens 0..i."""
        return causal_hidden(self.encoder, input_embeddings(self.encoder)(input_ids_BT))

    def narrowed(self, hidden_BTC: Tensor) -> Tensor:
        """Return bottleneck values [..., E] from states of the encoder [..., C]. Training adds noise."""
        before_down = self.config.noise_place == "before-down"
        narrow_BTE: Tensor = self.down(self._noisy(hidden_BTC) if before_down else hidden_BTC)
        return narrow_BTE if before_down else self._noisy(narrow_BTE)

    def bottlenecks(self, input_ids_BT: Tensor) -> Tensor:
        """Return the bottleneck values [B, T, E] of all prefixes. The values at index i are for tokens 0..i."""
        return self.narrowed(self.encoded(input_ids_BT))

    def window_bottlenecks(self, input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the bottleneck values [B, E] of each row's window, which ends at the row's last real token."""
        return last_real(self.bottlenecks(input_ids_BT), lengths_B)

    @abstractmethod
    def decode_losses(self, bottleneck_BE: Tensor, input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the losses of all tokens in nats [B, T], given each window's bottleneck values; 0 at padding."""

    def token_losses(self, input_ids_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return the losses of all tokens in nats [B, T], given the embedding of the whole window.

        The first token has a loss too. Losses at padding are 0.

        Args:
            input_ids_BT: windows, padded on the right with any token.
            lengths_B: number of real tokens in each row; None for T in all rows.
        """
        if lengths_B is None:
            lengths_B = torch.full((len(input_ids_BT),), input_ids_BT.shape[1], device=input_ids_BT.device)
        return self.decode_losses(self.window_bottlenecks(input_ids_BT, lengths_B), input_ids_BT, lengths_B)

    forward = token_losses

    def _noisy(self, values: Tensor) -> Tensor:
        if not self.training or not self.config.noise:
            return values
        return values + self.config.noise * (2 * torch.rand_like(values) - 1)


def last_real(values_BTX: Tensor, lengths_B: Tensor) -> Tensor:
    """Return the values [B, X] at each row's last real token."""
    return values_BTX[torch.arange(len(lengths_B), device=lengths_B.device), lengths_B - 1]


def real_losses(hidden_BTD: Tensor, head_VD: Tensor, input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Return -ln p of every token in nats, float32 [B, T], for the decoder's last hidden states; 0 at padding."""
    real_BT = real_positions(lengths_B, input_ids_BT.shape[1])
    losses_BT = hidden_BTD.new_zeros(input_ids_BT.shape, dtype=torch.float32)
    losses_BT[real_BT] = token_cross_entropy(hidden_BTD[real_BT], head_VD, input_ids_BT[real_BT])
    return losses_BT
