"""Redraw the five kinds of figure of the paper (arXiv 2511.10618) on two CPU cores, and say which claims hold.

The figures compare: (1) autoencoders with repeated and unrolled embeddings; (2) compressive autoencoders and causal
language models; (3) places where the embedding enters the decoder; (4) the normalized loss of estimators and of causal
models, against the number of tokens; (5) the cost of rounding one layer at a time, for models trained with and without
noise. Each figure is written as a CSV file, a plot and a table. The same command resumes an interrupted run.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.data.files import pinned
from pipeline.data.inputs import Inputs
from pipeline.experiments.figures import FIGURES, Figure, FigureTrial, Row, write_figure
from pipeline.experiments.parallel import side_by_side
from pipeline.experiments.results import require_matplotlib
from pipeline.messages import say
from pipeline.training.config import TrainingConfig

if TYPE_CHECKING:  # this imports torch, which is slow and not needed for --help
    from pipeline.experiments.figure_trial import Text

EVALUATIONS = 10


@dataclass(frozen=True, kw_only=True)
class FigureTraining(TrainingConfig):
    """Training settings with defaults for small models."""

    tokens_per_batch: int = 2048
    """Largest number of tokens in a batch, including padding. A window longer than this is a batch by itself."""
    learning_rate: float = 3e-3
    """Peak learning rate of AdamW, after a linear warm-up and before a decay to zero."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config(Inputs):
    """Settings of the job: figures, text and output."""

    output: Path
    """Folder to write the figures and the trained models to."""
    figure: tuple[int, ...] = tuple(FIGURES)
    """Numbers of the figures to draw, from 1 to 5; all by default."""
    input: tuple[str, ...] = ()
    """Documents, as in --input of pipeline.annotate. By default, the file named by the environment variable FINEWEB is
    read, or the built-in text if FINEWEB is not set."""
    documents: int = 2000
    """Read at most this many documents, including those held out."""
    held_out: int = 20
    """Number of documents that are used only for evaluation. They are the last of the documents that are read."""
    time: float = 1.0
    """Multiply each figure's number of training steps by this factor; choose a factor below 1 for a quick look."""
    processes: int | None = None
    """Number of models to train at a time; one per CPU core by default."""
    training: FigureTraining = field(default_factory=FigureTraining)

    def __post_init__(self) -> None:
        if not self.figure or not set(self.figure) <= set(FIGURES):
            raise ValueError(f"--figure {' '.join(map(str, self.figure))}: choose from {', '.join(map(str, FIGURES))}")
        require_at_least_one(self, "processes", "longest_document")
        if not self.time > 0:
            raise ValueError(f"--time must be above 0, not {self.time}")


def reproduce_figures(config: Config) -> None:
    """Redraw the five kinds of figure of the paper (arXiv 2511.10618) at laptop scale."""
    from pipeline.experiments.figure_trial import prepare
    from pipeline.training import resume

    require_matplotlib()
    named = config.input or tuple(filter(None, [os.environ.get("FINEWEB")]))
    inputs = pinned(named) if named else ()
    files = config.find_any(inputs)
    files.tell()
    decisive = {**asdict(config), "input": inputs, **files.decisive, "training": config.training.fingerprint}
    del decisive["output"], decisive["processes"]
    resume.begin(config.output, decisive)
    for number in config.figure:
        figure = FIGURES[number]
        text = prepare(
            files.files,
            vocabulary=figure.vocabulary,
            documents=config.documents,
            held_out=config.held_out,
            longest=config.longest,
        )
        work = partial(rows_of, figure=figure, text=text, config=config, folder=config.output / f"trials-{number}")
        trials = side_by_side(work, figure.trials, config.processes, progress=f"figure {number}")
        rows = {trial.name: evaluated for trial, evaluated in trials.items()}
        say(*write_figure(config.output, number, figure, rows).split("\n"))
    resume.finish(config.output)


def rows_of(trial: FigureTrial, figure: Figure, text: "Text", config: Config, folder: Path) -> Sequence[Row]:
    """Train the model of a trial, and return the rows of the figure that this model contributes.

    Each row is for one evaluation. In a figure about rounding, each row is for the rounded weights or activations of
    one layer.
    """
    from pipeline.experiments.figure_trial import rows_by_layer, trained_model
    from pipeline.models.window_encoder import WindowEncoder
    from pipeline.training.batches import Windowing
    from pipeline.training.metrics import evaluations

    steps = max(1, round(figure.steps * config.time))
    training = replace(config.training, steps=steps, evaluate_every=max(1, steps // EVALUATIONS))
    model = trained_model(trial, text, figure.sizes, training, folder)
    if not figure.by_layer:
        return evaluations(folder / trial.name)
    assert isinstance(model, WindowEncoder)
    return list(rows_by_layer(model, text, Windowing(figure.sizes.context, training.tokens_per_batch)))


if __name__ == "__main__":
    run(reproduce_figures, "jobs.reproduce_figures")
