"""How much of a dataset a report looks at."""

from dataclasses import dataclass

MOST_OF_ALL, MOST_OF_ONE = 300_000, 20_000  # tokens on a page: about 3 MB, and what a browser lays out in a moment


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of a dataset is looked at."""

    documents: int = 200
    """Documents to show, of those in the sample."""
    sample: int = 2000
    """Documents for the statistics, from all over the dataset."""
    tokens: int | None = None
    """Tokens to show of a document, its first ones; by default 1,500 where 200 documents are shown, 20,000 of one."""
    seed: int = 0
    """Of the sample."""

    def __post_init__(self) -> None:
        for name in ("documents", "sample", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} to show must be at least 1, not {value}")
        if self.seed < 0:
            raise ValueError(f"the seed must be at least 0, not {self.seed}")

    def tokens_each(self, documents: int) -> int:
        """Tokens to show of each of so many documents."""
        return self.tokens or min(MOST_OF_ONE, max(1, MOST_OF_ALL // max(1, documents)))
