"""What a held-out text costs to store, all of it counted: the tokens' code lengths and the embeddings' bits.

Not counted are the model's weights, a codec's scale among them, and where documents end.

N windows, E bottleneck width, B rows, T tokens of the longest row.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.models.quantization import Codec, stored_losses
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training.batches import Batch, Cut
from pipeline.training.evaluation import held_out_batches
from pipeline.training.losses import document_losses


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """Real counts of a whole text; padding counts for nothing."""

    tokens: int
    windows: int
    bytes: int | None
    """UTF-8 bytes of text; None for documents that came as tokens."""
    token_nats: float
    """Code length of all tokens, given what is stored of their windows."""
    stored_bits: int = 0
    """That the embeddings of all windows take."""

    @property
    def loss(self) -> float:
        """Nats a token, without what is stored."""
        return self.token_nats / self.tokens

    @property
    def normalized_loss(self) -> float:
        """Nats a token with what is stored, which a causal language model's loss compares with (paper section 3)."""
        return (self.token_nats + self.stored_bits * math.log(2)) / self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """Of text, with what is stored; None for documents that came as tokens."""
        return None if self.bytes is None else (self.token_nats / math.log(2) + self.stored_bits) / self.bytes


@torch.no_grad()
def window_accounting(model: WindowEncoder, codec: Codec, corpus: Corpus, cut: Cut) -> Accounting:
    """Of a model whose decoder gets each window's embedding as the codec has stored it."""
    batches = held_out_batches(corpus, cut, model.device)
    stored = ((batch, stored_losses(model, codec, batch.input_ids_BT, batch.lengths_B)) for batch in batches)
    return _summed(corpus, ((batch, given.losses_BT, given.bits) for batch, given in stored))


@torch.no_grad()
def causal_accounting(model: PreTrainedModel, start: int, corpus: Corpus, cut: Cut) -> Accounting:
    """Of a causal language model that reads `start` before each window; nothing is stored but tokens."""
    batches = held_out_batches(corpus, cut, model.device)
    return _summed(corpus, ((batch, document_losses(model, batch, start), 0) for batch in batches))


@torch.no_grad()
def window_embeddings(model: WindowEncoder, corpus: Corpus, cut: Cut) -> Tensor:
    """Bottleneck values [N, E] of every window: of training text, what a codec is calibrated on."""
    batches = held_out_batches(corpus, cut, model.device)
    return torch.cat([model.window_bottlenecks(batch.input_ids_BT, batch.lengths_B) for batch in batches])


def _summed(corpus: Corpus, batches: Iterable[tuple[Batch, Tensor, int]]) -> Accounting:
    """Over batches, their losses [B, T] and the bits stored of them; nats in float64."""
    tokens = windows = stored_bits = 0
    token_nats = 0.0
    for batch, losses_BT, bits in batches:
        tokens, windows = tokens + int(batch.lengths_B.sum()), windows + len(batch.lengths_B)
        token_nats, stored_bits = token_nats + losses_BT[batch.real_BT].double().sum().item(), stored_bits + bits
    return Accounting(
        tokens=tokens, windows=windows, bytes=corpus.total_bytes, token_nats=token_nats, stored_bits=stored_bits
    )
