"""Recipes that follow the rules of NanoGPT Slowrun.

Their commands parse, a shrunk recipe trains, and the large recipe costs as much as it states.
"""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from jobs.train_language_model import Config
from pipeline.models.stacks import new_language_model, stack_config
from pipeline.training.batches import Batch
from pipeline.training.config import DryRunSettings
from pipeline.training.cost import TERA, Cost
from pipeline.training.epoch import Epoch
from pipeline.training.losses import ObjectiveLoss
from pipeline.training.objectives import objective_function
from pipeline.training.resume import is_finished
from tests.annotated import write_annotated
from tests.checkers import ROOT
from tests.forkserver import Forked
from tests.jobs.commands import in_comments, understood
from tests.jobs.test_paper_recipes import head

FULL, LAPTOP = (ROOT / "jobs" / name for name in ("slowrun.yaml", "slowrun_laptop.yaml"))
PAGE = ROOT / "docs" / "scoreboards.md"
GPT2 = 50_257
"""Number of ids of GPT-2's tokenizer, which the contest uses."""
TOKENS = {FULL: 100_000_000, LAPTOP: 100_000}
TOKENS_OF_DOCUMENT = 670


def settings_of(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(ROOT)
    settings = understood(["--config", f"jobs/{recipe.name}"], monkeypatch, "jobs.train_language_model")
    assert isinstance(settings, Config)
    return settings


@pytest.mark.parametrize("recipe", [FULL, LAPTOP], ids=lambda path: path.stem)
def test_the_commands_of_a_recipe_are_understood(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    flooded, control = (
        understood(shlex.split(command.partition("-m ")[2])[1:], monkeypatch, "jobs.train_language_model")
        for command in in_comments(recipe)
    )
    assert (flooded.objective.objective, control.objective.objective) == ("flood", "cross-entropy")
    assert flooded.output != control.output
    assert (flooded.model, flooded.training) == (control.model, control.training)


@pytest.mark.parametrize("recipe", [FULL, LAPTOP], ids=lambda path: path.stem)
def test_a_recipe_reads_a_tenth_more_than_it_trains_on_for_validation(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings_of(recipe, monkeypatch)
    assert config.limit is not None and config.held_out is not None
    assert (config.limit - config.held_out) * TOKENS_OF_DOCUMENT == pytest.approx(TOKENS[recipe], rel=0.02)
    assert config.held_out * TOKENS_OF_DOCUMENT == pytest.approx(TOKENS[recipe] / 10, rel=0.02)


@pytest.mark.parametrize("recipe", [FULL, LAPTOP], ids=lambda path: path.stem)
def test_a_recipe_that_is_shrunk_trains(recipe: Path, tmp_path: Path) -> None:
    """The training runs in a process of its own, since a process can train in one precision only."""
    random = np.random.default_rng(0)
    tokens = [random.integers(97, size=size).tolist() for size in random.integers(20, 90, 24)]
    labels = [random.gamma(2, 1.5, len(ids)).tolist() for ids in tokens]
    write_annotated(tmp_path / "labels", tokens, labels, vocabulary=97, tokenizer_sha256=None)
    data = ("--labels", tmp_path / "labels", "--output", tmp_path / "out", "--limit", 24, "--held-out", 2)
    model = ("--model.context", 32, "--model.width", 16, "--model.layers", 1, "--model.heads", 2)
    training = ("--training.steps", 2, "--training.tokens-per-batch", 132, "--training.compile=false")
    process = Forked("jobs.train_language_model", "--config", recipe, *data, *model, *training)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "held-out" in printed and is_finished(tmp_path / "out")


def test_the_large_recipe_costs_what_it_and_its_page_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is built without memory for its weights, which would take 5 GB in float32."""
    config = settings_of(FULL, monkeypatch)
    with torch.device("meta"):
        model = new_language_model(stack_config(vocab_size=GPT2, **vars(config.model)), GPT2 - 1)
    context = config.model.context
    row = Batch(torch.zeros(1, context + 1, dtype=torch.int64), torch.tensor([context + 1]), None)
    epoch = Epoch(np.full(8, context), np.full(8, context + 1), row, sampled=1, count=lambda: 1)
    loss, settings = ObjectiveLoss(objective_function(config.objective, 1.0)), DryRunSettings(gpu="h100", gpus=1)
    cost = Cost(model, loss, epoch, config.training.resolved(lambda: epoch), settings)
    page = PAGE.read_text(encoding="utf-8")
    parameters, hours, tera = (
        float(found[1].replace(",", ""))
        for pattern in (r"^parameters +([\d,]+),", r"^time +([\d.]+) hours", r"^ +([\d,]+) TFLOP in all")
        if (found := re.search(pattern, page, re.MULTILINE))
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert cost.total_flop_per_token * cost.tokens / TERA == pytest.approx(tera, rel=0.01)
    assert cost.hours == pytest.approx(hours, rel=0.01)
    stated = re.search(r"([\d.]+) hours at 40% of 1 × 989 TFLOP/s", head(FULL))
    assert stated and float(stated[1]) == pytest.approx(hours, abs=0.05)
    assert cost.tokens == pytest.approx(12 * TOKENS[FULL], rel=0.01)


def test_the_recipes_regularise_alike() -> None:
    large, small = (yaml.safe_load(recipe.read_text(encoding="utf-8")) for recipe in (FULL, LAPTOP))
    for name in ("objective", "dropout"):
        assert large[name] == small[name]
    for name in ("optimizer", "learning_rate", "weight_decay"):
        assert large["training"][name] == small["training"][name]
