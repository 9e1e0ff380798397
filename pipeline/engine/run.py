"""What the units of a run share, as a worker on any node gets it; neither torch nor Ray here."""

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from pipeline.data.documents import Column
from pipeline.data.hub import Repository
from pipeline.models.checkpoint import find_checkpoint
from schemas.annotations import Provenance
from schemas.layout import Subset


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint from the Hub."""

    name: str
    """With the commit: USER/NAME@COMMIT."""
    folder: Path
    """Its copy on the node that prepared the run."""

    def here(self) -> Path:
        """Its copy on this node, fetched if there is none."""
        return find_checkpoint(self.name).resolve()


@dataclass(frozen=True)
class Run:
    """All that a unit needs beside its rows."""

    subset: Subset
    """Where the dataset goes."""
    checkpoints: tuple[Path, ...]
    """One, or one a fold."""
    tokenizer: Path | None
    """Of `input_ids`."""
    estimator_tokenizer: Path | None
    """Of the checkpoints, where it is another: labels are then moved to the tokens of `input_ids`."""
    provenance: Provenance
    source_schema: pa.Schema
    """Columns that are read."""
    schema: pa.Schema
    """Columns that are written."""
    units: int
    repository: Repository | None = None
    """Where the dataset is published, if anywhere."""
    snapshot: Snapshot | None = None
    """Where the checkpoints are fetched from, if from the Hub."""

    @property
    def column(self) -> Column:
        """What documents are read from."""
        settings = self.provenance
        return Column(settings.text_column, tokenized=self.tokenizer is None, longest=settings.longest_document)

    def on_this_node(self) -> "Run":
        """The same with paths that exist here, though nodes share no cache of the Hub.

        Raises:
            ValueError: if the checkpoint has to be fetched and cannot be.
        """
        if self.snapshot is None:
            return self
        there, here = self.snapshot.folder, self.snapshot.here()

        def moved(folder: Path) -> Path:
            return here / folder.relative_to(there) if folder.is_relative_to(there) else folder

        return replace(
            self,
            checkpoints=tuple(map(moved, self.checkpoints)),
            tokenizer=self.tokenizer and moved(self.tokenizer),
            estimator_tokenizer=self.estimator_tokenizer and moved(self.estimator_tokenizer),
        )
