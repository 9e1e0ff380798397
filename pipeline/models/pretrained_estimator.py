"""Entropy estimation models around pretrained causal language models, of any family in transformers.

The decoder is a language model M, and the encoder is M itself or another language model with the same tokenizer. The
encoder's state at a window's last token passes through a bottleneck and enters the decoder. At first, the embedding
that enters is zero, so that an untrained estimator has exactly the losses of M. The authors of the paper build such an
estimator from Llama-3.2-1B with LoRA of rank 64.

If the embedding enters at the logits and M is the encoder too, one pass of M gives everything that exact labels need:
the embedding of every prefix and the logits of every token.

B rows, T tokens, S = T + 1 positions with the start, N real tokens, C encoder width, E bottleneck width, D width of the
states at the embedding's entry, and of the embedding that enters.
"""

from pathlib import Path
from typing import Any, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, rms_norm
from transformers import PreTrainedModel

from pipeline.models.backbone import (
    Backbone,
    FrozenStates,
    Role,
    hold_trained,
    record,
    save_weights,
    trained_weights,
    tune,
    tuned,
)
from pipeline.models.causal_lm import OutputHead, decoder, last_hidden, output_head, prepend_start
from pipeline.models.estimator import Estimator
from pipeline.models.layers import DividedStack
from pipeline.models.sizes import BackboneSettings, Entry
from pipeline.models.stacks import real_positions
from pipeline.models.window_encoder import BottleneckConfig, last_real


class PretrainedEstimatorConfig(BottleneckConfig, BackboneSettings):
    """Configuration of an estimator around language models; `decoder` and `encoder` are records of `Backbone`.

    `encoder` is None if the decoder's language model is the encoder too. `start_token` is the id that encoder and
    decoder read before a window.
    """

    model_type = "pretrained-entropy-estimator"

    start_token: int = 0
    decoder: dict[str, Any] | None = None
    encoder: dict[str, Any] | None = None

    def backbones(self) -> dict[Role, Backbone]:
        """Return the records of the language models by role.

        Raises:
            ValueError: if a record is broken.
        """
        named: dict[Role, Any] = {"decoder": self.decoder, "encoder": self.encoder}
        return {role: Backbone.from_values(values) for role, values in named.items() if values is not None}


class PretrainedEstimator(Estimator):
    """Two language models, or one in both roles, with the layers of the bottleneck between them.

    The language models are given with their weights, and are frozen, adapted or trained as `tuning` says.

    Raises:
        ValueError: if the embedding cannot enter where the configuration says.
    """

    config_class = PretrainedEstimatorConfig
    config: PretrainedEstimatorConfig

    def __init__(
        self, config: PretrainedEstimatorConfig, language_model: PreTrainedModel, encoder: PreTrainedModel | None = None
    ) -> None:
        super().__init__(config)
        if config.entry not in get_args(Entry):
            raise ValueError(f"entry {config.entry!r} is unknown; choose from {', '.join(get_args(Entry))}")
        self.language_model = language_model
        self.separate_encoder = encoder
        self.divided = None
        width = encoder_width = self.output_head.weight_VD.shape[1]
        if encoder is not None:
            encoder_width = output_head(encoder).weight_VD.shape[1]
        if config.entry != "logits":
            self.divided = DividedStack(decoder(language_model), config.entry_layer)
            width = self.divided.width
        self.down, self.up = config.narrowing(encoder_width)
        self.introduce = nn.Linear(encoder_width, width)
        nn.init.zeros_(self.introduce.weight)
        nn.init.zeros_(self.introduce.bias)
        for model in filter(None, (language_model, encoder)):
            tune(model, decoder(model), config.tuning, config.lora_rank)
        self.frozen_states: FrozenStates | None = None

    def keep_states(self, tokens: int) -> bool:
        """Keep the states of up to this many tokens in memory, instead of computing them in every epoch.

        States are kept only if a single frozen language model is both encoder and decoder, and the embedding enters at
        the logits. Return True if states are kept, and False otherwise.
        """
        if self.shares_states and self.config.tuning == "frozen":
            self.frozen_states = FrozenStates(self._states, tokens)
        return self.frozen_states is not None

    @property
    def facts(self) -> dict[str, object]:
        settings, backbones = self.config, self.config.backbones()
        entry = settings.entry if self.adds_logits else f"{settings.entry}, below layer {settings.entry_layer}"
        named = {f"language model, {role}": f"{each.name}, sha256 {each.sha256}" for role, each in backbones.items()}
        return {
            **named,
            "training of the language model": tuned(settings.tuning, settings.lora_rank),
            "the embedding enters at": entry,
        }

    @property
    def adds_logits(self) -> bool:
        return self.config.entry == "logits"

    @property
    def shares_states(self) -> bool:
        """True if one pass of the language model gives the states of the encoder and those of the decoder."""
        return self.adds_logits and self.separate_encoder is None

    @property
    def output_head(self) -> OutputHead:
        return output_head(self.language_model)

    def train(self, mode: bool = True) -> Self:
        """Set training mode; frozen language models stay in evaluation mode, without dropout."""
        super().train(mode)
        if self.config.tuning == "frozen":
            for model in filter(None, (self.language_model, self.separate_encoder)):
                model.eval()
        return self

    def encoded(self, input_ids_BT: Tensor) -> Tensor:
        return self._states(input_ids_BT)[:, 1:]

    def narrowed(self, hidden_BTC: Tensor) -> Tensor:
        """Return bottleneck values [..., E] from states of the encoder [..., C].

        The states are first scaled to a root mean square of 1. The scale of last hidden states differs between model
        families by orders of magnitude.
        """
        return super().narrowed(rms_norm(hidden_BTC, hidden_BTC.shape[-1:]))

    def introduced(self, bottleneck_E: Tensor) -> Tensor:
        introduced_D: Tensor = self.introduce(self.up(bottleneck_E))
        return introduced_D

    def token_states(self, input_ids_BT: Tensor) -> Tensor:
        inputs_BT = prepend_start(input_ids_BT, self.config.start_token)
        if self.divided is not None:
            return self.divided.below(inputs_BT)
        return last_hidden(decoder(self.language_model), inputs_BT)

    def decode_states(self, embedding_BX: Tensor, states_BTD: Tensor) -> Tensor:
        """Return the hidden states [B, T, D] for the output head, given an embedding and the result of `token_states`.

        State i predicts token i. An embedding that enters at the logits does not affect these states; see
        `OutputHead.losses_with_added`.
        """
        if self.divided is None:
            return states_BTD
        added_BtD = embedding_BX.unsqueeze(1)
        if self.config.entry == "start-token":
            added_BtD = pad(added_BtD, (0, 0, 0, states_BTD.shape[1] - 1))
        return self.divided.above(states_BTD + added_BtD)

    def embeddings_and_states(self, input_ids_BT: Tensor) -> tuple[Tensor, Tensor]:
        if not self.shares_states:
            return super().embeddings_and_states(input_ids_BT)
        states_BSD = self._states(input_ids_BT)
        return self.introduced(self.narrowed(states_BSD[:, 1:])), states_BSD[:, :-1]

    def decode_losses(self, bottleneck_BE: Tensor, input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        return self._losses(bottleneck_BE, self.token_states(input_ids_BT), input_ids_BT, lengths_B)

    def token_losses(self, input_ids_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        if not self.shares_states:
            return super().token_losses(input_ids_BT, lengths_B)
        if lengths_B is None:
            lengths_B = torch.full((len(input_ids_BT),), input_ids_BT.shape[1], device=input_ids_BT.device)
        if self.frozen_states is not None:
            states_BSD = self.frozen_states(input_ids_BT, lengths_B)
        else:
            states_BSD = self._states(input_ids_BT)
        bottleneck_BE = self.narrowed(last_real(states_BSD[:, 1:], lengths_B))
        return self._losses(bottleneck_BE, states_BSD[:, :-1], input_ids_BT, lengths_B)

    forward = token_losses

    def save_pretrained(self, save_directory: Any, *_: Any, **__: Any) -> None:
        """Write the configuration and all trained weights to the folder of the checkpoint.

        A language model whose weights are not all trained is copied into the checkpoint only if its `Backbone` record
        has `held`. Otherwise, the checkpoint only names the language model.
        """
        folder, weights = Path(save_directory), self.own_weights()
        for role, backbone in self.config.backbones().items():
            model = self.language_model if role == "decoder" else self.separate_encoder
            if self.config.tuning == "whole":
                assert model is not None
                setattr(self.config, role, record(hold_trained(backbone, model, folder, role)))
            elif backbone.held:
                backbone.hold(folder, role)
        self.config.architectures = [type(self).__name__]
        save_weights(weights, folder)
        self.config.save_pretrained(folder)

    def own_weights(self) -> dict[str, Tensor]:
        """Return the trained weights by name, but without the language models' weights if the tuning is `whole`.

        With this tuning, all weights of the language models are trained, and the checkpoint holds them in separate
        files.
        """
        weights = trained_weights(self)
        if self.config.tuning == "whole":
            weights = {name: weights[name] for name in weights if not name.startswith(BACKBONE_MODULES)}
        return weights

    def _states(self, input_ids_BT: Tensor) -> Tensor:
        """Return the encoder's states [B, S, C] of the start token and of all tokens."""
        model = self.language_model if self.separate_encoder is None else self.separate_encoder
        return last_hidden(decoder(model), pad(input_ids_BT, (1, 0), value=self.config.start_token))

    def _losses(self, bottleneck_BE: Tensor, states_BTD: Tensor, input_ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the losses of all tokens in nats [B, T]; 0 at padding. `token_states` returns `states_BTD`."""
        embedding_BX = self.introduced(bottleneck_BE)
        real_BT = real_positions(lengths_B, input_ids_BT.shape[1])
        target_N, head = input_ids_BT[real_BT], self.output_head
        if self.adds_logits:
            added_ND = embedding_BX.unsqueeze(1).expand(-1, input_ids_BT.shape[1], -1)[real_BT]
            losses_N = head.losses_with_added(states_BTD[real_BT], added_ND, target_N)
        else:
            losses_N = head.losses(self.decode_states(embedding_BX, states_BTD)[real_BT], target_N)
        losses_BT = losses_N.new_zeros(input_ids_BT.shape)
        losses_BT[real_BT] = losses_N
        return losses_BT


BACKBONE_MODULES = ("language_model.", "separate_encoder.")
