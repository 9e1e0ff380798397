"""Every training command makes the same model, no matter how it is run.

A command may run in one process or in several, and with or without weights in shards. It may run to its end at once, or
be killed or stopped and then resumed.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import load_file

from tests.annotated import write_annotated
from tests.conftest import RunCommand, free_ports
from tests.forkserver import Forked, group
from tests.jobs.test_train_language_model import assert_near, curve

JOBS = ("estimator", "second_order", "language_model", "autoencoder")
TRAINING = {"steps": 12, "evaluate-every": 4, "tokens-per-batch": 256, "learning-rate": 0.003}
WINDOW_ENCODER = {
    **{"context": 24, "encoder-width": 16, "encoder-layers": 1, "decoder-width": 32, "decoder-layers": 2},
    **{"decoder-heads": 2, "noise": 0.1},
}
WINDOW_ENCODERS = ("estimator", "autoencoder")
SHARDS = Path(__file__).parents[2] / "jobs" / "fsdp.yaml"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[object, ...]]:
    """Return each job's command on the same sixty documents, by the job's name. Only --output is missing."""
    folder, random = tmp_path_factory.mktemp("documents"), np.random.default_rng(0)
    tokens = [random.integers(97, size=random.integers(5, 60)).tolist() for _ in range(60)]
    nats = [np.where(random.random(len(ids)) < 0.3, np.nan, random.gamma(2, 1.5, len(ids))) for ids in tokens]
    labels = write_annotated(
        folder / "labels", tokens, [row.tolist() for row in nats], vocabulary=97, tokenizer_sha256=None
    )
    pq.write_table(pa.table({"input_ids": pa.array(tokens, pa.list_(pa.int32()))}), folder / "tokens.parquet")
    sizes = {"context": 24, "width": 32, "layers": 2, "heads": 2}
    for name, model in (("windows", WINDOW_ENCODER), ("other", sizes)):
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"training": TRAINING, "model": model, "held-out": 6}), encoding="utf-8"
        )
    tokens_alone = ("--input", folder / "tokens.parquet", "--tokenizer", "none", "--vocabulary", 97)
    tokenized = ("--config", folder / "windows.yaml", *tokens_alone)
    labelled = ("--config", folder / "other.yaml", "--labels", labels)
    return {
        "estimator": ("jobs.train_estimator", *tokenized),
        "autoencoder": ("jobs.train_autoencoder", *tokenized),
        "second_order": ("jobs.train_second_order", *labelled),
        # an objective that compares the tokens of all processes
        "language_model": ("jobs.train_language_model", *labelled, "--objective", "reference-share"),
    }


def launched(launcher: tuple[object, ...], *command: object) -> subprocess.Popen[str]:
    """Start a command by a real launcher. This is slow, because each of its processes imports torch."""
    words = [sys.executable, "-m", *map(str, (*launcher, *command))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def as_accelerate_sets_it() -> dict[str, str]:
    """Return the environment variables that `accelerate launch` sets in the processes of a sharded training."""
    words = ["--config_file", str(SHARDS), "--num_processes", "2", "-m", "module"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    environment: dict[str, str] = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in environment.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def finished(process: Forked | subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    return output


def assert_same_weights(one: Path, other: Path, near: float = 0) -> None:
    weights, wanted = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == wanted.keys()
    for name, tensor in weights.items():
        assert tensor.dtype == wanted[name].dtype
        torch.testing.assert_close(tensor, wanted[name], atol=near, rtol=0)


def wait_for_state(output: Path, process: Forked) -> None:
    while not list(output.rglob("unfinished-*.safetensors")):
        assert process.poll() is None
        time.sleep(0.01)


def compare_processes(
    command: tuple[object, ...], folder: Path, run: Callable[..., list[Any]], rounding: float = 1e-4
) -> None:
    """Train in one process, in replicas and with shards, and require the same model from all three ways.

    `run` starts a training in one of these ways and returns its processes. `rounding` is the largest difference of
    metrics that is allowed.
    """
    ways = ("one", "replicated", "sharded")
    running = {way: run(way, *command, folder / way) for way in ways}
    for processes in running.values():
        assert sum(len(finished(process).splitlines()) for process in processes) == 1  # only the main process prints
    wanted = folder / "one"
    assert len(curve(wanted)) == 3
    for way in ways[1:]:
        assert_near(curve(folder / way), curve(wanted), rounding)
        assert {file.name for file in (folder / way).iterdir()} == {file.name for file in wanted.iterdir()}
        assert_same_weights(folder / way, wanted, near=max(1e-3, rounding))  # a last bit of bfloat16
    assert not list(folder.rglob("unfinished*"))


def quiet(commands: dict[str, tuple[object, ...]], job: str) -> tuple[object, ...]:
    """Return the command of a training job, with the random noise on embeddings turned off.

    Noise would differ between processes. The command ends with `--output`, and the caller appends the output folder.
    """
    noise = ("--model.noise", 0) if job in WINDOW_ENCODERS else ()
    return (*commands[job], *noise, "--training.accumulate", 2, "--training.save-as", "bfloat16", "--output")


@pytest.mark.parametrize(
    ("job", "optimizer", "average"),
    [
        ("estimator", "adamw", "none"),
        pytest.param("language_model", "adamw", "ema", marks=pytest.mark.long),
        *(pytest.param(job, "adamw", "swa", marks=pytest.mark.slow) for job in ("second_order", "autoencoder")),
        pytest.param("second_order", "muon", "none", marks=pytest.mark.long),
    ],
)
def test_two_processes_with_or_without_shards_train_the_same_model_as_one(
    commands: dict[str, tuple[object, ...]], tmp_path: Path, job: str, optimizer: str, average: str
) -> None:
    def run(way: str, *command: object) -> list[Forked]:
        if way == "one":
            return [Forked(*command)]
        return group(2, *command, environment=as_accelerate_sets_it() if way == "sharded" else {})

    command = quiet(commands, job)
    rounding = 1e-2 if optimizer == "muon" else 1e-4  # Muon makes a gradient orthogonal in bfloat16
    settings = ("--training.optimizer", optimizer, "--training.average", average)
    compare_processes((*command[:-1], *settings, command[-1]), tmp_path, run, rounding)


@pytest.mark.parametrize("job", JOBS)
def test_a_dry_run_prints_the_cost_of_a_training_and_writes_nothing(
    commands: dict[str, tuple[object, ...]],
    tmp_path: Path,
    job: str,
    run_command: RunCommand,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu = ("--gpu", "h100", "--gpus", 8, "--training.precision", "bf16")
    for flags, origin in ((), "measured on 1 CPU process"), (gpu, "computed for 8 × h100 at 40% of 989 TFLOP/s"):
        assert run_command(*commands[job], "--output", tmp_path / "out", "--dry-run", *flags) == 0
        assert origin in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_dry_run_in_two_processes_measures_both_and_prints_once(
    commands: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    command = (*commands["estimator"], "--output", tmp_path / "out", "--dry-run")
    main, other = map(finished, group(2, *command))
    assert "measured on 2 CPU processes here" in main and not other and not list(tmp_path.iterdir())


@pytest.mark.slow  # another test sets the launchers' variables, and README's commands run `accelerate launch` both ways
def test_real_launchers_train_the_same_model_as_one_process(
    commands: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    launchers: dict[str, tuple[object, ...]] = {
        "replicated": ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m"),
        "sharded": (
            *("accelerate.commands.launch", "--config_file", SHARDS, "--num_processes", 2),
            *("--main_process_port", *free_ports(1), "-m"),
        ),
    }

    def run(way: str, *command: object) -> list[Any]:
        return [launched(launchers[way], *command) if way in launchers else Forked(*command)]

    compare_processes(quiet(commands, "language_model"), tmp_path, run)


@pytest.mark.long
@pytest.mark.parametrize("job", [JOBS[0], pytest.param(JOBS[1], marks=pytest.mark.slow)])
def test_a_training_killed_in_its_second_fold_resumes_there(
    commands: dict[str, tuple[object, ...]], tmp_path: Path, job: str
) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    command = (*commands[job], "--folds", 2, "--training.steps", 100)
    other = Forked(*command, "--output", undisturbed)
    process = Forked(*command, "--output", killed)
    wait_for_state(killed / "fold-1-of-2", process)
    process.kill()
    process.communicate()
    first = (killed / "fold-0-of-2" / "model.safetensors").stat()
    finished(Forked(*command, "--output", killed, "--training.keep", 1))
    finished(other)
    assert (killed / "fold-0-of-2" / "model.safetensors").stat() == first
    for fold in ("fold-0-of-2", "fold-1-of-2"):
        assert curve(killed / fold) == curve(undisturbed / fold) and len(curve(killed / fold)) == 25
        assert_same_weights(killed / fold, undisturbed / fold)
    assert not list(killed.rglob("unfinished*"))


def test_two_processes_that_share_a_stream_train_the_same_model_as_one(
    commands: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    command = (*commands["estimator"], "--model.noise", 0, "--stream", 300, "--output")
    one, whole = Forked(*command, tmp_path / "one"), Forked(*command[:-3], "--output", tmp_path / "whole")
    for process in (*group(2, *command, tmp_path / "two"), one, whole):
        finished(process)
    assert_near(curve(tmp_path / "two"), curve(tmp_path / "one"))
    assert_same_weights(tmp_path / "two", tmp_path / "one", near=1e-3)
    assert curve(tmp_path / "one") != curve(tmp_path / "whole")
    card = (tmp_path / "two" / "README.md").read_text(encoding="utf-8")
    assert "| 1 files, about 300 tokens at a time |" in card and "| the first 6 documents, " in card


@pytest.mark.long
def test_a_training_killed_within_a_stream_resumes_there(
    commands: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    command = (*commands["autoencoder"], "--stream", 300, "--training.steps", 100, "--output")
    other, process = Forked(*command, undisturbed), Forked(*command, killed)
    wait_for_state(killed, process)
    process.kill()
    process.communicate()
    assert list(killed.glob("unfinished-*.safetensors"))
    finished(Forked(*command, killed))
    finished(other)
    assert curve(killed) == curve(undisturbed) and len(curve(killed)) == 25
    assert_same_weights(killed, undisturbed)


@pytest.mark.parametrize("job", JOBS[:2])
def test_another_training_is_not_mixed_in(
    run_command: RunCommand,
    commands: dict[str, tuple[object, ...]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    job: str,
) -> None:
    output = ("--output", tmp_path / "out")
    assert run_command(*commands[job], *output, "--training.learning-rate", -1) == 1
    assert not (tmp_path / "out").exists()
    assert run_command(*commands[job], *output) == 0
    assert run_command(*commands[job], *output) == 1
    assert "is there already; delete it or choose another folder" in capsys.readouterr().err
    (tmp_path / "out" / "unfinished.json").write_text("{}", encoding="utf-8")
    assert run_command(*commands[job], *output) == 1
    assert "holds another unfinished training (" in capsys.readouterr().err


def test_every_fold_of_a_finished_training_takes_more_steps(
    run_command: RunCommand, commands: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    trapezoid = ("--training.decay", "trapezoid", "--training.warmup", 2, "--folds", 2)
    command = (*commands["second_order"], *trapezoid)
    for steps in (8, 12):
        assert run_command(*command, "--training.steps", steps, "--output", tmp_path / "parts") == 0
    assert run_command(*command, "--training.steps", 12, "--output", tmp_path / "whole") == 0
    for fold in ("fold-0-of-2", "fold-1-of-2"):
        assert curve(tmp_path / "parts" / fold) == curve(tmp_path / "whole" / fold)
        assert_same_weights(tmp_path / "parts" / fold, tmp_path / "whole" / fold)
        assert not list((tmp_path / "parts" / fold).glob("unfinished*"))


def test_a_signal_to_one_process_stops_all_at_the_same_step(
    commands: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = (*commands["second_order"], "--training.steps", 100_000, "--output", output)
    processes = group(2, *command)
    wait_for_state(output, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143]
    step = max(int(file.stem.rpartition("-")[2]) for file in output.glob("unfinished-*.safetensors"))
    assert errors[0].splitlines()[-1] == f"stopped at step {step}; the same command resumes"
    assert "stopped" not in errors[1]


def test_a_loss_that_is_not_finite_ends_every_process_with_one_line(
    commands: dict[str, tuple[object, ...]], tmp_path: Path
) -> None:
    rate = ("--training.learning-rate", 1e30, "--training.warmup", 0.01)
    processes = group(2, *commands["language_model"], *rate, "--output", tmp_path / "out")
    errors = [process.communicate(timeout=60)[1].splitlines() for process in processes]
    lines = [line for error in errors for line in error if line.startswith("error: ")]
    assert len(lines) == 2 and lines[0] == lines[1] and lines[0].startswith("error: the ")
    assert " is nan at step 2 (" in lines[0] and f"written to {tmp_path / 'out' / 'not-finite.safetensors'}" in lines[0]
    assert set(load_file(tmp_path / "out" / "not-finite.safetensors")) == {"input_ids", "lengths", "labels"}
