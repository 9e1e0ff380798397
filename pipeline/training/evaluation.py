"""Evaluation on held-out documents: losses, R² against labels, and code lengths of whole texts.

Training evaluates with `window_loss`, `second_order_metrics` or `window_metrics`. An `Accounting` holds the code length
of a corpus, including the stored embeddings of its windows. Sums over tokens are in float64.

Shapes: B rows, T tokens of the longest row, N tokens or windows, E bottleneck width.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.models.quantization import Codec, stored_losses
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training.batches import Batch, Windowing, batches_in_order, epoch_batches
from pipeline.training.held_windows import HeldWindows
from pipeline.training.losses import document_losses, window_losses
from pipeline.training.metrics import Metrics


def window_loss(model: PreTrainedModel, windows: HeldWindows, tokens_per_batch: int) -> float:
    """Return a causal language model's plain cross-entropy in nats per token, without its training objective."""
    batches = (batch.to(model.device) for batch in batches_in_order(windows, tokens_per_batch))
    return mean_of(window_losses(model, batch)[batch.real_BT[:, 1:]] for batch in batches)


def second_order_metrics(model: SecondOrderModel, batches: Iterable[Batch]) -> Metrics:
    """Return the R² of both outputs against held-out labels, as `r2_seeing` and `r2_expecting`.

    The seeing output estimates a token's entropy after reading the token. The expecting output reads only the tokens
    before it.
    """
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
    """Return two losses in nats per token, and the bits per byte.

    The cost of the embeddings is their size in float32. `held_out_loss` leaves out this cost. `normalized_loss` and
    `bits_per_byte` include it. `bits_per_byte` is missing if documents were given as token ids.
    """
    account = window_accounting(model, Codec("float32"), corpus, windowing)
    metrics = {"held_out_loss": account.loss, "normalized_loss": account.normalized_loss}
    return metrics | ({} if account.bits_per_byte is None else {"bits_per_byte": account.bits_per_byte})


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """Number of tokens, windows and bytes of a text, and the text's code length. Padding is not counted."""

    tokens: int
    windows: int
    bytes: int | None
    """Number of UTF-8 bytes of the text; None if the documents were given as token ids."""
    token_nats: float
    """Code length of all tokens in nats. Embeddings of windows, if any, are not counted here."""
    stored_bits: int = 0
    """Size in bits of the stored embeddings of all windows."""

    @property
    def loss(self) -> float:
        """Code length in nats per token, without the stored embeddings."""
        return self.token_nats / self.tokens

    @property
    def normalized_loss(self) -> float:
        """Nats per token, including stored embeddings. Comparable with the loss of a causal model (paper section 3)."""
        return (self.token_nats + self.stored_bits * math.log(2)) / self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text, including stored embeddings. None if the documents were given as token ids."""
        return None if self.bytes is None else (self.token_nats / math.log(2) + self.stored_bits) / self.bytes


@torch.no_grad()
def window_accounting(model: WindowEncoder, codec: Codec, corpus: Corpus, windowing: Windowing) -> Accounting:
    """Return the `Accounting` of a corpus that an estimator or autoencoder encodes.

    The decoder reads each window's embedding after the codec has stored and restored it.
    """
    batches = held_out_batches(corpus, windowing, model.device)
    stored = ((batch, stored_losses(model, codec, batch.input_ids_BT, batch.lengths_B)) for batch in batches)
    return _summed(corpus, ((batch, each.losses_BT, each.bits) for batch, each in stored))


@torch.no_grad()
def causal_accounting(model: PreTrainedModel, start: int, corpus: Corpus, windowing: Windowing) -> Accounting:
    """Return the `Accounting` of a corpus that a causal language model encodes, without embeddings.

    The model reads the token `start` before each window.
    """
    batches = held_out_batches(corpus, windowing, model.device)
    return _summed(corpus, ((batch, document_losses(model, batch, start), 0) for batch in batches))


@torch.no_grad()
def window_embeddings(model: WindowEncoder, corpus: Corpus, windowing: Windowing) -> Tensor:
    """Return the bottleneck values [N, E] of all N windows, for example to calibrate a codec."""
    batches = held_out_batches(corpus, windowing, model.device)
    return torch.cat([model.window_bottlenecks(batch.input_ids_BT, batch.lengths_B) for batch in batches])


class Worth(NamedTuple):
    """Saved nats per token: the mean over documents, and half the width of the 95% confidence interval of this mean."""

    mean: float
    error: float


@torch.no_grad()
def embedding_worth(model: WindowEncoder, corpus: Corpus, windowing: Windowing) -> Worth:
    """Return how many nats per token the embeddings of windows save, compared with embeddings of another document.

    An embedding that has learned only what all text has in common saves nothing.

    Raises:
        ValueError: if the corpus has fewer than two documents with tokens.
    """
    documents = [part for index in range(len(corpus)) if len((part := corpus.documents(index, index + 1)).tokens_N)]
    if len(documents) < 2:
        raise ValueError("the worth of embeddings needs two documents; hold out more with `held_out`")
    batches = [
        next(held_out_batches(part, replace(windowing, tokens_per_batch=2**62), model.device)) for part in documents
    ]
    bottlenecks = [model.window_bottlenecks(batch.input_ids_BT, batch.lengths_B) for batch in batches]
    saved = [
        _saved(model, batch, own, other)
        for batch, own, other in zip(batches, bottlenecks, [*bottlenecks[1:], bottlenecks[0]], strict=True)
    ]
    saved_N = torch.tensor(saved, dtype=torch.float64)
    return Worth(saved_N.mean().item(), 1.96 * saved_N.std().item() / math.sqrt(len(saved)))


def _saved(model: WindowEncoder, batch: Batch, own_BE: Tensor, other_NE: Tensor) -> float:
    """Return the nats per token that a document's own embeddings save, compared with embeddings of another document.

    The B windows of `batch` are decoded with their own embeddings, and again with embeddings of N other windows. The
    latter are repeated if N is below B.
    """
    other_BE = other_NE[torch.arange(len(own_BE), device=own_BE.device) % len(other_NE)]
    own_BT, other_BT = (model.decode_losses(each, batch.input_ids_BT, batch.lengths_B) for each in (own_BE, other_BE))
    return (other_BT.double() - own_BT.double()).sum().item() / int(batch.lengths_B.sum())


def _summed(corpus: Corpus, batches: Iterable[tuple[Batch, Tensor, int]]) -> Accounting:
    """Add up all batches of a corpus to its `Accounting`, with nats in float64.

    `batches` yields (batch, losses [B, T] in nats, stored bits).
    """
    tokens = windows = stored_bits = 0
    token_nats = 0.0
    for batch, losses_BT, bits in batches:
        tokens, windows = tokens + int(batch.lengths_B.sum()), windows + len(batch.lengths_B)
        token_nats, stored_bits = token_nats + losses_BT[batch.real_BT].double().sum().item(), stored_bits + bits
    return Accounting(
        tokens=tokens, windows=windows, bytes=corpus.total_bytes, token_nats=token_nats, stored_bits=stored_bits
    )


def held_out_batches(corpus: Corpus, windowing: Windowing, device: torch.device) -> Iterator[Batch]:
    """Yield batches on the device, always in the same order, which together contain every window of the corpus once."""
    for batch in epoch_batches(corpus, windowing, np.random.default_rng(0)):
        yield batch.to(device)


def mean_of(losses: Iterable[Tensor]) -> float:
    """Return the mean over all elements of all tensors, in float64."""
    total, count = 0.0, 0
    for losses_N in losses:
        total, count = total + losses_N.double().sum().item(), count + losses_N.numel()
    return total / count


def r_squared(estimates_N: Tensor, truth_N: Tensor) -> float:
    """Return 1 - mean squared error / variance of the truth, in float64.

    The result is 1 if estimates equal the truth, and 0 if all estimates equal the mean of the truth.
    """
    estimates_N, truth_N = estimates_N.double(), truth_N.double()
    return 1 - ((estimates_N - truth_N).square().mean() / truth_N.var(correction=0)).item()
