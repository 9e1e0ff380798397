"""The second-order model: all entropies of a window in one causal pass, without a vocabulary projection.

Two linear outputs on one transformer, trained by mean squared error on first-order labels. *Seeing*: the
state that has read token i estimates `entropy[i]`. *Expecting*: the state before token i estimates
`expected_entropy[i]`. A learned start vector stands before the first token, so that it has both too.

B rows, T tokens, D width.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import LlamaModel, PreTrainedConfig, PreTrainedModel

from pipeline.models.estimator import EntropyEstimator
from pipeline.models.transformer import causal_hidden, llama_config


class Entropies(NamedTuple):
    """Estimates in nats, each [B, T], at the index of the token they speak about."""

    entropy_BT: Tensor
    expected_entropy_BT: Tensor


class SecondOrderConfig(PreTrainedConfig):
    """Sizes, and the mean and standard deviation (nats) of the labels, which the outputs are scaled by."""

    model_type = "second-order-entropy"

    vocab_size: int = 8192
    context: int = 256
    width: int = 192
    layers: int = 4
    heads: int = 6
    label_mean: float = 0.0
    label_deviation: float = 1.0
    initializer_range: float = 0.02


class SecondOrderModel(PreTrainedModel):
    """One transformer with a seeing and an expecting output."""

    config_class = SecondOrderConfig
    config: SecondOrderConfig

    def __init__(self, config: SecondOrderConfig) -> None:
        super().__init__(config)
        self.transformer = LlamaModel(
            llama_config(
                vocab_size=config.vocab_size,
                context=config.context,
                width=config.width,
                layers=config.layers,
                heads=config.heads,
                initializer_range=config.initializer_range,
            )
        )
        self.start = nn.Embedding(1, config.width)
        self.seeing = nn.Linear(config.width, 1)
        self.expecting = nn.Linear(config.width, 1)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_estimator(cls, estimator: EntropyEstimator, *, label_mean: float, label_deviation: float) -> Self:
        """A model whose transformer starts as the estimator's decoder, which knows the language already.

        Its start vector is what the decoder sees for an embedding of zeros.
        """
        source = estimator.config
        config = SecondOrderConfig(
            vocab_size=source.vocab_size,
            context=source.context,
            width=source.decoder_width,
            layers=source.decoder_layers,
            heads=source.decoder_heads,
            label_mean=label_mean,
            label_deviation=label_deviation,
        )
        model = cls(config)
        model.transformer.load_state_dict(estimator.decoder.state_dict())
        with torch.no_grad():
            zeros_E = torch.zeros(source.bottleneck_width, device=estimator.device)
            model.start.weight.copy_(estimator.introduced(zeros_E).unsqueeze(0))
        return model

    def entropies(self, input_ids_BT: Tensor) -> Entropies:
        """Both estimates for every token of right-padded windows; the values at padding mean nothing."""
        start_B1D = self.start.weight.expand(len(input_ids_BT), 1, -1)
        tokens_BTD = self.transformer.embed_tokens(input_ids_BT)
        hidden_BSD = causal_hidden(self.transformer, torch.cat([start_B1D, tokens_BTD], dim=1))
        return Entropies(
            self._in_nats(self.seeing(hidden_BSD[:, 1:])),
            self._in_nats(self.expecting(hidden_BSD[:, :-1])),
        )

    forward = entropies

    def _in_nats(self, scaled_BT1: Tensor) -> Tensor:
        return self.config.label_mean + self.config.label_deviation * scaled_BT1.squeeze(-1).float()
