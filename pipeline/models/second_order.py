"""The second-order model: all entropies of a window in one causal pass.

The model is a causal transformer with two linear outputs, trained by mean squared error on first-order labels. The
*seeing* output estimates `entropy[i]` from the state after token i. The *expecting* output estimates
`expected_entropy[i]` from the state before token i. A start position precedes the first token, so that the first token
has both estimates too. The input at the start position is a language model's start token, or a learned vector. The two
outputs share one transformer, or each output has its own transformer.

In the *direct* form, an output is the estimate itself, and needs no projection onto the vocabulary. In the *residual*
form, an output corrects a value that the transformer computes as a language model: the seeing output corrects the
token's surprisal, and the expecting output corrects the entropy of the prediction. Before training, a residual model is
as good as the language model from which it is made. It keeps the head of the language model, with bias, scale and soft
cap.

The correction is linear in the value: (1 + gain) x value + shift, where gain and shift are linear in the state. A small
language model's surprisals vary more than a large one's, and a shift alone cannot narrow them: the state that has read
a token does not say how surprising it was. Models of older versions have no gain.

B rows, T tokens, S = T + 1 positions with the start, D width, V vocabulary, K given ids, O numbers of an output.
"""

from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pipeline.models.backbone import Backbone, record, save_weights, trained_weights, tune
from pipeline.models.causal_lm import (
    OutputHead,
    decoder,
    last_hidden,
    longest_window,
    next_token_losses,
    output_head,
    predictive_labels,
    prepend_start,
    start_token,
)
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.logit_sums import GivenIds
from pipeline.models.sizes import Form, Tuning
from pipeline.models.stacks import causal_hidden, input_embeddings
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, Shape

PROBE_TOKENS = 8


class Entropies(NamedTuple):
    """Estimates of `entropy` and of `expected_entropy` in nats, [B, T] each. The values at index i are for token i."""

    entropy_BT: Tensor
    expected_entropy_BT: Tensor


class SecondOrderOutput(NamedTuple):
    """Results of a forward pass."""

    entropies: Entropies
    losses_BT: Tensor | None
    """The model's losses as a language model in nats; None for the direct form, unless they were asked for."""
    given: GivenIds | None = None
    """The model's predictions of given ids, before each of the B T tokens in a row; None unless ids were given."""


class SecondOrderConfig(PreTrainedConfig):
    """Configuration of a second-order model: its transformer, its form, and the scale of its outputs.

    `label_mean` and `label_deviation` are the mean and the standard deviation of the labels in nats, which scale the
    outputs. `start_token` is the id that is read before the first token; None for a learned vector. `width` is the
    width of the last hidden states; None if it is the width of the embeddings. The head's scale and soft cap are in the
    transformer's configuration. `gain` is True if the outputs of a residual model have a gain; those of older versions
    have none.

    If the model is built around a language model whose own weights are frozen (`tuning` frozen or lora), `backbone` is
    the record of this language model. The checkpoint's weights then do not include those of the language model.
    Otherwise, `backbone` is None.
    """

    model_type = "second-order-entropy"

    vocab_size: int = 8192
    context: int = 256
    transformer: dict[str, Any] | None = None
    form: Form = "direct"
    transformers: int = 1
    tied_head: bool = True
    head_bias: bool = False
    start_token: int | None = None
    width: int | None = None
    gain: bool = False
    label_mean: float = 0.0
    label_deviation: float = 1.0
    initializer_range: float = 0.02
    backbone: dict[str, Any] | None = None
    tuning: Tuning = "whole"
    lora_rank: int = 64


class SecondOrderModel(PreTrainedModel):
    """One or two causal transformers with two outputs.

    The seeing output has read the token whose entropy it estimates. The expecting output has read only the tokens
    before this token.
    """

    config_class = SecondOrderConfig
    config: SecondOrderConfig

    def __init__(self, config: SecondOrderConfig) -> None:
        super().__init__(config)
        assert config.transformer is not None
        self.transformer = _stack(config.transformer)
        embeddings = input_embeddings(self.transformer)
        if config.vocab_size > embeddings.num_embeddings or (config.start_token or 0) not in range(config.vocab_size):
            raise ValueError(
                f"vocab_size {config.vocab_size} and start_token {config.start_token} do not fit the "
                f"{embeddings.num_embeddings} ids of the transformer"
            )
        embedding_width = embeddings.embedding_dim
        width = config.width or embedding_width
        self.expecting_transformer = _stack(config.transformer) if config.transformers == 2 else None
        self.head = None if config.tied_head else nn.Linear(width, config.vocab_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        self.start = nn.Embedding(1, embedding_width) if config.start_token is None else None
        self.seeing = nn.Linear(width, 1 + config.gain)
        self.expecting = nn.Linear(width, 1 + config.gain)
        self.post_init()  # type: ignore[no-untyped-call]

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return False, so that transformers computes all buffers that checkpoints do not contain.

        For custom code, transformers would leave Falcon-H1's multipliers uninitialised. The layers here are not custom.
        """
        return False

    @classmethod
    def from_scratch(cls, stack: PreTrainedConfig, *, context: int, **settings: Any) -> Self:
        """Return a model with random weights, whose transformer has the configuration `stack`.

        `settings` are further fields of the model's configuration.
        """
        return cls(
            SecondOrderConfig(vocab_size=stack.vocab_size, context=context, transformer=stack.to_dict(), **settings)
        )

    @classmethod
    def from_estimator(cls, estimator: EntropyEstimator, **settings: Any) -> Self:
        """Return a model whose transformer has the weights of the estimator's decoder, a trained language model.

        The start vector is the estimator's `first_state`. `settings` are further fields of the configuration.

        Raises:
            ValueError: if the decoder is not a language model by itself. It must be a transformer, and the embedding
                must enter it as its first position or above all its layers.
        """
        config = estimator.config
        if not (config.prepends or (config.adds_logits and config.decoder_kind == "transformer")):
            raise ValueError(
                "this estimator's decoder is not a language model by itself: the embedding enters it, or it is a "
                "mixer; start from a causal language model, or from scratch"
            )
        made = cls._from_stack(estimator.decoder, {"context": config.context, **settings})
        assert made.start is not None
        with torch.no_grad():
            made.start.weight.copy_(estimator.first_state.unsqueeze(0))
        return made

    @classmethod
    def from_language_model(cls, model: PreTrainedModel, *, start: int | None = None, **settings: Any) -> Self:
        """Return a second-order model with the weights of a causal language model.

        The second-order model reads the token `start` before a document. By default, this is the start token that the
        language model declares. `settings` are further fields of the configuration. The default of the field `context`
        is the language model's number of positions, minus one for the start token.

        Raises:
            ValueError: if the start token or the context is neither given nor declared by the language model, or if
                the language model's losses change when its weights are copied.
        """
        stack, head = decoder(model), output_head(model)
        made = cls._from_stack(stack, {**_carried(model, start), **settings})
        with torch.no_grad():
            if made.head is not None:
                made.head.weight.copy_(head.weight_VD)
            if made.head_bias is not None and head.bias_V is not None:
                made.head_bias.copy_(head.bias_V)
        _require_same_losses(made, model)
        return made

    @classmethod
    def around_language_model(
        cls, model: PreTrainedModel, backbone: Backbone, *, start: int | None = None, **settings: Any
    ) -> Self:
        """Return a residual model that contains a causal language model, which is frozen or trained with LoRA.

        The residual model uses `model` itself, not a copy of its weights. At first, the corrections of both outputs
        are 0. A saved checkpoint names the language model by its record `backbone`. The checkpoint holds the weights of
        the language model only if `backbone.held` is True. `settings` are further fields of the configuration.

        Raises:
            ValueError: as `from_language_model` does; or if peft is missing for LoRA.
        """
        named = {"form": "residual", "transformers": 1, "backbone": record(backbone)}
        config = _config(decoder(model), {**_carried(model, start), **settings, **named})
        return cls.with_language_model(model, config)

    @classmethod
    def with_language_model(cls, model: PreTrainedModel, config: SecondOrderConfig) -> Self:
        """Return a model with this configuration, in which `model` is the transformer and the head."""
        head = output_head(model)
        with torch.device("meta"):
            made = cls(config)
        made.transformer = decoder(model)
        if made.head is not None:
            made.head.weight = nn.Parameter(head.weight_VD, requires_grad=False)
        if made.head_bias is not None:
            assert head.bias_V is not None
            made.head_bias = nn.Parameter(head.bias_V, requires_grad=False)
        tune(made, made.transformer, config.tuning, config.lora_rank)
        width = head.weight_VD.shape[1]
        made.seeing, made.expecting = (
            nn.Linear(width, 1 + config.gain, device=model.device, dtype=head.weight_VD.dtype) for _ in range(2)
        )
        _make_zero(made.seeing, made.expecting)
        return made

    @classmethod
    def _from_stack(cls, stack: PreTrainedModel, settings: dict[str, Any]) -> Self:
        config = _config(stack, settings)
        model = cls(config)
        for own in filter(None, (model.transformer, model.expecting_transformer)):
            own.load_state_dict(stack.state_dict())
        if config.form == "residual":
            _make_zero(model.seeing, model.expecting)
        return model

    def save_pretrained(self, save_directory: Any, *arguments: Any, **settings: Any) -> None:
        """Write the checkpoint.

        If the model is built around a language model whose own weights are frozen, only the trained weights and the
        record of the language model are written. If `held` is true in this record, the language model is also copied
        into the folder.
        """
        if self.config.backbone is None:
            super().save_pretrained(save_directory, *arguments, **settings)
            return
        folder, backbone = Path(save_directory), Backbone.from_values(self.config.backbone)
        save_weights(trained_weights(self), folder)
        if backbone.held:
            backbone.hold(folder, "decoder")
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)

    @torch.no_grad()
    def continue_on(self, *, context: int, label_mean: float, label_deviation: float) -> None:
        """Prepare a trained model to learn other labels, with another longest window.

        The two outputs are rescaled to the mean and the standard deviation of the new labels, in nats. A residual model
        of an older version gets a gain of 0. The model's estimates stay the same. All weights that a checkpoint of this
        model stores become trainable again.
        """
        scale = self.config.label_deviation / label_deviation
        shift = 0.0 if self.config.form == "residual" else (self.config.label_mean - label_mean) / label_deviation
        if self.config.form == "residual" and not self.config.gain:
            self.seeing, self.expecting = map(_with_gain, (self.seeing, self.expecting))
            self.config.gain = True
        for output in (self.seeing, self.expecting):
            output.weight[0].mul_(scale)
            output.bias[0].mul_(scale).add_(shift)
        self.config.context = context
        self.config.label_mean, self.config.label_deviation = label_mean, label_deviation
        around = self.config.backbone is not None
        for name, weight in self.named_parameters():
            weight.requires_grad_(not around or "lora_" in name or name.startswith(("seeing.", "expecting.")))
        self.train()

    @property
    def language_head(self) -> OutputHead:
        """Output head with which the transformer is a language model."""
        weight_VD = (input_embeddings(self.transformer) if self.head is None else self.head).weight
        return OutputHead.configured(self.transformer.config, weight_VD, self.head_bias)

    def freeze_head(self) -> None:
        """Exclude the head from training. A weight that is tied to the embeddings is still trained."""
        for weight in (None if self.head is None else self.head.weight, self.head_bias):
            if weight is not None:
                weight.requires_grad_(False)

    def forward(
        self,
        input_ids_BT: Tensor,
        *,
        with_surprisal: bool = False,
        given_ids_BTK: Tensor | None = None,
    ) -> SecondOrderOutput:
        """Return the estimates of both outputs, and what the model predicts as a language model.

        A model in the residual form always returns its losses. A model in the direct form returns them only if
        `with_surprisal` is True. With ids, as in `given_ids`, both return the predictions of these ids and the losses.
        """
        hidden_BSD = self._hidden(self.transformer, input_ids_BT)
        before_BTD, after_BTD = hidden_BSD[:, :-1], hidden_BSD[:, 1:]
        residual = self.config.form == "residual"
        surprisal_BT = predicted_BT = given = None
        if given_ids_BTK is not None:
            sums, given = self.language_head.sums_and_given(before_BTD, input_ids_BT, given_ids_BTK)
            surprisal_BT, predicted_BT = sums.losses, sums.entropies.detach()
        elif residual and not torch.is_grad_enabled():
            columns: dict[str, Shape] = {ENTROPY: (), EXPECTED_ENTROPY: ()}
            predicted = predictive_labels(before_BTD, self.language_head, input_ids_BT, columns)
            surprisal_BT, predicted_BT = (predicted[name] for name in columns)
        elif residual:
            sums = self.language_head.sums(before_BTD, input_ids_BT)
            surprisal_BT, predicted_BT = sums.losses, sums.entropies.detach()
        elif with_surprisal:
            surprisal_BT = self.language_head.losses(before_BTD, input_ids_BT)
        expecting_BTD = before_BTD
        if self.expecting_transformer is not None:
            expecting_BTD = self._hidden(self.expecting_transformer, input_ids_BT)[:, :-1]
        entropies = Entropies(
            self._estimate(self.seeing(after_BTD), surprisal_BT if residual else None),
            self._estimate(self.expecting(expecting_BTD), predicted_BT if residual else None),
        )
        return SecondOrderOutput(entropies, surprisal_BT, given)

    def entropies(self, input_ids_BT: Tensor) -> Entropies:
        """Return the estimates of `entropy` and `expected_entropy` for every token of right-padded windows.

        The values at padding have no meaning.
        """
        return self.forward(input_ids_BT).entropies

    def _hidden(self, transformer: PreTrainedModel, input_ids_BT: Tensor) -> Tensor:
        token = self.config.start_token
        if token is not None:  # pass ids, because some models scale, normalise or project embeddings
            return last_hidden(transformer, pad(input_ids_BT, (1, 0), value=token))
        assert self.start is not None
        start_B1D = self.start.weight.expand(len(input_ids_BT), 1, -1)
        tokens_BTD = input_embeddings(transformer)(input_ids_BT)
        return causal_hidden(transformer, torch.cat([start_B1D, tokens_BTD], dim=1))

    def _estimate(self, output_BTO: Tensor, value_BT: Tensor | None) -> Tensor:
        """Return an estimate from an output, which is a shift and perhaps a gain, and the value that it corrects."""
        shift_BT, *gain_BT = output_BTO.float().unbind(dim=-1)
        shift_BT = self.config.label_deviation * shift_BT
        if value_BT is None:
            return self.config.label_mean + shift_BT
        return value_BT + shift_BT + (gain_BT[0] * value_BT if gain_BT else 0)


def _config(stack: PreTrainedModel, settings: dict[str, Any]) -> SecondOrderConfig:
    if settings["context"] is None:
        raise ValueError("the language model does not say how many positions it has; give a context")
    vocabulary = len(input_embeddings(stack).weight)
    return SecondOrderConfig(vocab_size=vocabulary, transformer=stack.config.to_dict(), **settings)


def _carried(model: PreTrainedModel, start: int | None) -> dict[str, Any]:
    """Return, by name, the settings that a second-order model's configuration takes from a language model."""
    head = output_head(model)
    return {
        "context": longest_window(model.config),
        "start_token": start_token(model.config) if start is None else start,
        "tied_head": head.weight_VD is input_embeddings(decoder(model)).weight,
        "head_bias": head.bias_V is not None,
        "width": head.weight_VD.shape[1],
    }


def _with_gain(output: nn.Linear) -> nn.Linear:
    """Return an output with the weights of `output`, which has only a shift, and a gain of 0."""
    weight_1D = output.weight
    made = nn.Linear(weight_1D.shape[1], 2, device=weight_1D.device, dtype=weight_1D.dtype)
    made.weight.copy_(pad(weight_1D, (0, 0, 0, 1)))
    made.bias.copy_(pad(output.bias, (0, 1)))
    return made


def _make_zero(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def _stack(settings: dict[str, Any]) -> PreTrainedModel:
    """Return the layers of a new language model with random weights, without its head.

    The whole model is built first, because layers that are built without a head may have extra parts, such as BERT's
    pooler.
    """
    config = AutoConfig.for_model(**{**settings, "dtype": None})
    return decoder(AutoModelForCausalLM.from_config(config, trust_remote_code=False))


@torch.no_grad()
def _require_same_losses(made: SecondOrderModel, model: PreTrainedModel) -> None:
    """Raise if the losses of a language model change when its weights are copied.

    They change if losses depend on more than the weights and the configuration. RWKV, for example, rescales its
    weights.
    """
    tokens = min(PROBE_TOKENS, made.config.context, made.config.vocab_size)
    ids_1T = torch.arange(tokens, device=model.device).unsqueeze(0)
    assert made.config.start_token is not None
    expected_1T = next_token_losses(model, prepend_start(ids_1T, made.config.start_token), ids_1T).to(made.device)
    made.eval()  # type: ignore[no-untyped-call]
    losses_1T = made(ids_1T.to(made.device), with_surprisal=True)[1]
    made.train()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.5  # half precision shows only large errors
    if not torch.allclose(losses_1T, expected_1T, atol=tolerance, rtol=tolerance):
        raise ValueError(f"the losses of {type(model).__name__} change when its weights are copied; start from another")
