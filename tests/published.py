"""The paper's procedure for exact labels, as a slow reference for tests: two full-length forward passes per label.

Every prefix of the window is moved to the right end of a row of T positions. The positions to the left of the prefix
are padding, which an attention mask hides, and the logits of all T positions are computed. The embedding always stands
directly before the first token of the prefix, and this token is predicted from the embedding. A prediction from padding
would treat short prefixes differently from the whole window.

T tokens of the window, R prefixes in a forward pass, D decoder width, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from pipeline.models.estimator import EntropyEstimator
from pipeline.models.stacks import input_embeddings

BATCH = 8


@torch.no_grad()
def published_entropies(
    estimator: EntropyEstimator, window_T: Tensor, positions: Sequence[int] | None = None, batch: int = BATCH
) -> Tensor:
    """Return exact labels in nats, float32, at `positions` (None for all).

    The label of token n, counted from 1, is C(n) - C(n - 1), where C(n) is the code length of the first n tokens. A
    forward pass has `batch` prefixes.
    """
    chosen_P = torch.arange(len(window_T)) if positions is None else torch.tensor(positions)
    entropies = [
        code_lengths(estimator, window_T, (chosen_R + 1).to(window_T.device))
        - code_lengths(estimator, window_T, chosen_R.to(window_T.device))
        for chosen_R in chosen_P.split(batch)
    ]
    return torch.cat(entropies).float()


def code_lengths(estimator: EntropyEstimator, window_T: Tensor, length_R: Tensor) -> Tensor:
    """Return the code length C(n) of the window's first n tokens in nats, for each n in `length_R`, float64 [R].

    The cost of the embedding is not included. C(0) is 0, but it takes a forward pass like any other prefix.
    """
    width = len(window_T)
    index_RT = torch.arange(width, device=window_T.device) - (width - length_R.unsqueeze(1))
    real_RT, position_RT = index_RT >= 0, index_RT.clamp(min=0)
    ids_RT, previous_RT = window_T[position_RT], window_T[(index_RT - 1).clamp(min=0)]
    encoder, decoder = estimator.encoder, estimator.decoder
    encoded_RTC = _masked(encoder, input_embeddings(encoder)(ids_RT), real_RT, position_RT)
    embedding_RD = estimator.introduced(estimator.down(encoded_RTC[:, -1]))
    first_RT1 = (index_RT == 0).unsqueeze(2)
    inputs_RTD = torch.where(first_RT1, embedding_RD.unsqueeze(1), input_embeddings(decoder)(previous_RT))
    logits_RTV = _masked(decoder, inputs_RTD, real_RT, position_RT) @ estimator.head_VD.T
    losses_RT = cross_entropy(logits_RTV.float().flatten(0, 1), ids_RT.flatten(), reduction="none").view(ids_RT.shape)
    return torch.where(real_RT, losses_RT, 0).double().sum(dim=1)


def _masked(transformer: PreTrainedModel, inputs_RTD: Tensor, real_RT: Tensor, position_RT: Tensor) -> Tensor:
    hidden_RTD: Tensor = transformer(
        inputs_embeds=inputs_RTD, attention_mask=real_RT.long(), position_ids=position_RT
    ).last_hidden_state
    return hidden_RTD
