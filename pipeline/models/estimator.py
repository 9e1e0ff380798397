"""The entropy estimation model: a causal decoder that also sees an embedding of the whole window (paper section 3).

The embedding is the encoder's hidden state at the window's last token, passed through a narrow bottleneck. Because the
encoder is causal, one pass gives the embedding of every prefix, which makes exact labels affordable.

The configuration selects the variant of a model. Encoder and decoder are transformers or masked mixers. The embedding
enters the decoder in one of three forms, above any number of decoder layers. The bottleneck has any width, or is left
out. In training, noise may be added to the embedding.

B rows, T tokens, C encoder width, E bottleneck width, D decoder width, X width of the embedding as it enters the
decoder.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from pipeline.models.causal_lm import OutputHead
from pipeline.models.sizes import EstimatorSizes
from pipeline.models.stacks import causal_hidden, input_embeddings
from pipeline.models.window_encoder import WindowEncoder, WindowEncoderConfig, real_losses


class EstimatorConfig(EstimatorSizes, WindowEncoderConfig):
    """Configuration of an estimator.

    `introduction` is the form in which the embedding enters the decoder. token: the embedding is one more position
    before the tokens. embedding: it is concatenated to every token's state. projection: it is added to every token's
    state.

    `introduced_above` is the number of decoder layers below the place where the embedding enters. These layers do not
    depend on the embedding, and exact labels compute them once per window. If the embedding enters above all layers,
    the form must be projection. The embedding then only adds to the logits, and exact labels of a whole window cost
    hardly more than one pass.
    """

    model_type = "entropy-estimator"

    @property
    def prepends(self) -> bool:
        """True if the decoder is a single transformer whose first position is the embedding."""
        return self.introduction == "token" and not self.introduced_above and self.decoder_kind == "transformer"

    @property
    def adds_logits(self) -> bool:
        """True if the embedding enters above all decoder layers, and therefore only adds to the logits."""
        return self.introduced_above == self.decoder_layers


class Estimator(WindowEncoder):
    """Base class of estimators: a window encoder, and the methods with which exact labels use the decoder."""

    @property
    @abstractmethod
    def adds_logits(self) -> bool:
        """True if the embedding only adds to the logits: `embedding @ head.weight.T`."""

    @property
    @abstractmethod
    def output_head(self) -> OutputHead:
        """The decoder's output head."""

    @abstractmethod
    def introduced(self, bottleneck_E: Tensor) -> Tensor:
        """Return the embedding that enters the decoder, [..., X], from bottleneck values [..., E]."""

    @abstractmethod
    def token_states(self, input_ids_BT: Tensor) -> Tensor:
        """Return the decoder's states [B, T, D] just before the window's embedding enters the decoder.

        State i depends only on the tokens before token i.
        """

    @abstractmethod
    def decode_states(self, embedding_BX: Tensor, states_BTD: Tensor) -> Tensor:
        """Return the hidden states [B, T, D] for the output head, given an embedding and the result of `token_states`.

        State i predicts token i.
        """

    @property
    def facts(self) -> dict[str, object]:
        """Rows of the model card's table that describe the estimator's language models, if any: values by row title."""
        return {}

    def keep_states(self, tokens: int) -> bool:
        """Keep the states of up to `tokens` tokens in memory, if training does not change the states.

        Return True if states are kept, and False otherwise. The base class keeps no states.
        """
        return False

    def prefix_embeddings(self, input_ids_BT: Tensor) -> Tensor:
        """Return the embeddings that enter the decoder, [B, T, X]. Embedding i is for the prefix of tokens 0..i."""
        return self.introduced(self.bottlenecks(input_ids_BT))

    def embeddings_and_states(self, input_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the results of `prefix_embeddings` and `token_states`."""
        return self.prefix_embeddings(input_ids_BT), self.token_states(input_ids_BT)


class EntropyEstimator(Estimator):
    """Estimator of an encoder, a bottleneck and a decoder. Its output head is tied to the decoder's token embedding.

    Raises:
        ValueError: if a size is below 1; if a width is not a multiple of its number of heads; if a stack that is a
            transformer, and not a mixer, has a kernel above 1; if `introduced_above` is above the number of layers that
            the form `introduction` allows.
    """

    config_class = EstimatorConfig
    config: EstimatorConfig

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__(config)
        highest = config.decoder_layers - (0 if config.introduction == "projection" else 1)
        if not 0 <= config.introduced_above <= highest:
            raise ValueError(
                f"with {config.introduction} the embedding cannot enter above layer {config.introduced_above} of "
                f"{config.decoder_layers}; give at most {highest}"
            )
        alongside = config.introduction == "embedding"
        width = config.decoder_width + (config.encoder_width if alongside else 0)
        self.encoder = config.encoder_stack()
        layers_below = 0 if config.adds_logits else config.introduced_above
        self.decoder = config.decoder_stack(width=width, layers=config.decoder_layers - layers_below)
        if alongside:
            self.decoder.set_input_embeddings(nn.Embedding(config.vocab_size, config.decoder_width))
        self.down, self.up = config.narrowing(config.encoder_width)
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
            # At first, the output is the tokens' part of the state. The loss after 200 small steps was 5.73 nats, and
            # 5.94 nats from random weights.
            nn.init.eye_(self.output.weight)

    @property
    def adds_logits(self) -> bool:
        return self.config.adds_logits

    @property
    def head_VD(self) -> Tensor:
        return input_embeddings(self.decoder).weight

    @property
    def output_head(self) -> OutputHead:
        return OutputHead(self.head_VD)

    @property
    def first_state(self) -> Tensor:
        """State [D] before the first token: `start` if there is one, else the decoder's input for a zero embedding."""
        if self.start is not None:
            return self.start.weight[0].detach()
        return self.introduced(torch.zeros(self.config.embedding_width, device=self.device)).detach()

    @torch.no_grad()
    def begin_as(self, other: "EntropyEstimator") -> None:
        """Copy the weights of another estimator.

        All weights are copied if the two estimators have the same shapes, and if their embeddings enter the decoder in
        the same form and above the same layer. Otherwise, only the encoder and the decoder are copied. The embedding of
        this estimator then has no effect until it is trained.

        Raises:
            ValueError: if the encoder or the decoder has different shapes in the two estimators; if only the encoder
                and the decoder can be copied, but this estimator concatenates the embedding to the tokens.
        """
        weights, own = other.state_dict(), self.state_dict()
        shapes = {name: tensor.shape for name, tensor in weights.items()}
        if shapes == {name: tensor.shape for name, tensor in own.items()} and not self._enters_elsewhere(other):
            self.load_state_dict(weights)
            return
        stacks = [name for name in own if name.startswith(("encoder.", "decoder.", "below."))]
        if any(shapes.get(name) != own[name].shape for name in stacks):
            raise ValueError(
                "the estimator to start from has an encoder or a decoder of another shape; give the same sizes"
            )
        if not isinstance(self.introduce, nn.Linear):
            raise ValueError(
                "`model.introduction` embedding cannot start from an estimator whose embedding enters in another form"
                " or at another layer; give token or projection, or the estimator's own form and layer"
            )
        self.load_state_dict({name: weights[name] for name in stacks}, strict=False)
        nn.init.zeros_(self.introduce.weight)
        if self.start is not None:
            self.start.weight.copy_(other.first_state.unsqueeze(0))

    def _enters_elsewhere(self, other: "EntropyEstimator") -> bool:
        own, others = self.config, other.config
        return (own.introduction, own.introduced_above) != (others.introduction, others.introduced_above)

    def introduced(self, bottleneck_E: Tensor) -> Tensor:
        introduced_X: Tensor = self.introduce(self.up(bottleneck_E))
        return introduced_X

    def token_states(self, input_ids_BT: Tensor) -> Tensor:
        """Return the decoder's states [B, T, D] just before the window's embedding enters the decoder.

        State i depends only on the tokens before token i. If the embedding takes the first position, state 0 is
        reserved for the embedding and holds zeros.
        """
        tokens_BTD = pad(input_embeddings(self.decoder)(input_ids_BT[:, :-1]), (0, 0, 1, 0))
        if self.start is not None:
            start_B1D = self.start.weight.expand(len(input_ids_BT), 1, -1)
            tokens_BTD = torch.cat([start_B1D, tokens_BTD[:, 1:]], dim=1)
        layers = self.decoder if self.config.adds_logits else self.below
        return tokens_BTD if layers is None else causal_hidden(layers, tokens_BTD)

    def decode_states(self, embedding_BX: Tensor, states_BTD: Tensor) -> Tensor:
        """Return the hidden states [B, T, D] for the output head, given an embedding and the result of `token_states`.

        State i predicts token i.
        """
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
        """Return hidden states [B, T, D]. State i predicts token i from the embedding and the tokens before i."""
        return self.decode_states(embedding_BX, self.token_states(input_ids_BT))

    def decode_losses(self, bottleneck_BE: Tensor, input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        hidden_BTD = self.decode(self.introduced(bottleneck_BE), input_ids_BT)
        return real_losses(hidden_BTD, self.head_VD, input_ids_BT, lengths_B)
