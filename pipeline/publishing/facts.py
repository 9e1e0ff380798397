"""What is known of a subset that is published or written to a folder."""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.data.hub import Repository
from pipeline.publishing.source import SourceFacts
from schemas.annotations import Provenance
from schemas.layout import Subset
from schemas.receipts import Counts

THIS_FOLDER = "THIS_FOLDER"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a subset. Without counts it is still being written."""

    subset: Subset
    place: str
    """What `load_dataset` is given: THIS_FOLDER, or USER/NAME on the Hub."""
    revision: str = "main"
    """The branch on the Hub."""
    provenance: Provenance
    schema: pa.Schema
    source: SourceFacts
    counts: Counts | None = None
    shards_sha256: str = ""
    size: int = 0
    """Bytes of all shards."""

    @property
    def labels(self) -> str:
        """The subset as commands of this project take it."""
        place = self.place if self.place == THIS_FOLDER else Repository(self.place, self.revision).url
        return f"{place}/{self.subset.in_repository.data.as_posix()}"
