"""Evaluation on held-out documents: losses, R² against labels, and code lengths of whole texts.

A training evaluates with `window_loss`, `second_order_metrics` or `window_metrics`. An Accounting is the code length of
a corpus, what is stored of its windows included. Sums over tokens are in float64.

B rows, T tokens of the longest row, N tokens, E bottleneck width.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.data.packing import PackedWindow
from pipeline.models.quantization import Codec, stored_losses
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training.batches import Batch, Windowing, batches_in_order, epoch_batches
from pipeline.training.losses import document_losses, window_losses
from pipeline.training.metrics import Metrics


def window_loss(model: PreTrainedModel, windows: PackedWindow, tokens_per_batch: int) -> float:
    """Plain cross-entropy in nats a token, whatever a causal language model was trained with."""
    batches = (batch.to(model.device) for batch in batches_in_order(windows, tokens_per_batch))
    return mean_of(window_losses(model, batch)[batch.real_BT[:, 1:]] for batch in batches)


def second_order_metrics(model: SecondOrderModel, batches: Iterable[Batch]) -> Metrics:
    """R² of the seeing and of the expecting output against held-out labels."""
    seeing, expecting, labels = [], [], []
    for batch in batches:
        assert batch.labels_BT is not None
        labelled_BT = ~batch.labels_BT.isnan()
        entropy_BT, expected_BT = model.entropies(batch.input_ids_BT)
        seeing.append(entropy_BT[labelled_BT])
        expecting.append(expected_BT[labelled_BT])
        labels.append(batch.labels_BT[labelled_BT])
    truth = torch.cat(labels)
    return {"r2_seeing": r_squared(torch.cat(seeing), truth), "r2_expecting": r_squared(torch.cat(expecting), truth)}


def window_metrics(model: WindowEncoder, corpus: Corpus, windowing: Windowing) -> Metrics:
    """Loss in nats a token, the same with the embedding's cost spread over its window, and that in bits a byte."""
    account = window_accounting(model, Codec("float32"), corpus, windowing)
    metrics = {"held_out_loss": account.loss, "normalized_loss": account.normalized_loss}
    return metrics | ({} if account.bits_per_byte is None else {"bits_per_byte": account.bits_per_byte})


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
def window_accounting(model: WindowEncoder, codec: Codec, corpus: Corpus, windowing: Windowing) -> Accounting:
    """Of a model whose decoder gets each window's embedding as the codec has stored it."""
    batches = held_out_batches(corpus, windowing, model.device)
    stored = ((batch, stored_losses(model, codec, batch.input_ids_BT, batch.lengths_B)) for batch in batches)
    return _summed(corpus, ((batch, each.losses_BT, each.bits) for batch, each in stored))


@torch.no_grad()
def causal_accounting(model: PreTrainedModel, start: int, corpus: Corpus, windowing: Windowing) -> Accounting:
    """Of a causal language model that reads `start` before each window; nothing is stored but tokens."""
    batches = held_out_batches(corpus, windowing, model.device)
    return _summed(corpus, ((batch, document_losses(model, batch, start), 0) for batch in batches))


@torch.no_grad()
def window_embeddings(model: WindowEncoder, corpus: Corpus, windowing: Windowing) -> Tensor:
    """Bottleneck values [N, E] of every window: of training text, what a codec is calibrated on."""
    batches = held_out_batches(corpus, windowing, model.device)
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


def held_out_batches(corpus: Corpus, windowing: Windowing, device: torch.device) -> Iterator[Batch]:
    """Every token of the corpus once, in an order that is always the same."""
    for batch in epoch_batches(corpus, windowing, np.random.default_rng(0)):
        yield batch.to(device)


def mean_of(losses: Iterable[Tensor]) -> float:
    """Mean over all numbers of all tensors: of a corpus, batch by batch."""
    total, count = 0.0, 0
    for losses_N in losses:
        total, count = total + losses_N.double().sum().item(), count + losses_N.numel()
    return total / count


def r_squared(estimates_N: Tensor, truth_N: Tensor) -> float:
    """1 - mean squared error / variance of the truth, in float64: 0 for its mean, 1 for the truth itself."""
    estimates_N, truth_N = estimates_N.double(), truth_N.double()
    return 1 - ((estimates_N - truth_N).square().mean() / truth_N.var(correction=0)).item()
