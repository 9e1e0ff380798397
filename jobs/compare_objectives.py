"""Comparison of training methods. With each method, a small language model overfits the same few documents.

The methods are objectives that use labels, controls of these objectives, regularisers, and distillation. Each method is
tried with the same number of settings, which are judged by the loss on development documents. The best settings of each
method are then trained again with new seeds. These models are evaluated on test documents, which are read only once.
The 95% interval of each difference comes from a bootstrap over documents and seeds.

By default, the documents are drawn from a synthetic source of known entropy. They are labelled by models that were
trained on other documents from this source. For real text, --labels names annotated datasets of the same documents.
With --cross-fitted, the labels come from models that were trained only on training documents. The same command resumes
an interrupted comparison.

The command writes results.md, results.csv, trials.csv, curves.csv, curves.png, opened.json and a folder for every
trained model. The file opened.json records the settings that were chosen before the test documents were read.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.experiments.results import require_matplotlib
from pipeline.experiments.sources import SOURCES, ContestSettings
from pipeline.messages import say
from pipeline.models.model_card import command_line
from pipeline.models.sizes import TransformerSizes
from pipeline.training.config import TrainingConfig

if TYPE_CHECKING:  # these import torch, which is slow and not needed for --help
    from pipeline.comparison.methods import Method
    from pipeline.comparison.student import Student
    from pipeline.comparison.study import Study


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

    steps: int = 300
    """Number of optimizer steps."""
    tokens_per_batch: int = 1024
    """Largest number of tokens in a batch, including padding. A window longer than this is a batch by itself."""
    evaluate_every: int = 10
    """Number of steps between evaluations. The model is also evaluated after the last step."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the comparison: documents, methods, trials and output."""

    output: Path
    """Folder to write the results and the trained models to."""
    source: str = "markov-1"
    """Name of a synthetic source of known entropy to draw documents from. Not used if --labels names datasets."""
    labels: dict[str, str] = field(default_factory=dict)
    """Annotated datasets of the same documents, by the name of their labels: --labels.smollm2 DIR."""
    cross_fitted: bool = False
    """Take labels from models that were trained only on training documents. No model labels a document on which it was
    trained. The labels of --labels or of the source are then not used."""
    tokenizer: Path | None = None
    """With --labels, tokenizer folder of the models. The nats of each labelled token are divided among the new tokens
    that cover the same bytes. By default, the models have the tokenizer of the datasets."""
    teacher: Path | None = None
    """With --labels, a causal language model that was trained on other text. It must read the same tokens as the
    compared models. Its labels are named `teacher`. Methods that distil a teacher's predictions or start from its
    weights need --teacher or --cross-fitted."""
    methods: tuple[str, ...] = ()
    """Names of the methods to compare, as in results.md. The baseline, cross-entropy, is always one of them. By
    default, all methods are compared."""
    chosen: str | None = None
    """Name of the labels for methods that are tried with only one kind of labels. By default, the labels named `causal`
    are used, or the first labels if no labels have this name. Flood and floor are tried with all kinds of labels."""
    documents: int = 128
    """Number of documents to train on. With --labels, they are the first documents that --skip does not leave out."""
    skip: int = 0
    """With --labels, number of documents at the beginning of the datasets to leave out."""
    development: int = 32
    """Number of development documents. With --labels, they follow the training documents."""
    test: int = 128
    """With --labels, number of test documents, which follow the development documents. For a source, the number is
    --contest.fresh-documents."""
    out_of_distribution: tuple[str, ...] = ()
    """With --labels, files of other text to evaluate on as well."""
    trials: int = 4
    """Number of settings to try for each method on the development documents."""
    seeds: int = 5
    """Number of seeds with which the chosen settings of each method are trained for the test."""
    learning_rates: tuple[float, ...] = (5e-3,)
    """Peak learning rates to try."""
    weight_decays: tuple[float, ...] = (0.1, 0.8, 2.4)
    """Weight decays to try."""
    dropouts: tuple[float, ...] = (0.0, 0.1)
    """Dropout rates to try."""
    folds: int = 4
    """Number of folds for --cross-fitted and for the surprisals of n-gram models."""
    teachers_per_fold: int = 1
    """With --cross-fitted, number of models that label each fold together. The labels are those of their mixture."""
    processes: int | None = None
    """Number of models to train at a time; one per CPU core by default."""
    dry_run: bool = False
    """Print the methods, the number of trainings and their FLOP, and stop. No model is trained, not even to make
    labels."""
    model: Sizes = field(default_factory=Sizes)
    training: StudyTraining = field(default_factory=StudyTraining)
    contest: ContestSettings = field(default_factory=ContestSettings)

    def __post_init__(self) -> None:
        counts = ("documents", "development", "test", "trials", "seeds", "teachers_per_fold", "processes")
        require_at_least_one(self, *counts)
        if self.source not in SOURCES:
            raise ValueError(f"`source` {self.source}: choose from {', '.join(SOURCES)}")
        if not all(0 <= share < 1 for share in self.dropouts):
            raise ValueError(f"`dropouts` must be at least 0 and below 1, not {' '.join(map(str, self.dropouts))}")
        if self.folds < 2:
            raise ValueError(f"`folds` must be at least 2, not {self.folds}")
        if (self.tokenizer or self.teacher or self.out_of_distribution or self.skip) and not self.labels:
            raise ValueError(
                "`tokenizer`, `teacher`, `out_of_distribution` and `skip` need `labels` of text; name datasets"
            )
        if self.skip < 0:
            raise ValueError(f"`skip` must be 0 or more, not {self.skip}")
        if self.teachers_per_fold > 1 and not self.cross_fitted:
            raise ValueError("`teachers_per_fold` needs `cross_fitted`; give both or neither")
        if self.teacher and self.cross_fitted:
            raise ValueError("`teacher` has read other text, which `cross_fitted` excludes; leave one of them out")

    @property
    def common(self) -> dict[str, tuple[float, ...]]:
        """Settings that every method tries, each with the values to try."""
        return {"learning_rate": self.learning_rates, "weight_decay": self.weight_decays, "dropout": self.dropouts}


def compare_objectives(config: Config) -> None:
    """Compare the test losses of language models trained by every method, with settings chosen on other documents."""
    from pipeline.training import resume

    study = documents_of(config)
    methods = methods_of(config, study)
    if config.dry_run:
        say(*plan(config, study, methods))
        return
    require_matplotlib()
    settings = asdict(config)
    del settings["processes"]
    resume.begin(config.output, settings)
    compare(student_of(config, labelled(config, study)), methods, config)
    resume.finish(config.output)


def compare(student: Student, methods: Sequence[Method], config: Config) -> None:
    """Try every method, evaluate its best settings on the test documents, and write the results."""
    from pipeline.comparison.methods import trials_of
    from pipeline.comparison.protocol import choose, open_test, search
    from pipeline.comparison.standings import standings, write_results

    trials = [trial for method in methods for trial in trials_of(method, config.common, config.trials)]
    tried = search(student, trials, config.processes)
    tested = open_test(student, choose(tried), config.seeds, config.processes, config.output)
    found = standings(student, tried, tested)
    made_by = command_line("jobs.compare_objectives", sys.argv[1:])
    write_results(config.output, student.study, found, tried, tested, made_by)


def student_of(config: Config, study: Study) -> Student:
    """Return the `Student` that trains the study's language models below the output folder."""
    from pipeline.comparison.student import Student

    return Student(study, config.model, config.training, config.output / "trials")


def documents_of(config: Config) -> Study:
    """Return the study with the labels that need no training: labels of datasets, or true labels of a source."""
    from pipeline.comparison.known_study import drawn_study
    from pipeline.comparison.text_study import text_study

    if config.labels:
        sizes = (config.documents, config.development, config.test)
        study = text_study(config.labels, config.tokenizer, sizes, config.out_of_distribution, config.skip)
    else:
        study = drawn_study(config.source, config.contest, config.documents, config.development)
    return replace(study, folds=config.folds)


def labelled(config: Config, study: Study) -> Study:
    """Return the study with all its labels. If the output folder has the finished study, load it from there."""
    from pipeline.comparison.known_study import with_models
    from pipeline.comparison.study import STUDY_FILE, Study
    from pipeline.comparison.text_study import with_teacher
    from pipeline.training.batches import Windowing

    folder = config.output / "labels"
    if (folder / STUDY_FILE).is_file():
        return Study.load(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if config.cross_fitted:
        study = cross_fitted_study(config, study, folder)
    elif not config.labels:
        study = with_models(study, config.source, config.contest, folder)
    elif config.teacher is not None:
        windowing = Windowing(config.model.context, config.training.tokens_per_batch)
        study = with_teacher(study, config.teacher, windowing, folder)
    study.save(folder)
    return Study.load(folder)


def cross_fitted_study(config: Config, study: Study, folder: Path) -> Study:
    """Return the study with cross-fitted labels instead of its own.

    The teachers are trained with the settings for which cross-entropy, the baseline, has the lowest development loss.
    """
    from pipeline.comparison.cross_fitting import cross_fitted
    from pipeline.comparison.methods import BASELINE, Method, trials_of
    from pipeline.comparison.protocol import choose, search

    student = student_of(config, study)
    tried = search(student, trials_of(Method(name=BASELINE), config.common, config.trials), config.processes)
    (best,) = choose(tried).values()
    return cross_fitted(student, best, folder, config.teachers_per_fold, config.processes)


def methods_of(config: Config, study: Study) -> list[Method]:
    """Return the methods to compare. The labels of the study need not have been made yet.

    Raises:
        ValueError: if a name of a method or of labels is unknown.
    """
    from pipeline.comparison.methods import BASELINE, methods_for
    from pipeline.comparison.stored_predictions import ids_stored

    labels, taught = label_names(config, study), config.cross_fitted or not config.labels or config.teacher is not None
    chosen = config.chosen or ("causal" if "causal" in labels else labels[0])
    if chosen not in labels:
        raise ValueError(f"`chosen` {chosen} is not among the labels {', '.join(labels)}; name one of these")
    distils = ids_stored(len(study.seen.tokens_N), study.vocabulary) if taught else ()
    known = methods_for(labels, chosen, distils=distils, from_teacher=taught)
    unknown = [name for name in config.methods if name not in {method.name for method in known}]
    if unknown:
        names = "; ".join(method.name for method in known)
        raise ValueError(f"`methods` {unknown[0]} is not known here; choose from {names}")
    return [method for method in known if not config.methods or method.name in (BASELINE, *config.methods)]


def label_names(config: Config, study: Study) -> Sequence[str]:
    """Return the names of the labels that the study will have."""
    from pipeline.comparison import cross_fitting, known_study
    from pipeline.comparison.study import TEACHER

    if config.cross_fitted:
        return cross_fitting.label_names(config.teachers_per_fold)
    if not config.labels:
        return known_study.LABELS
    return [*study.labels, *([TEACHER, f"{TEACHER} expected"] if config.teacher else [])]


def plan(config: Config, study: Study, methods: Sequence[Method]) -> list[str]:
    """Return lines about the trainings that the comparison would run, and their cost."""
    trainings = len(methods) * (config.trials + config.seeds)
    tokens = config.training.steps * config.training.tokens_per_batch
    flop = 6.0 * student_of(config, study).new_model(0).num_parameters() * tokens
    return [
        f"methods        {len(methods)}: {'; '.join(method.name for method in methods)}",
        f"trainings      {trainings:,}: {config.trials} trials and {config.seeds} seeds of each method",
        f"tokens         at most {tokens:,} in each training",
        f"compute        {trainings * flop / 1e12:,.1f} TFLOP in all, {flop / 1e12:,.3f} in each, without evaluations",
    ]


if __name__ == "__main__":
    run(compare_objectives, "jobs.compare_objectives")
