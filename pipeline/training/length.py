"""Length of a training in optimizer steps, in epochs or in tokens, and its conversion into steps.

A learning rate depends on the number of steps, so epochs and tokens are converted before training begins. States, the
model card and the fingerprint of the settings hold only the number of steps.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from pipeline.messages import say
from pipeline.training.config import StepSettings, TrainingConfig

if TYPE_CHECKING:  # this imports torch, which is slow and not needed for --help
    from pipeline.training.epoch import Epoch

DIGITS = 6  # decimals of a number of steps before it is rounded up: 0.7 epochs of 10 steps are 7 steps, not 8


@dataclass(frozen=True, kw_only=True)
class TrainingLength:
    """Length of a training in one of three units."""

    steps: int | None = None
    """Number of optimizer steps. Give this, epochs or tokens; the default is 2000 steps."""
    epochs: float | None = None
    """Number of passes over the documents to train on, instead of steps. It is converted into steps and rounded up.
    With --stream, and for windows of random lengths, the number of batches in an epoch is an estimate."""
    tokens: float | None = None
    """Number of tokens to train on, without padding, instead of steps: 1e9, for example. It is converted into steps
    with the mean number of tokens in a batch, and rounded up."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings(StepSettings, TrainingLength):
    """Settings of a training run as a user gives them, with the length in steps, epochs or tokens."""

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [f"`training.{each.name}`" for each in fields(TrainingLength) if getattr(self, each.name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are lengths of the same training; give one of them")

    def resolved(self, epoch: Callable[[], Epoch]) -> TrainingConfig:
        """Return the settings with the length in steps. `epoch` is called only if the length is not in steps.

        The main process prints the number of steps if it was converted.

        Raises:
            ValueError, OSError: as `epoch` does.
        """
        settings = {each.name: getattr(self, each.name) for each in fields(StepSettings)}
        if self.epochs is None and self.tokens is None:
            return TrainingConfig(**settings) if self.steps is None else TrainingConfig(**settings, steps=self.steps)
        one = epoch()
        steps = self._steps(one)
        self._tell(steps, one)
        return TrainingConfig(**settings, steps=steps)

    def _steps(self, epoch: Epoch) -> int:
        if self.epochs is not None:
            batches = self.epochs * epoch.batches(self.tokens_per_batch)
        else:
            batches = (self.tokens or 0) / epoch.tokens_of_batch(self.tokens_per_batch)
        return max(1, math.ceil(round(batches / self.accumulate, DIGITS)))

    def _tell(self, steps: int, epoch: Epoch) -> None:
        from pipeline.training.distributed import this_process  # imports torch

        if this_process().is_main_process:
            length = f"{self.tokens:,.0f} tokens" if self.epochs is None else f"{self.epochs:g} epochs"
            tokens = self.accumulate * epoch.tokens_of_batch(self.tokens_per_batch)
            say(f"{length} are {steps:,} steps of {tokens:,.0f} tokens on average", file=sys.stderr)
