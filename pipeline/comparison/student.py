"""The student of a study: one small language model, trained once for every trial on the same few documents.

Every document is cut into windows, each preceded by the start token. Each trial runs in one process. If a trial is
interrupted, the next run resumes it.

Shapes: M documents, N tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.comparison.methods import Trial
from pipeline.comparison.study import Study
from pipeline.comparison.teachers import DEVELOPMENT, KeepBest, load_best, mean_loss
from pipeline.data.corpus import Corpus
from pipeline.experiments.trial import train_once
from pipeline.models.sizes import TransformerSizes
from pipeline.models.stacks import add_dropout, llama_config, new_language_model
from pipeline.training.batches import Batch, Windowing
from pipeline.training.config import ObjectiveSettings, TrainingConfig
from pipeline.training.distillation import DistillationLoss
from pipeline.training.evaluation import held_out_batches
from pipeline.training.losses import ObjectiveLoss, document_losses
from pipeline.training.metrics import Metrics, evaluations
from pipeline.training.moving_margin import MovingMargin
from pipeline.training.objectives import objective_function
from pipeline.training.penalties import penalty_function
from pipeline.training.token_dropout import TokenDropout

OF_TRAINING = ("learning_rate", "weight_decay", "average_decay", "average_from")
OF_OBJECTIVE = ("margin", "gamma", "share", "label_smoothing", "confidence_penalty", "z_loss")
TEST_FILE = "test.npz"
QUANTILE = 0.5
"""Token dropout hides tokens whose labels are below this quantile."""


@dataclass(frozen=True)
class Student:
    """The student of a study: its sizes, its training settings, and the folder in which all trials are trained."""

    study: Study
    sizes: TransformerSizes
    training: TrainingConfig
    folder: Path

    @property
    def windowing(self) -> Windowing:
        return Windowing(self.sizes.context, self.training.tokens_per_batch)

    def search(self, trial: Trial) -> list[Metrics]:
        """Train the student of a trial unless it is trained already, and return its evaluations.

        An evaluation has `development_loss`, and `seen_loss` for an equal number of training documents. Both are plain
        cross-entropy in nats per token.
        """
        self._train(trial, self._losses, keep_weights=False)
        return evaluations(self.folder / trial.folder)

    def test(self, trial: Trial) -> list[Metrics]:
        """Train the student of a trial as `search` does, and write its losses on the test documents to `test.npz`."""
        folder = self.folder / trial.folder
        last = self._train(trial, KeepBest(self._losses, folder), keep_weights=True)
        if not (folder / TEST_FILE).is_file():
            unfinished = folder / f"unfinished.{TEST_FILE}"
            losses: dict[str, Any] = dict(self._test_losses({"last": last, "best": load_best(folder)}))
            np.savez(unfinished, **losses)
            unfinished.replace(folder / TEST_FILE)
        return evaluations(folder)

    def new_model(self, seed: int) -> PreTrainedModel:
        """Return an untrained student."""
        torch.manual_seed(seed)
        return new_language_model(llama_config(vocab_size=self.study.vocabulary, **vars(self.sizes)), self.study.start)

    def configured(self, trial: Trial, **changed: Any) -> TrainingConfig:
        """Return the settings of training, with the values of a trial's settings and with further changes."""
        values = {name: value for name, value in trial.settings if name in OF_TRAINING}
        return replace(self.training, **{**values, **changed})

    def _train(
        self, trial: Trial, evaluate: Callable[[PreTrainedModel], Metrics], *, keep_weights: bool
    ) -> PreTrainedModel:
        config = self.configured(trial, seed=trial.seed, average=trial.method.average)
        labelled = self.study.with_labels(trial.method.labels, trial.seed)
        return train_once(
            with_dropout(self._beginning(trial), trial),
            labelled,
            self.windowing,
            self._loss(trial, labelled),
            evaluate,
            config,
            self.folder / trial.folder,
            keep_weights=keep_weights,
            change=self._change(trial, labelled, config.steps * config.accumulate),
        )

    def _beginning(self, trial: Trial) -> PreTrainedModel:
        if not trial.method.from_teacher:
            return self.new_model(trial.seed)
        assert self.study.teacher is not None
        return load_best(self.study.teacher).requires_grad_(True)

    def _loss(self, trial: Trial, labelled: Corpus) -> Callable[[PreTrainedModel, Batch], Tensor]:
        """Return the loss that the trial minimises."""
        method, values, start = trial.method, dict(trial.settings), self.study.start
        if method.distils is not None:
            predictions, ids = self.study.predictions, method.distils or None
            assert predictions is not None
            return DistillationLoss(partial(predictions.targets, ids=ids), start, values["teacher_weight"])
        own = {name: value for name, value in values.items() if name in OF_OBJECTIVE}
        settings = ObjectiveSettings(objective=method.objective, **own)
        objective = objective_function(settings, labelled.mean_label)
        return ObjectiveLoss(objective, start=start, penalty=penalty_function(settings))

    def _change(self, trial: Trial, labelled: Corpus, steps: int) -> Callable[[Batch, int], Batch] | None:
        """Return the moving margin or the token dropout that changes each batch, or None if the trial has neither."""
        values = dict(trial.settings)
        if "first_margin" in values:
            return MovingMargin(first=values["first_margin"], steps=steps)
        if "token_dropout" not in values:
            return None
        threshold, most = float(np.quantile(labelled.given_labels, QUANTILE)), values["token_dropout"]
        return TokenDropout(threshold=threshold, most=most, steps=steps, hidden=self.study.start, seed=trial.seed)

    def _losses(self, model: PreTrainedModel) -> Metrics:
        few = self.study.seen.documents(0, min(len(self.study.seen), len(self.study.development)))
        evaluated = {"seen_loss": few, DEVELOPMENT: self.study.development}
        return {name: mean_loss(model, each, self.windowing, self.study.start) for name, each in evaluated.items()}

    def _test_losses(self, models: dict[str, PreTrainedModel]) -> Iterator[tuple[str, np.ndarray]]:
        """For each model, yield a name and the sum of the losses of each test document in nats [M].

        The name is the model's name in `models`. If the study also has test documents of another kind, the sums of
        their losses are yielded next, and the word `elsewhere` is added to the name.
        """
        for name, model in models.items():
            yield name, document_nats(model, self.study.test, self.windowing, self.study.start)
            if self.study.elsewhere is not None:
                yield f"{name} elsewhere", document_nats(model, self.study.elsewhere, self.windowing, self.study.start)


def with_dropout(model: PreTrainedModel, trial: Trial) -> PreTrainedModel:
    """Add the dropout of a trial, if any, to a model. Return the model."""
    if rate := dict(trial.settings).get("dropout"):
        add_dropout(model, rate)
    return model


def document_nats(model: PreTrainedModel, corpus: Corpus, windowing: Windowing, start: int) -> np.ndarray:
    """Return the sum of a model's losses in nats for each document of a corpus, float64 [M]."""
    return sums_by_document(token_nats(model, corpus, windowing, start), corpus)


@torch.no_grad()
def token_nats(model: PreTrainedModel, corpus: Corpus, windowing: Windowing, start: int) -> np.ndarray:
    """Return a model's loss in nats for each token of a corpus, float64 [N]."""
    model.eval()
    nats_N = np.zeros(len(corpus.tokens_N))
    for batch in held_out_batches(corpus, windowing, model.device):
        assert batch.positions_BT is not None
        real_BT = batch.real_BT
        nats_N[batch.positions_BT[real_BT].cpu()] = document_losses(model, batch, start)[real_BT].double().cpu()
    return nats_N


def sums_by_document(values_N: np.ndarray, corpus: Corpus) -> np.ndarray:
    """Return the sum of the values of each document's tokens, float64 [M]."""
    return np.array([part.sum(dtype=np.float64) for part in corpus.by_document(values_N)])


def saved_test_losses(folder: Path, name: str) -> np.ndarray:
    """Return the sum of losses in nats of each test document, float64 [M], that `Student.test` wrote under a name.

    The names `best` and `last` stand for the study's usual test documents. The names `best elsewhere` and
    `last elsewhere` stand for test documents of another kind than the training documents.
    """
    with np.load(folder / TEST_FILE, allow_pickle=False) as stored:
        nats_M: np.ndarray = stored[name]
        return nats_M
