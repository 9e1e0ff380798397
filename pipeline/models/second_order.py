"""The second-order model: all entropies of a window in one causal pass.

Two linear outputs on a causal transformer, trained by mean squared error on first-order labels. *Seeing*: the
state that has read token i estimates `entropy[i]`. *Expecting*: the state before token i estimates
`expected_entropy[i]`. A learned start vector stands before the first token, so that it has both too. The two share
one transformer, or have one each.

In the *direct* form an output is the estimate, and nothing is projected on the vocabulary. In the *residual* form it
is a correction to what the transformer says as a language model, to its own surprisal and to the entropy of its own
prediction: such a model begins as good as the language model it was made from.

B rows, T tokens, S = T + 1 positions with the start, D width, V vocabulary.
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from pipeline.models.cross_entropy import token_cross_entropy
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.language_model import output_head, predicted_entropies, start_token, surprisals_and_entropies
from pipeline.models.sizes import Form
from pipeline.models.transformer import causal_hidden, input_embeddings


class Entropies(NamedTuple):
    """Estimates in nats, each [B, T], at the index of the token they speak about."""

    entropy_BT: Tensor
    expected_entropy_BT: Tensor


class SecondOrderConfig(PreTrainedConfig):
    """The transformer's own configuration, and the labels' mean and deviation (nats), which scale the outputs."""

    model_type = "second-order-entropy"

    vocab_size: int = 8192
    context: int = 256
    transformer: dict[str, Any] | None = None
    form: Form = "direct"
    transformers: int = 1
    tied_head: bool = True
    label_mean: float = 0.0
    label_deviation: float = 1.0
    initializer_range: float = 0.02


class SecondOrderModel(PreTrainedModel):
    """A causal transformer, or two, with a seeing and an expecting output."""

    config_class = SecondOrderConfig
    config: SecondOrderConfig

    def __init__(self, config: SecondOrderConfig) -> None:
        super().__init__(config)
        assert config.transformer is not None
        self.transformer = _stack(config.transformer)
        width = input_embeddings(self.transformer).embedding_dim
        self.expecting_transformer = _stack(config.transformer) if config.transformers == 2 else None
        self.head = None if config.tied_head else nn.Linear(width, config.vocab_size, bias=False)
        self.start = nn.Embedding(1, width)
        self.seeing = nn.Linear(width, 1)
        self.expecting = nn.Linear(width, 1)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def from_scratch(cls, stack: PreTrainedConfig, *, context: int, **settings: Any) -> Self:
        """A model of random weights with a transformer of that configuration."""
        return cls(
            SecondOrderConfig(vocab_size=stack.vocab_size, context=context, transformer=stack.to_dict(), **settings)
        )

    @classmethod
    def from_estimator(cls, estimator: EntropyEstimator, **settings: Any) -> Self:
        """A model that starts as the estimator's decoder, which knows the language already.

        Its start vector is what the decoder sees first, for an embedding of zeros. `settings` are fields of the
        configuration.

        Raises:
            ValueError: if that decoder is no language model by itself: a mixer, or met by the embedding elsewhere.
        """
        config = estimator.config
        if not (config.prepends or (config.adds_logits and config.decoder_kind == "transformer")):
            raise ValueError(
                "the embedding enters this estimator's decoder, or it is a mixer, so that it is no language model by "
                "itself; start from a causal language model, or from scratch"
            )
        return cls._from_stack(estimator.decoder, estimator.first_state, config.context, settings)

    @classmethod
    def from_language_model(cls, model: PreTrainedModel, *, start: int | None = None, **settings: Any) -> Self:
        """A model that starts as a causal language model, which reads `start` before a document's first token.

        Raises:
            ValueError: if the language model's logits are more than a product with its output matrix.
        """
        if not output_head(model).plain:
            raise ValueError(
                f"{type(model).__name__} has a head with a bias, a scale or a cap; start from another model"
            )
        token = start_token(model.config) if start is None else start
        stack = model.base_model
        assert isinstance(stack, PreTrainedModel)
        head_VD, embeddings_VD = model.get_output_embeddings().weight, input_embeddings(stack).weight
        context = int(model.config.max_position_embeddings) - 1
        tied = head_VD is embeddings_VD
        made = cls._from_stack(stack, embeddings_VD[token], context, {**settings, "tied_head": tied})
        if made.head is not None:
            made.head.load_state_dict({"weight": head_VD})
        return made

    @classmethod
    def _from_stack(cls, stack: PreTrainedModel, start_D: Tensor, context: int, settings: dict[str, Any]) -> Self:
        config = SecondOrderConfig(
            vocab_size=len(input_embeddings(stack).weight),
            context=context,
            transformer=stack.config.to_dict(),
            **settings,
        )
        model = cls(config)
        for own in filter(None, (model.transformer, model.expecting_transformer)):
            own.load_state_dict(stack.state_dict())
        with torch.no_grad():
            model.start.weight.copy_(start_D.unsqueeze(0))
            if config.form == "residual":
                for output in (model.seeing, model.expecting):
                    output.weight.zero_()
                    output.bias.zero_()
        return model

    @property
    def head_VD(self) -> Tensor:
        return (input_embeddings(self.transformer) if self.head is None else self.head).weight

    def forward(self, input_ids_BT: Tensor, *, with_surprisal: bool = False) -> tuple[Entropies, Tensor | None]:
        """Both estimates, and where it is wanted or used the model's own loss as a language model, nats [B, T]."""
        hidden_BSD = self._hidden(self.transformer, input_ids_BT)
        before_BTD, after_BTD = hidden_BSD[:, :-1], hidden_BSD[:, 1:]
        residual = self.config.form == "residual"
        surprisal_BT = predicted_BT = None
        if residual and not torch.is_grad_enabled():
            surprisal_BT, predicted_BT = surprisals_and_entropies(before_BTD, self.head_VD, input_ids_BT)
        elif residual or with_surprisal:
            surprisal_BT = self._own_surprisal(before_BTD, input_ids_BT)
        if residual and predicted_BT is None:
            predicted_BT = predicted_entropies(before_BTD, self.head_VD)
        if self.expecting_transformer is not None:
            before_BTD = self._hidden(self.expecting_transformer, input_ids_BT)[:, :-1]
        seen_BT = self._scaled(self.seeing(after_BTD))
        expected_BT = self._scaled(self.expecting(before_BTD))
        if surprisal_BT is not None and predicted_BT is not None:
            return Entropies(surprisal_BT + seen_BT, predicted_BT + expected_BT), surprisal_BT
        return Entropies(self.config.label_mean + seen_BT, self.config.label_mean + expected_BT), surprisal_BT

    def entropies(self, input_ids_BT: Tensor) -> Entropies:
        """Both estimates for every token of right-padded windows; the values at padding mean nothing."""
        return self.forward(input_ids_BT)[0]

    def _own_surprisal(self, before_BTD: Tensor, input_ids_BT: Tensor) -> Tensor:
        losses_N = token_cross_entropy(before_BTD.flatten(0, 1), self.head_VD, input_ids_BT.flatten())
        return losses_N.view(input_ids_BT.shape)

    def _hidden(self, transformer: PreTrainedModel, input_ids_BT: Tensor) -> Tensor:
        start_B1D = self.start.weight.expand(len(input_ids_BT), 1, -1)
        tokens_BTD = input_embeddings(transformer)(input_ids_BT)
        return causal_hidden(transformer, torch.cat([start_B1D, tokens_BTD], dim=1))

    def _scaled(self, output_BT1: Tensor) -> Tensor:
        return self.config.label_deviation * output_BT1.squeeze(-1).float()


def _stack(settings: dict[str, Any]) -> PreTrainedModel:
    stack: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(**{**settings, "dtype": None}))
    return stack
