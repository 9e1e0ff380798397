"""The autoencoder: one pass regenerates all tokens of a window from only the window's embedding (paper section 3).

The decoder gets the embedding in one of two forms. In the *repeated* form, every position gets the whole embedding. In
the *unrolled* form, position i gets the half of the embedding that starts at index i, with wrap-around. In both forms,
a linear layer projects the input to the decoder's width. A transformer cannot tell the positions of a repeated
embedding apart, because attention averages identical values. A mixer can tell them apart. With a bottleneck that is
narrower than the encoder, the autoencoder compresses.

B rows, T tokens, C encoder width, H half of the encoder width, D decoder width.
"""

import torch
from torch import Tensor, nn

from pipeline.models.sizes import AutoencoderSizes
from pipeline.models.stacks import causal_hidden
from pipeline.models.window_encoder import WindowEncoder, WindowEncoderConfig, real_losses


class AutoencoderConfig(AutoencoderSizes, WindowEncoderConfig):
    """Configuration of an autoencoder; `given` is the form in which the decoder gets the embedding."""

    model_type = "window-autoencoder"


class Autoencoder(WindowEncoder):
    """Encoder, bottleneck, decoder, and a separate output head, since the decoder has no token embedding.

    Raises:
        ValueError: if a size is below 1, a width is not a multiple of its number of heads, or a transformer has a
            kernel above 1.
    """

    config_class = AutoencoderConfig
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.encoder = config.encoder_stack()
        self.decoder = config.decoder_stack(width=config.decoder_width, layers=config.decoder_layers)
        self.decoder.set_input_embeddings(nn.Identity())
        self.down, self.up = config.narrowing(config.encoder_width)
        given = config.encoder_width if config.given == "repeated" else config.encoder_width // 2
        self.introduce = nn.Linear(given, config.decoder_width)
        self.head = nn.Linear(config.decoder_width, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def decode(self, bottleneck_BE: Tensor, tokens: int) -> Tensor:
        """Return the decoder's last hidden states [B, T, D], with T = `tokens`. State i predicts token i."""
        embedding_BC = self.up(bottleneck_BE)
        if self.config.given == "repeated":
            given_BTX = embedding_BC.unsqueeze(1).expand(-1, tokens, -1)
        else:
            given_BTX = unrolled(embedding_BC, tokens)
        return causal_hidden(self.decoder, self.introduce(given_BTX))

    def decode_losses(self, bottleneck_BE: Tensor, input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        hidden_BTD = self.decode(bottleneck_BE, input_ids_BT.shape[1])
        return real_losses(hidden_BTD, self.head.weight, input_ids_BT, lengths_B)


def unrolled(embedding_BC: Tensor, tokens: int) -> Tensor:
    """Return the unrolled embedding [B, T, H] for T = `tokens` positions.

    Position i gets H of the C values of the embedding: those at the indices i to i + H - 1, modulo C.
    """
    width = embedding_BC.shape[1]
    first_T1 = torch.arange(tokens, device=embedding_BC.device).unsqueeze(1)
    index_TH = (first_T1 + torch.arange(width // 2, device=embedding_BC.device)) % width
    return embedding_BC[:, index_TH]
