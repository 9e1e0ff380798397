"""A training that is killed ten times, anywhere in a step, ends with the weights of one that never was."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from tests.training.killed import CONFIG
from tests.training.test_loop import metrics

KILLS = 10


def started(output: Path) -> subprocess.Popen[bytes]:
    command, one_thread = [sys.executable, "-m", "tests.training.killed", str(output)], {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **one_thread}
    )


def last_state(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / f"unfinished-{CONFIG.steps}.safetensors")


def test_ten_kills_leave_no_trace(tmp_path: Path) -> None:
    random = np.random.default_rng()
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    whole = started(undisturbed)
    for _ in range(KILLS):
        process = started(killed)
        assert process.stdout is not None
        for _ in range(int(random.integers(3, 20))):  # two losses a step: all ten together are half of the training
            assert process.stdout.readline() == b"step\n"
        time.sleep(random.uniform(0, 0.003))  # a step with its state takes about 3 ms
        process.kill()
        process.communicate()
        assert process.returncode == -9
    assert started(killed).communicate() and whole.communicate()
    one, other = last_state(killed), last_state(undisturbed)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert [{**line, "seconds": 0} for line in metrics(killed)] == [
        {**line, "seconds": 0} for line in metrics(undisturbed)
    ]
    assert [line["step"] for line in metrics(killed)] == [*range(7, CONFIG.steps, 7), CONFIG.steps]
