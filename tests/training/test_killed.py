"""A training killed ten times, anywhere in a step, ends with the same weights as an undisturbed one."""

import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline.experiments.parallel import PROCESSES
from pipeline.training import resume
from pipeline.training.batches import Batch
from pipeline.training.config import TrainingConfig
from pipeline.training.trainer import train
from tests.training.test_resume import dropped
from tests.training.test_trainer import Bigrams, circle, evaluate, metrics

KILLS = 10
CONFIG = TrainingConfig(steps=200, tokens_per_batch=40, accumulate=2, learning_rate=0.1, evaluate_every=7, save_every=1)


def trained(output: Path, watched: Connection) -> None:
    """Train, and send a message to the watching process at every loss."""

    def loud(model: nn.Module, batch: Batch) -> Tensor:
        watched.send("loss")
        return dropped(model, batch)

    torch.set_num_threads(1)
    resume.begin(output, CONFIG.fingerprint)
    train(Bigrams(), circle(), loud, evaluate, CONFIG, output)


def killed_after(losses: int, seconds: float, output: Path) -> int | None:
    """Return the exit code of a training killed this many seconds after this many losses."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=trained, args=(output, sender))
    process.start()
    sender.close()
    for _ in range(losses):
        assert receiver.recv() == "loss"
    time.sleep(seconds)
    process.kill()
    process.join()
    return process.exitcode


def undisturbed(output: Path) -> None:
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=trained, args=(output, sender))
    process.start()
    process.join()
    assert process.exitcode == 0
    receiver.close()


def test_ten_kills_leave_no_trace(tmp_path: Path) -> None:
    random = np.random.default_rng()
    for _ in range(KILLS):  # a step has two losses, so the ten runs together take at most half of the steps
        losses, seconds = int(random.integers(3, 20)), random.uniform(0, 0.003)  # a step and its state take 3 ms
        assert killed_after(losses, seconds, tmp_path / "killed") == -9
    assert 0 < max(int(file.stem.rpartition("-")[2]) for file in resume.states(tmp_path / "killed")) < CONFIG.steps
    undisturbed(tmp_path / "killed")
    undisturbed(tmp_path / "whole")
    last = f"unfinished-{CONFIG.steps}.safetensors"
    one, other = load_file(tmp_path / "killed" / last), load_file(tmp_path / "whole" / last)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    lines, expected = metrics(tmp_path / "killed"), metrics(tmp_path / "whole")
    assert [{**line, "seconds": 0} for line in lines] == [{**line, "seconds": 0} for line in expected]
    assert [line["step"] for line in lines] == [*range(7, CONFIG.steps, 7), CONFIG.steps]
