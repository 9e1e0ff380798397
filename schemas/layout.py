"""Layout of an annotated dataset, the same in a folder and in a repository of the Hub.

    README.md                          card of all subsets
    data/SUBSET/train-K-of-N.parquet   shards; more than GROUP shards are split into folders of GROUP each
    tokenizer/SUBSET/                  tokenizer of the subset's `input_ids`
    _ledger/SUBSET/                    plan, receipts, notes on quarantined units; not read by `datasets`

A subset is the output of one run. A run with another method or with other documents makes another subset.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA_FOLDER, TOKENIZER_FOLDER, LEDGER_FOLDER = "data", "tokenizer", "_ledger"
CARD_FILE = "README.md"
GROUP = 5000  # shards per folder: the Hub wants fewer than 10,000 entries
PARTS = (DATA_FOLDER, TOKENIZER_FOLDER, LEDGER_FOLDER, CARD_FILE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SHARD_NAME = re.compile(r"(?:[0-9]{1,9}/)?train-[0-9]{1,12}-of-([0-9]{1,12})\.parquet")


@dataclass(frozen=True)
class Subset:
    """Paths of a subset's folders below `root`. By default, they are relative paths, as in a repository."""

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
        """The same subset with relative paths, as in a repository."""
        return Subset(self.name)

    def shards(self) -> set[str]:
        """Return the names of the existing shards, in the form that `shard_name` returns."""
        return {file.relative_to(self.data).as_posix() for file in self.data.rglob("*.parquet")}


def shard_name(index: int, shards: int) -> str:
    """Return a shard's path below the subset's data folder. Sorted paths are in the order of the source's rows."""
    digits = max(5, len(str(shards)))
    group = f"{index // GROUP:03d}/" if shards > GROUP else ""
    return f"{group}train-{index:0{digits}d}-of-{shards:0{digits}d}.parquet"


def shards_in_all(name: str) -> int:
    """Return the total number of shards, parsed from one shard's name.

    Raises:
        ValueError: if `name` is not the name of a shard.
    """
    match = SHARD_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!a:.60} is not the name of a shard")
    return int(match[1])


def require_contained(root: Path) -> None:
    """Raise if a link leads out of a dataset's folder.

    The dataset's author must not be able to choose which other files are read, sent or written. The folder itself may
    be a link. A link inside the folder may lead to another place in the folder. If the folder is a snapshot in the
    Hub's cache, a link may also lead to the cached files.

    Raises:
        ValueError: if a link leads out of the folder, or an entry is neither a file nor a folder.
    """
    home = root.resolve()
    own = [home, *([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])]
    for entry in _entries(home):
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if not any(map(target.is_relative_to, own)):
                raise ValueError(f"{entry.path} is a link that leads out of {root}; delete it, or put a file there")
        elif not entry.is_file() and not entry.is_dir():
            raise ValueError(f"{entry.path} is neither a file nor a folder; delete it")


def _entries(root: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every file, folder and link in the PARTS of a dataset, without following links."""
    folders = [str(root)] if root.is_dir() else []
    while folders:
        with os.scandir(folder := folders.pop()) as entries:
            for entry in entries:
                if folder == str(root) and entry.name not in PARTS:
                    continue
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
