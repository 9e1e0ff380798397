"""Recipes at the paper's scale: a dry run prints the hours that a recipe states, and a shrunk recipe trains."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from pipeline.training.resume import is_finished
from tests.annotated import write_annotated
from tests.checkers import ROOT
from tests.conftest import RunCommand
from tests.forkserver import Forked
from tests.jobs.commands import in_comments, understood

RECIPES = sorted((ROOT / "jobs").glob("train_*_paper.yaml"))
VOCABULARY = 8192
SMALL = {
    **{"context": 32, "width": 16, "layers": 1, "heads": 2, "encoder_width": 16, "encoder_layers": 1},
    **{"encoder_heads": 2, "decoder_width": 16, "decoder_layers": 1, "decoder_heads": 2},
}
TOKENS_OF_STEP = 65_536


def head(recipe: Path) -> str:
    """Return the comments of a recipe, joined to one line."""
    lines = [line[1:].strip() for line in recipe.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return " ".join(lines).replace("\\ ", "")


def launch(recipe: Path) -> Any:
    """Return the arguments of a recipe's `accelerate launch`, parsed by accelerate."""
    (command,) = set(re.findall(rf"accelerate launch (\S+ \S+ -m jobs\.\w+ --config jobs/{recipe.name})", head(recipe)))
    return launch_command_parser().parse_args(shlex.split(command))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the same random documents in two forms, and return their folder.

    The file `tokens.parquet` has their token ids. The folder `labels` is an annotated dataset.
    """
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    # An epoch has more than 30 steps, so that the last one, which is smaller, hardly counts.
    tokens = [random.integers(VOCABULARY, size=size).tolist() for size in random.integers(900, 3000, 1200)]
    pq.write_table(pa.table({"input_ids": pa.array(tokens, pa.list_(pa.int32()))}), folder / "tokens.parquet")
    labels = [random.gamma(2, 1.5, len(ids)).tolist() for ids in tokens]
    settings: dict[str, Any] = {"vocabulary": VOCABULARY, "tokenizer_sha256": None, "window": 1024, "overlap": 512}
    write_annotated(folder / "labels", tokens, labels, **settings)
    return folder


def flags(recipe: Path, data: Path, output: Path) -> tuple[object, ...]:
    """Return flags that override what a recipe reads and writes."""
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    held_out = ("--held-out", 20, "--output", output)
    if "labels" in settings:
        return ("--config", recipe, "--labels", data / "labels", *held_out)
    tokens = ("--tokenizer", "none", "--vocabulary", VOCABULARY)
    return ("--config", recipe, "--input", data / "tokens.parquet", *tokens, *held_out)


def test_there_is_a_recipe_for_each_training_of_the_paper() -> None:
    names = ("estimator", "estimator_noise", "generalization", "language_model", "second_order")
    assert {recipe.stem for recipe in RECIPES} == {f"train_{name}_paper" for name in names}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_commands_of_a_recipe_are_understood(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = in_comments(recipe)
    assert commands
    for command in commands:
        module, *words = shlex.split(command.partition("-m ")[2])
        assert understood(words, monkeypatch, module).output is not None


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_dry_run_has_the_hours_that_a_recipe_states(
    recipe: Path, data: Path, tmp_path: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = launch(recipe)
    hours, share, gpus, peak = re.search(
        r"([\d.]+) hours at (\d+)% of (\d+) × (\d+) TFLOP/s \(H100\), computed and not measured", head(recipe)
    ).groups()  # type: ignore[union-attr]
    assert (arguments.num_processes, arguments.module, int(gpus), int(peak)) == (8, True, 8, 989)
    output = tmp_path / "out"
    gpu = ("--dry-run", "--gpu", "h100", "--gpus", gpus, "--utilisation", int(share) / 100)
    assert run_command(arguments.training_script, *flags(recipe, data, output), *gpu) == 0
    printed = capsys.readouterr().out
    assert not output.exists()
    found = re.search(r"^time +([\d.]+) hours", printed, re.MULTILINE)
    step = re.search(r"^step +([\d,]+) tokens", printed, re.MULTILINE)
    assert found and float(found[1]) == pytest.approx(float(hours), abs=0.15)
    assert step and int(step[1].replace(",", "")) == pytest.approx(TOKENS_OF_STEP, rel=0.03)


@pytest.mark.long
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_that_is_shrunk_trains(recipe: Path, data: Path, tmp_path: Path) -> None:
    """The training runs in a process of its own, since a process can train in one precision only."""
    settings, output = yaml.safe_load(recipe.read_text(encoding="utf-8")), tmp_path / "out"
    sizes = {name: SMALL[name] for name in settings["model"] if name in SMALL}
    shrunk = [part for name, size in sizes.items() for part in (f"--model.{name.replace('_', '-')}", size)]
    training = ("--training.steps", 2, "--training.tokens-per-batch", 132, "--training.compile=false")
    command = (launch(recipe).training_script, *flags(recipe, data, output), *shrunk, *training, "--limit", 25)
    process = Forked(*command)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "held-out" in printed and is_finished(output)
