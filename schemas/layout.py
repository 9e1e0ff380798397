"""Where the files of an annotated dataset lie, in a folder and in a repository of the Hub alike.

    README.md                          the card, of all subsets
    data/SUBSET/train-K-of-N.parquet   shards; in folders of GROUP below it where there are more than that
    tokenizer/SUBSET/                  of the subset's `input_ids`
    _ledger/SUBSET/                    plan, receipts, units given up; `datasets` reads no such folder

A subset is what one run writes: the same documents labelled by another method, or other documents, lie beside it.
"""

import re
from dataclasses import dataclass
from pathlib import Path

DATA_FOLDER, TOKENIZER_FOLDER, LEDGER_FOLDER = "data", "tokenizer", "_ledger"
CARD_FILE = "README.md"
GROUP = 5000  # shards in a folder: the Hub wants fewer than 10,000 entries
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Subset:
    """The folders of a subset below `root`; below nothing, its paths in a repository."""

    name: str
    root: Path = Path()

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"a subset cannot be called {self.name!r}; use letters, digits, dots and dashes")

    @property
    def data(self) -> Path:
        return self.root / DATA_FOLDER / self.name

    @property
    def tokenizer(self) -> Path:
        return self.root / TOKENIZER_FOLDER / self.name

    @property
    def ledger(self) -> Path:
        return self.root / LEDGER_FOLDER / self.name

    @property
    def card(self) -> Path:
        return self.root / CARD_FILE

    @property
    def in_repository(self) -> "Subset":
        """The same without a root."""
        return Subset(self.name)

    def shards(self) -> set[str]:
        """Names of the shards that are there."""
        return {file.relative_to(self.data).as_posix() for file in self.data.rglob("*.parquet")}


def shard_name(index: int, shards: int) -> str:
    """Path of a shard below the subset's data folder; names sort in the order of the source's rows."""
    digits = max(5, len(str(shards)))
    group = f"{index // GROUP:03d}/" if shards > GROUP else ""
    return f"{group}train-{index:0{digits}d}-of-{shards:0{digits}d}.parquet"


def shards_in_all(name: str) -> int:
    """How many shards the subset has of which this is the name of one."""
    return int(name.removesuffix(".parquet").rpartition("-")[2])
