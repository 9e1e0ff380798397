"""Training by transformers' Trainer on windows of labels, as a command that several processes run together."""

from dataclasses import dataclass
from pathlib import Path

import cyclopts

from pipeline.data.annotated import find_annotations
from pipeline.training.torch_dataset import LabelledWindows
from tests.training.test_windows_in_trainers import CUT, new_model, trainer


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """The labels to train on, and the folder for the model."""

    labels: str
    output: Path
    steps: int


def trainer_job(config: Config) -> None:
    """Train a small model, and let the first process save it."""
    windows = LabelledWindows(find_annotations(config.labels), CUT, seed=2, epochs=None, rank=0, world_size=1)
    settings = {"ddp_backend": "gloo", "accelerator_config": {"dispatch_batches": False}}
    training = trainer(config.output, new_model(), windows, max_steps=config.steps, **settings)
    training.train()
    training.save_model(str(config.output))
