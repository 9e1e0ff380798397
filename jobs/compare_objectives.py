"""Matched experiment: small language models overfit few documents with every objective and its controls.

By default, the documents come from a source of known entropy, and the models that label them are first trained on other
documents of this source. For real text, --labels names several annotated datasets of the same documents. The models
that made these labels must not have been trained on the documents. The same command resumes an interrupted comparison.
Writes results.csv, results.md, curves.png and a folder for every trial.
"""

import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import get_args

import cyclopts
import numpy as np

from pipeline.cli import run
from pipeline.data.annotated import find_annotations
from pipeline.data.corpus import require_tokens
from pipeline.experiments.parallel import side_by_side
from pipeline.experiments.results import require_matplotlib
from pipeline.experiments.sources import SOURCES, ContestSettings
from pipeline.experiments.study import ObjectiveTrial, Study, default_objectives, summarise, trials, write_results
from pipeline.models.model_card import command_line
from pipeline.models.sizes import TransformerSizes
from pipeline.training.config import ObjectiveName, TrainingConfig
from pipeline.training.data import ModelTokens


@dataclass(frozen=True, kw_only=True)
class Sizes(TransformerSizes):
    """Sizes of the model in every trial."""

    context: int = 64
    width: int = 64
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True, kw_only=True)
class StudyTraining(TrainingConfig):
    """Training settings with defaults for small models. Each flag replaces only its own default."""

    steps: int = 1200
    """Number of optimizer steps."""
    tokens_per_batch: int = 2048
    """Largest number of tokens in a batch, including padding. A longer window is a batch by itself."""
    learning_rate: float = 5e-3
    """Peak learning rate of AdamW, after a linear warm-up and before a decay to zero."""
    evaluate_every: int = 60
    """Number of steps between evaluations. The model is also evaluated after the last step."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Documents, objectives to compare, output."""

    output: Path
    """Folder to write to."""
    source: str = "markov-1"
    """Source of known entropy, used unless --labels names a dataset."""
    labels: dict[str, str] = field(default_factory=dict)
    """Annotated datasets of the same documents, by label method: --labels.second-order DIR --labels.causal DIR."""
    objectives: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
    """Objectives to compare. By default, all objectives and controls are compared."""
    chosen: str = "second-order"
    """Name of the labels for the control with shuffled labels and for most objectives. Only flood and floor are tried
    with all labels."""
    documents: int = 256
    """Number of documents to train on, taken from the beginning."""
    held_out: int = 256
    """Number of documents to evaluate on, which follow the training documents."""
    out_of_distribution: tuple[str, ...] = ()
    """Files of other text to evaluate on as well."""
    scales: tuple[float, ...] = (1.0,)
    """Factors to try. Each factor multiplies the labels of flood and floor, and the level of flood-mean."""
    margins: tuple[float, ...] = (0.0,)
    """Margins to try, in nats. A margin is added to the labels of flood and floor, and to the level of flood-mean.
    Labels may be too low if they come from a model that was trained on far more text than these documents."""
    dropouts: tuple[float, ...] = (0.0, 0.1)
    """Dropout rates to try with every objective and its labels."""
    seeds: int = 3
    """Train each trial this many times, with different seeds, and report the mean."""
    processes: int | None = None
    """Number of trainings to run at a time; one per CPU core by default."""
    model: Sizes = field(default_factory=Sizes)
    training: StudyTraining = field(default_factory=StudyTraining)
    contest: ContestSettings = field(default_factory=ContestSettings)

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"--source {self.source}: choose from {', '.join(SOURCES)}")
        if min(self.documents, self.held_out, self.seeds, self.processes or 1) < 1:
            raise ValueError("--documents, --held-out, --seeds and --processes must be at least 1")
        if not all(0 <= share < 1 for share in self.dropouts):
            raise ValueError(f"--dropouts must be at least 0 and below 1, not {' '.join(map(str, self.dropouts))}")
        if self.labels and self.chosen not in self.labels:
            raise ValueError(
                f"--chosen {self.chosen} is not among the labels {', '.join(self.labels)}; name one of these"
            )


def compare_objectives(config: Config) -> None:
    """Compare the held-out losses of language models trained with every objective, label method and control."""
    from pipeline.training import resume

    require_matplotlib()
    settings = asdict(config)
    del settings["processes"]
    resume.begin(config.output, settings)
    study, truth = read_study(config) if config.labels else made_study(config)
    labelled = [each for each in default_objectives(list(study.labels), config.chosen) if each[0] in config.objectives]
    planned = trials(labelled, config.dropouts, config.seeds, config.scales, config.margins)
    work = partial(figures_of, study=study, config=config)
    figures = side_by_side(work, planned, config.processes, progress="trials")
    made_by = command_line("jobs.compare_objectives", sys.argv[1:])
    write_results(config.output, figures, list(summarise(figures)), truth, made_by)
    resume.finish(config.output)


def made_study(config: Config) -> tuple[Study, float]:
    """Return a study of a source whose probabilities are known, and the held-out loss of these probabilities.

    The study is saved in the output folder, and loaded from there if it exists.
    """
    from pipeline.experiments.overfitting import known_study, load_study, save_study

    file = config.output / "study.npz"
    if not file.is_file():
        save_study(file, *known_study(config.source, config.contest, config.documents, config.output / "labels"))
    return load_study(file)


def read_study(config: Config) -> tuple[Study, None]:
    """Return a study of the documents that all datasets annotate, and None, since the true loss is unknown."""
    found = {name: find_annotations(source) for name, source in config.labels.items()}
    last = config.documents + config.held_out
    corpora = {name: dataset.corpus(0, last) for name, dataset in found.items()}
    first, corpus = found[config.chosen], corpora[config.chosen]
    if len(corpus) < last:
        raise ValueError(
            f"{first.source} has {len(corpus)} documents; --documents and --held-out ask for {last}: ask for fewer"
        )
    for name, other in corpora.items():
        if not np.array_equal(other.tokens_N, corpus.tokens_N):
            raise ValueError(
                f"{found[name].source} has other documents, or tokens, than {first.source}; label the same ones"
            )
    held_out = {"held_out": require_tokens(corpus.documents(config.documents, last))}
    tokens = ModelTokens.of(first, None)
    if config.out_of_distribution:
        held_out["elsewhere"] = tokens.read(config.out_of_distribution)
    labels = {name: other.documents(0, config.documents).labels_N for name, other in corpora.items()}
    given = {name: nats_N for name, nats_N in labels.items() if nats_N is not None}
    return Study(corpus.documents(0, config.documents), given, held_out, tokens.vocabulary, tokens.separator), None


def figures_of(trial: ObjectiveTrial, study: Study, config: Config) -> list[dict[str, float]]:
    """Run one trial and return its evaluations."""
    from pipeline.experiments.overfitting import run_trial

    return run_trial(trial, study, config.model, config.training, config.output / "trials")


if __name__ == "__main__":
    run(compare_objectives, "jobs.compare_objectives")
