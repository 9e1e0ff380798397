"""The autoencoder: all tokens of a window regenerated in one pass from its embedding alone (paper section 3).

The embedding is given to the decoder repeated, the same at every position, or unrolled: position i gets a projection of
half of the embedding's numbers, from number i on and around its end. With a bottleneck it compresses. A transformer
cannot tell positions apart by repeated embeddings, as its attention averages what is the same everywhere; a mixer can.

B rows, T tokens, C encoder width, H half of it, D decoder width.
"""

import torch
from torch import Tensor, nn

from pipeline.models.sizes import AutoencoderSizes
from pipeline.models.stacks import causal_hidden
from pipeline.models.window_encoder import WindowEncoder, WindowEncoderConfig, real_losses


class AutoencoderConfig(AutoencoderSizes, WindowEncoderConfig):
    """Which autoencoder; `given` is how the decoder gets the embedding."""

    model_type = "window-autoencoder"


class Autoencoder(WindowEncoder):
    """Encoder, bottleneck, decoder, and an output head of its own, since the decoder reads no tokens.

    Raises:
        ValueError: if sizes do not fit together.
    """

    config_class = AutoencoderConfig
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.encoder = config.encoder_stack()
        self.decoder = config.decoder_stack(width=config.decoder_width, layers=config.decoder_layers)
        self.decoder.set_input_embeddings(nn.Identity())
        self.down, self.up = config.narrowing()
        given = config.encoder_width if config.given == "repeated" else config.encoder_width // 2
        self.introduce = nn.Linear(given, config.decoder_width)
        self.head = nn.Linear(config.decoder_width, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def decode(self, bottleneck_BE: Tensor, tokens: int) -> Tensor:
        """Hidden states [B, T, D] for windows of so many tokens; index i predicts token i."""
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
    """[B, T, H]: position i has the numbers i to i + H of the embedding, indices modulo its width."""
    width = embedding_BC.shape[1]
    first_T1 = torch.arange(tokens, device=embedding_BC.device).unsqueeze(1)
    index_TH = (first_T1 + torch.arange(width // 2, device=embedding_BC.device)) % width
    return embedding_BC[:, index_TH]
