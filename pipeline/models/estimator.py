"""The entropy estimation model: a causal decoder that also sees an embedding of the whole window (paper section 3).

The embedding is the encoder's hidden state at the window's last token, passed through a narrow bottleneck. Because the
encoder is causal, one pass gives the embedding of every prefix, which is what makes exact labels affordable. The
configuration alone says which variant a model is: encoder and decoder each a transformer or a masked mixer; how the
embedding enters the decoder, and above which of its layers; the bottleneck's width, or none; the noise of training.

B rows, T tokens, C encoder width, E bottleneck width, D decoder width, X what the embedding is when it enters.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pipeline.models.sizes import EstimatorSizes
from pipeline.models.stacks import causal_hidden, input_embeddings
from pipeline.models.window_encoder import WindowEncoder, WindowEncoderConfig, real_losses


class EstimatorConfig(EstimatorSizes, WindowEncoderConfig):
    """Which estimator.

    `introduction`: the embedding is one more position before the tokens (token), stands alongside every token on the
    hidden axis (embedding), or is added to every token (projection). `introduced_above`: so many of the decoder's
    layers see tokens alone, and exact labels compute them once a window. Above all of them the embedding can only be
    added: to the logits, then, which makes exact labels of a whole window cost hardly more than one pass.
    """

    model_type = "entropy-estimator"

    @property
    def prepends(self) -> bool:
        """True if the decoder is one transformer whose first position is the embedding."""
        return self.introduction == "token" and not self.introduced_above and self.decoder_kind == "transformer"

    @property
    def adds_logits(self) -> bool:
        """True if the embedding only adds to the logits of a causal language model."""
        return self.introduced_above == self.decoder_layers


class EntropyEstimator(WindowEncoder):
    """Encoder, bottleneck, decoder. The output head is the decoder's token embedding.

    Raises:
        ValueError: if sizes do not fit together.
    """

    config_class = EstimatorConfig
    config: EstimatorConfig

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__(config)
        highest = config.decoder_layers - (0 if config.introduction == "projection" else 1)
        if not 0 <= config.introduced_above <= highest:
            raise ValueError(
                f"by {config.introduction} the embedding cannot enter above layer {config.introduced_above} of "
                f"{config.decoder_layers}; above {highest} at the most"
            )
        alongside = config.introduction == "embedding"
        width = config.decoder_width + (config.encoder_width if alongside else 0)
        self.encoder = config.encoder_stack()
        layers_below = 0 if config.adds_logits else config.introduced_above
        self.decoder = config.decoder_stack(width=width, layers=config.decoder_layers - layers_below)
        if alongside:
            self.decoder.set_input_embeddings(nn.Embedding(config.vocab_size, config.decoder_width))
        self.down, self.up = config.narrowing()
        self.introduce = nn.Identity() if alongside else nn.Linear(config.encoder_width, config.decoder_width)
        self.output = nn.Linear(width, config.decoder_width) if alongside else nn.Identity()
        self.below = self.start = None
        if layers_below:
            self.below = config.decoder_stack(width=config.decoder_width, layers=layers_below)
            self.below.set_input_embeddings(nn.Identity())
        if config.introduced_above or config.introduction != "token":
            self.start = nn.Embedding(1, config.decoder_width)
        self.post_init()  # type: ignore[no-untyped-call]
        if isinstance(self.output, nn.Linear):
            # Begins with the tokens' part as it is: 5.73 nats after 200 small steps, from random weights 5.94.
            nn.init.eye_(self.output.weight)

    @property
    def head_VD(self) -> Tensor:
        return input_embeddings(self.decoder).weight

    @property
    def first_state(self) -> Tensor:
        """What stands before the tokens [D]: a trained vector, or else an embedding of zeros as it enters."""
        if self.start is not None:
            return self.start.weight[0].detach()
        return self.introduced(torch.zeros(self.config.embedding_width, device=self.device)).detach()

    @torch.no_grad()
    def begin_as(self, other: "EntropyEstimator") -> None:
        """Takes over another estimator's weights; one whose embedding enters elsewhere gives encoder and decoder, and
        the embedding begins without effect.

        Raises:
            ValueError: if its encoder or decoder is of another shape.
        """
        weights, own = other.state_dict(), self.state_dict()
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if shapes == {name: tensor.shape for name, tensor in own.items()} and not self._enters_elsewhere(other):
            self.load_state_dict(weights)
            return
        stacks = [name for name in own if name.startswith(("encoder.", "decoder.", "below."))]
        if any(shapes.get(name) != own[name].shape for name in stacks) or not isinstance(self.introduce, nn.Linear):
            raise ValueError(
                "the estimator to begin as has an encoder or a decoder of another shape; give the same sizes"
            )
        self.load_state_dict({name: weights[name] for name in stacks}, strict=False)
        nn.init.zeros_(self.introduce.weight)
        if self.start is not None:
            self.start.weight.copy_(other.first_state.unsqueeze(0))

    def _enters_elsewhere(self, other: "EntropyEstimator") -> bool:
        own, others = self.config, other.config
        return (own.introduction, own.introduced_above) != (others.introduction, others.introduced_above)

    def introduced(self, bottleneck_E: Tensor) -> Tensor:
        """What enters the decoder [..., X] for bottleneck values [..., E]."""
        introduced_X: Tensor = self.introduce(self.up(bottleneck_E))
        return introduced_X

    def prefix_embeddings(self, input_ids_BT: Tensor) -> Tensor:
        """Embeddings [B, T, X] as they enter the decoder; index i is that of the prefix `input_ids[:, : i + 1]`."""
        return self.introduced(self.bottlenecks(input_ids_BT))

    def token_states(self, input_ids_BT: Tensor) -> Tensor:
        """States [B, T, D] of the layers that see tokens alone; index i has seen the tokens before i.

        Where the embedding takes the first position, index 0 is its place and holds zeros.
        """
        tokens_BTD = pad(input_embeddings(self.decoder)(input_ids_BT[:, :-1]), (0, 0, 1, 0))
        if self.start is not None:
            start_B1D = self.start.weight.expand(len(input_ids_BT), 1, -1)
            tokens_BTD = torch.cat([start_B1D, tokens_BTD[:, 1:]], dim=1)
        layers = self.decoder if self.config.adds_logits else self.below
        return tokens_BTD if layers is None else causal_hidden(layers, tokens_BTD)

    def decode_states(self, embedding_BX: Tensor, states_BTD: Tensor) -> Tensor:
        """Hidden states [B, T, D] from `token_states`; index i has seen the embedding too, and predicts token i."""
        embedding_B1X = embedding_BX.unsqueeze(1)
        if self.config.introduction == "projection":
            entered = states_BTD + embedding_B1X
            if self.config.adds_logits:
                return entered
        elif self.config.introduction == "embedding":
            entered = torch.cat([states_BTD, embedding_B1X.expand(-1, states_BTD.shape[1], -1)], dim=2)
        elif self.start is None:
            entered = torch.cat([embedding_B1X, states_BTD[:, 1:]], dim=1)
        else:
            return causal_hidden(self.decoder, torch.cat([embedding_B1X, states_BTD], dim=1))[:, 1:]
        hidden_BTD: Tensor = self.output(causal_hidden(self.decoder, entered))
        return hidden_BTD

    def decode(self, embedding_BX: Tensor, input_ids_BT: Tensor) -> Tensor:
        """Hidden states [B, T, D]; index i has seen the embedding and the tokens before i, and predicts token i."""
        return self.decode_states(embedding_BX, self.token_states(input_ids_BT))

    def decode_losses(self, bottleneck_BE: Tensor, input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        hidden_BTD = self.decode(self.introduced(bottleneck_BE), input_ids_BT)
        return real_losses(hidden_BTD, self.head_VD, input_ids_BT, lengths_B)
