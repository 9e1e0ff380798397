"""The entropy estimation model: a causal decoder that also sees an embedding of the whole window.

A causal encoder's hidden state at the window's last token passes a narrow bottleneck and is prepended
to the decoder's tokens (paper section 3: "token" introduction). Because the encoder is causal, one
pass gives the embedding of every prefix, which is what makes exact labels affordable.

B rows, T tokens, D decoder width, E bottleneck width.
"""

from functools import partial

import torch
from torch import Tensor, nn
from transformers import LlamaModel, PreTrainedConfig, PreTrainedModel

from pipeline.models.cross_entropy import token_cross_entropy
from pipeline.models.transformer import causal_hidden, llama_config, real_positions


class EstimatorConfig(PreTrainedConfig):
    """Sizes of an entropy estimation model; `context` is the longest window it is trained on, in tokens."""

    model_type = "entropy-estimator"

    vocab_size: int = 8192
    context: int = 256
    encoder_width: int = 64
    encoder_layers: int = 4
    encoder_heads: int = 2
    decoder_width: int = 192
    decoder_layers: int = 4
    decoder_heads: int = 6
    bottleneck_width: int = 4
    initializer_range: float = 0.02


class EntropyEstimator(PreTrainedModel):
    """Encoder, bottleneck, decoder. The output head is the decoder's token embedding."""

    config_class = EstimatorConfig
    config: EstimatorConfig

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__(config)
        shared = partial(
            llama_config,
            vocab_size=config.vocab_size,
            context=config.context,
            initializer_range=config.initializer_range,
        )
        self.encoder = LlamaModel(
            shared(width=config.encoder_width, layers=config.encoder_layers, heads=config.encoder_heads)
        )
        self.decoder = LlamaModel(
            shared(width=config.decoder_width, layers=config.decoder_layers, heads=config.decoder_heads)
        )
        self.down = nn.Linear(config.encoder_width, config.bottleneck_width)
        self.up = nn.Linear(config.bottleneck_width, config.encoder_width)
        self.introduce = nn.Linear(config.encoder_width, config.decoder_width)
        self.post_init()  # type: ignore[no-untyped-call]

    @property
    def head_VD(self) -> Tensor:
        return self.decoder.embed_tokens.weight

    def introduced(self, bottleneck_E: Tensor) -> Tensor:
        """The decoder's first position [..., D] for bottleneck values [..., E]."""
        introduced_D: Tensor = self.introduce(self.up(bottleneck_E))
        return introduced_D

    def prefix_embeddings(self, input_ids_BT: Tensor) -> Tensor:
        """Embeddings [B, T, D] as the decoder sees them; index i is that of the prefix `input_ids[:, : i + 1]`."""
        hidden_BTC = causal_hidden(self.encoder, self.encoder.embed_tokens(input_ids_BT))
        return self.introduced(self.down(hidden_BTC))

    def decode(self, embedding_BD: Tensor, input_ids_BT: Tensor) -> Tensor:
        """Hidden states [B, T, D]; index i has seen the embedding and the tokens before i, and predicts token i."""
        tokens_BTD = self.decoder.embed_tokens(input_ids_BT[:, :-1])
        return causal_hidden(self.decoder, torch.cat([embedding_BD.unsqueeze(1), tokens_BTD], dim=1))

    def token_losses(self, input_ids_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Loss of every token in nats [B, T], the first included, given the embedding of the row's whole window.

        Args:
            input_ids_BT: windows, padded on the right with any token.
            lengths_B: real tokens in each row; all T where None. Losses of padding are 0.
        """
        rows, width = input_ids_BT.shape
        if lengths_B is None:
            lengths_B = torch.full((rows,), width, device=input_ids_BT.device)
        last_B = lengths_B - 1
        embedding_BD = self.prefix_embeddings(input_ids_BT)[torch.arange(rows, device=last_B.device), last_B]
        hidden_BTD = self.decode(embedding_BD, input_ids_BT)
        real_BT = real_positions(lengths_B, width)
        losses_BT = hidden_BTD.new_zeros(rows, width, dtype=torch.float32)
        losses_BT[real_BT] = token_cross_entropy(hidden_BTD[real_BT], self.head_VD, input_ids_BT[real_BT])
        return losses_BT

    forward = token_losses
