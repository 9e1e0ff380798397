"""Audit of a causal language model: how much of an annotated dataset it has memorised.

A token counts as memorised if the model's loss is below the token's label. The memorised nats of a token with loss l
and label e are max(e - l, 0). The nats that the model has not learned are max(l - e, 0). Each of these two quantities
is summed over the labelled tokens of a document, of all documents with the same value in a column, and of all
documents. Labels are noisy, so some nats seem memorised even in text that the model has never read. To subtract these
nats, name a dataset of unseen text with --reference.

The model reads every document by itself, after the start token. A document longer than the context is read in windows
that overlap by half. The command prints tables. With --output, it writes results.md, and documents.csv with a row for
each document.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.data.annotated import find_annotations
from pipeline.experiments.memorisation import Rate, markdown, rows_for_file
from pipeline.experiments.results import write_csv, write_report
from pipeline.labels.calibration import require_domains
from pipeline.models.checkpoint import Checkpoint, require_new_folder
from pipeline.models.model_card import command_line
from pipeline.progress import stage


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the audit: model, datasets, groups and output."""

    model: str
    """Causal language model: a folder, or a name on the Hub. If its tokenizer is not that of the
    dataset, the labels are transferred to the tokens of the model's tokenizer, as in training. Documents whose labels
    cannot be transferred are left out and counted."""
    labels: str
    """Annotated dataset to audit: a folder or hf://datasets/USER/NAME."""
    reference: str | None = None
    """Annotated dataset of text that the model has not seen, labelled in the same way. Its memorised nats per token are
    the baseline, which is subtracted in the columns `above unseen text`."""
    by: str | None = None
    """Column of --labels, for example a language or a site. Totals are printed for each of its values."""
    groups: int = 20
    """Maximum number of values of --by to print. Values with the most tokens come first."""
    show: int = 10
    """Number of documents to print. Documents with the most memorised nats above the baseline come first. Copies of a
    document are printed once."""
    limit: int | None = None
    """Read at most this many documents of each dataset."""
    window: int | None = None
    """Largest number of tokens that the model reads at a time. By default, the context of the model."""
    output: Path | None = None
    """Folder to write the results to. By default, they are only printed."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "groups", "show", "limit", "window")


def audit(config: Config) -> None:
    """Measure how much of an annotated dataset a causal language model has memorised.

    The model has memorised a token if its loss for the token is below the token's label.
    """
    from pipeline.experiments.document_reader import DocumentReader, audited  # imports torch, which takes seconds

    if config.output is not None:
        require_new_folder(config.output)
    with stage("finding the datasets"):
        dataset = find_annotations(config.labels)
        reference = None if config.reference is None else find_annotations(config.reference)
    if config.by is not None:
        require_domains(dataset.schema, config.by)
    with stage("loading the model"):
        reader = DocumentReader.load(Checkpoint.find(config.model), config.window)
    unseen = None if reference is None else audited(reference, reader, None, config.limit)
    found = audited(dataset, reader, config.by, config.limit)
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        baseline = None if unseen is None else Rate.of(unseen.documents)
        write_csv(config.output / "documents.csv", [*rows_for_file(found, baseline)])
    report = markdown(found, unseen, dataset, by=config.by, groups=config.groups, show=config.show)
    write_report(config.output, report, command_line("jobs.audit", sys.argv[1:]))


if __name__ == "__main__":
    run(audit, "jobs.audit", resumes=False)
