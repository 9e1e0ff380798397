"""Matched experiment: small language models overfit the same few documents, each with another objective or control.

By default, the documents come from a synthetic source of known entropy. The models that label these documents are first
trained on other documents from the same source. For real text, --labels names several annotated datasets of the same
documents. The models that made these labels must not have been trained on the documents. The same command resumes an
interrupted comparison. Writes results.csv, curves.csv, results.md, curves.png and a folder for every trained model.
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
    """Sizes of the language models, which are the same in all trials."""

    context: int = 64
    width: int = 64
    layers: int = 2
    heads: int = 4


@dataclass(frozen=True, kw_only=True)
class StudyTraining(TrainingConfig):
    """Training settings with defaults for small models. A flag replaces only the default of its own setting."""

    steps: int = 1200
    """Number of optimizer steps."""
    tokens_per_batch: int = 2048
    """Largest number of tokens in a batch, including padding. A window longer than this is a batch by itself."""
    learning_rate: float = 5e-3
    """Peak learning rate of AdamW, after a linear warm-up and before a decay to zero."""
    evaluate_every: int = 60
    """Number of steps between evaluations. The model is also evaluated after the last step."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the comparison: documents, objectives and output."""

    output: Path
    """Folder to write the results and the trained models to."""
    source: str = "markov-1"
    """Name of a synthetic source of known entropy to draw documents from. Not used if --labels names datasets."""
    labels: dict[str, str] = field(default_factory=dict)
    """Annotated datasets of the same documents, one per label method: --labels.second-order DIR --labels.causal DIR."""
    objectives: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
    """Objectives to compare. By default, all objectives and controls are compared."""
    chosen: str = "second-order"
    """Label method whose labels are used by most objectives and by the control with shuffled labels. Only flood and
    floor are tried with the labels of all methods."""
    documents: int = 256
    """Number of documents to train on. With --labels, they are the first documents of the datasets."""
    held_out: int = 256
    """With --labels, number of documents to evaluate on, which follow the training documents in the datasets."""
    out_of_distribution: tuple[str, ...] = ()
    """With --labels, files of other text to evaluate on, in addition to the held-out documents."""
    scales: tuple[float, ...] = (1.0,)
    """Factors to try. Each factor multiplies the labels of flood and floor, and the level of flood-mean."""
    margins: tuple[float, ...] = (0.0,)
    """Margins to try, in nats. A margin is added to the labels of flood and floor, and to the level of flood-mean.
    Labels may be too low if they come from a model that was trained on far more text than these documents."""
    dropouts: tuple[float, ...] = (0.0, 0.1)
    """Dropout rates. Every combination of objective and labels is tried with each rate."""
    seeds: int = 3
    """Number of seeds. Every combination is trained once per seed, and the mean over the seeds is reported."""
    processes: int | None = None
    """Number of models to train at a time; one per CPU core by default."""
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
    """Return a study of documents from the synthetic source, and the true distribution's held-out loss.

    The study is loaded from the output folder if it was saved there before. Otherwise, it is made and saved.
    """
    from pipeline.experiments.overfitting import known_study, load_study, save_study

    file = config.output / "study.npz"
    if not file.is_file():
        save_study(file, *known_study(config.source, config.contest, config.documents, config.output / "labels"))
    return load_study(file)


def read_study(config: Config) -> tuple[Study, None]:
    """Return a study of the documents that all datasets annotate, and None, as the true distribution is unknown."""
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
    """Train the model of one trial, and return the metrics of each evaluation."""
    from pipeline.experiments.overfitting import run_trial

    return run_trial(trial, study, config.model, config.training, config.output / "trials")


if __name__ == "__main__":
    run(compare_objectives, "jobs.compare_objectives")
