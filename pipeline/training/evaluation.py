"""Held-out figures: one number a token over a whole corpus, summed in float64.

B rows, T tokens of the longest row.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.models.second_order import SecondOrderModel
from pipeline.training.batches import Batch, Cut, epoch_batches
from pipeline.training.losses import window_losses


def held_out_batches(corpus: Corpus, cut: Cut, device: torch.device) -> Iterator[Batch]:
    """Every token of the corpus once, in an order that is always the same."""
    for batch in epoch_batches(corpus, cut, np.random.default_rng(0)):
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


def window_loss(model: PreTrainedModel, corpus: Corpus, cut: Cut) -> float:
    """Plain cross-entropy in nats a token, whatever a causal language model was trained with."""
    batches = held_out_batches(corpus, cut, model.device)
    return mean_of(window_losses(model, batch)[batch.real_BT[:, 1:]] for batch in batches)


def second_order_figures(model: SecondOrderModel, batches: Iterable[Batch]) -> dict[str, float]:
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
