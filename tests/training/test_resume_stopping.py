"""SIGTERM in the middle of a training: the training ends between two steps, and resumes."""

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.training import resume
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.resume import stop_requests
from pipeline.training.trainer import Loss, train
from tests.training.test_resume import dropped
from tests.training.test_trainer import Bigrams, circle, evaluate, metrics

CONFIG = TrainingConfig(steps=12, tokens_per_batch=40, accumulate=2, learning_rate=0.1, evaluate_every=5)


@pytest.fixture(autouse=True)
def handler() -> Iterator[list[int]]:
    """Install a handler of SIGTERM before the training does, and yield the list of the signals that it receives."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    yield came
    signal.signal(signal.SIGTERM, before)


def stopped_in(call: int) -> Loss:
    """Return a loss function whose call number `call` sends SIGTERM to this process."""
    calls = iter(range(1, 1000))

    def interrupted(model: nn.Module, batch: Batch) -> Tensor:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return dropped(model, batch)

    return interrupted


@pytest.mark.parametrize(("call", "step"), [(1, 1), (6, 3), (9, 5), (24, 12)])
def test_a_stopped_training_resumes_as_if_never_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], handler: list[int], call: int, step: int
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    expected, found = Bigrams(), Bigrams()
    train(expected, circle(), dropped, evaluate, CONFIG, whole)
    with pytest.raises(SystemExit) as ended:
        train(Bigrams(), circle(), stopped_in(call), evaluate, CONFIG, parts)
    assert ended.value.code == 143
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped at step {step}; the same command resumes"
    assert resume.states(parts)[-1].name == f"unfinished-{step}.safetensors"
    train(found, circle(), dropped, evaluate, CONFIG, parts)
    assert all(torch.equal(one, other) for one, other in zip(found.parameters(), expected.parameters(), strict=True))
    assert [{**line, "seconds": 0} for line in metrics(parts)] == [{**line, "seconds": 0} for line in metrics(whole)]
    assert handler == []


def test_the_previous_signal_handler_is_restored(tmp_path: Path, handler: list[int]) -> None:
    train(Bigrams(), circle(), dropped, evaluate, CONFIG, tmp_path)
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler == [signal.SIGTERM]
    with stop_requests() as requested, pytest.raises(ZeroDivisionError), stop_requests():
        raise ZeroDivisionError
    os.kill(os.getpid(), signal.SIGTERM)
    assert len(handler) == 2 and not requested()


def test_a_thread_trains_without_a_handler(tmp_path: Path, handler: list[int]) -> None:
    """A training in a thread, as in Ray's workers, leaves the signal to the handler that was installed before."""
    model = Bigrams()
    arguments = (model, circle(), stopped_in(3), evaluate, replace(CONFIG, steps=6), tmp_path)
    thread = threading.Thread(target=train, args=arguments)
    thread.start()
    thread.join()
    assert metrics(tmp_path)[-1]["step"] == 6
    assert handler == [signal.SIGTERM]
