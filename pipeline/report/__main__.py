"""Show an annotated dataset: some of its documents and its statistics in a page, or one document in the terminal.

python -m pipeline.report annotated                                  # writes annotated-report/report.html
python -m pipeline.report annotated/data/second-order --against annotated/data/exact
python -m pipeline.report hf://datasets/USER/NAME --terminal --document 7
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import cyclopts
from rich.console import Console
from rich.filesize import decimal

from pipeline.cli import run
from pipeline.data.annotated import SUBSET_NAMED, find_annotations
from pipeline.data.files import HUB
from pipeline.data.hub import Repository
from pipeline.data.tokenizer import load_tokenizer
from pipeline.messages import say
from pipeline.progress import stage
from pipeline.report.notebook import DocumentView, labels_or_none
from pipeline.report.page import PAGE_FILE, write_report
from pipeline.report.sampling import LabelledSource, SampleSize
from pipeline.report.terminal import print_document
from pipeline.report.tokens import TokenTexts


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Config:
    """Options of the report: the dataset, and the parts of the dataset to show."""

    dataset: str
    """Folder that pipeline.annotate wrote, or hf://datasets/USER/NAME. To choose one of several subsets, give the
    subset's data folder, as in annotated/data/exact."""
    output: Path | None = field(default=None, kw_only=True)
    """Folder for report.html. The default is DATASET-report, next to a local dataset or in the working directory for a
    dataset on the Hub. Only an earlier report of the same dataset is replaced."""
    against: str | None = field(default=None, kw_only=True)
    """Another dataset of the same documents, to show its labels alongside."""
    by: str | None = field(default=None, kw_only=True)
    """Column of the source whose values form the page's groups of documents. The default is the first text column with
    few values."""
    size: Annotated[SampleSize, cyclopts.Parameter(name="*")] = field(default=SampleSize(), kw_only=True)
    terminal: bool = field(default=False, kw_only=True)
    """Show one document in the terminal instead of writing a page."""
    document: int = field(default=0, kw_only=True)
    """Row of the document to show with --terminal, counted from 0."""

    def __post_init__(self) -> None:
        if self.terminal and (ignored := [name for name in ("against", "by") if getattr(self, name) is not None]):
            names = " and ".join(f"`{name}`" for name in ignored)
            raise ValueError(f"`terminal` shows one document of one dataset; leave {names} out, or `terminal`")


def report(config: Config) -> None:
    """Write a page that shows an annotated dataset, or show one document in the terminal.

    Every token has the colour of its entropy.
    """
    if config.terminal:
        print_document(document_view(config.dataset, config.document, config.size.tokens_each(1)), Console())
        return
    folder = config.output or folder_for(config.dataset)
    exists = (folder / PAGE_FILE).exists()
    with stage("reading the dataset"):
        page = write_report(config.dataset, folder, against=config.against, by=config.by, size=config.size)
    replaced = " and replaces an earlier one of this dataset" if exists else ""
    say(f"{page} has {decimal(page.stat().st_size)}{replaced}; open it in a browser")


def folder_for(dataset: str) -> Path:
    """Return the default folder of a dataset's report.

    The report's folder is outside the dataset's folder, whose files are read as data and published.
    """
    subset = SUBSET_NAMED.search(dataset)
    root = dataset[: subset.start()] if subset else dataset
    name = f"-{subset[0].strip('/').rpartition('/')[2]}" if subset else ""
    if root.startswith(HUB):
        return Path(f"{Repository.at(root).name.rpartition('/')[2]}{name}-report")
    folder = Path(root)
    folder = folder if folder.name else folder.resolve()
    return folder.with_name(f"{folder.name}{name}-report")


def document_view(dataset: str, row: int, tokens: int) -> DocumentView:
    """Return a view of the first `tokens` tokens of a dataset's document in row `row`, with their labels.

    Raises:
        ValueError: if the dataset has no row `row`, or if find_annotations or LabelledSource.documents raises it.
        ConnectionError: if the Hub cannot be reached.
    """
    annotated = find_annotations(dataset)
    if not 0 <= row < len(annotated):
        raise ValueError(f"{dataset} has no document {row}; its {len(annotated):,} count from 0")
    (document,) = LabelledSource(annotated).documents(range(row, row + 1))
    texts = TokenTexts(None if annotated.tokenizer is None else load_tokenizer(annotated.tokenizer))
    entropies, *expected = (labels_or_none(labels_N[:tokens].tolist()) for labels_N in document.labels_SN)
    shown = texts.of(document.tokens_N[:tokens].tolist())
    left = len(document.tokens_N) - len(shown)
    return DocumentView(shown, entropies, expected[0] if expected else None, left)


if __name__ == "__main__":
    run(report, "pipeline.report", resumes=False)
