"""Average of the weights over the steps of a training, evaluated and saved instead of the last weights.

A moving average (EMA) weighs recent steps most. SWA (Izmailov et al. 2018, arXiv 1803.05407) weighs all steps equally.
Either average varies less than the weights themselves, which change at every step with the noise of a single batch.
The average does not affect training itself.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from pipeline.training.config import TrainingConfig


class WeightAverage:
    """Average of a model's trained weights, of the kind that the setting `average` names.

    If the setting is `none`, every method leaves the model as it is.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        """Prepare to average the weights of `model`, which must already be on its device and, if needed, sharded."""
        named = model.named_parameters() if config.average != "none" else ()
        self.config = config
        self.weights = {name: weight for name, weight in named if weight.requires_grad}
        self.tensors: dict[str, Tensor] = {name: weight.detach().clone() for name, weight in self.weights.items()}
        """The average of each weight, by name, placed and sharded like the weight. Before the first step of the
        average, the values have no meaning."""

    def update(self, step: int) -> None:
        """Add the weights after a step to the average. After the last step of training, the average replaces them."""
        averaged = step - self.config.first_averaged
        if not self.tensors or averaged < 0:
            return
        averages, weights = list(self.tensors.values()), list(self.weights.values())
        if averaged == 0:
            _copy(weights, averages)
        elif self.config.average == "ema":
            get_ema_multi_avg_fn(self.decay(averaged))(averages, weights, averaged)
        else:
            get_swa_multi_avg_fn()(averages, weights, averaged)
        if step == self.config.steps:
            _copy(averages, weights)

    def decay(self, averaged: int) -> float:
        """Return the decay with which the next weights enter a moving average that has `averaged` steps so far.

        The decay rises with `averaged`, so that the first weights are soon forgotten.
        """
        return min(self.config.average_decay, (1 + averaged) / (10 + averaged))

    @contextmanager
    def applied(self, step: int) -> Iterator[None]:
        """Replace the model's own weights by their average after `step`, as long as this context is open.

        `step` is the number of finished training steps. The weights are not replaced if the average has not begun yet.
        They are not replaced after the last step of training either, because `update` has then replaced them for good.
        """
        swaps = bool(self.tensors) and self.config.first_averaged <= step < self.config.steps
        if swaps:
            self._swap()
        try:
            yield
        finally:
            if swaps:
                self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.weights.items():
            own = weight.clone()  # one weight at a time, so that no third copy of the model is in memory
            weight.copy_(self.tensors[name])
            self.tensors[name].copy_(own)


@torch.no_grad()
def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    for source, target in zip(sources, targets, strict=True):
        target.copy_(source)
