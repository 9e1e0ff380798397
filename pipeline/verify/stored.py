"""Subsets of a dataset in a folder or on the Hub, opened for checking.

No file outside a dataset's folder is read: a link is a fault. For a dataset on the Hub, the ledger and the tokenizers
are fetched at the start, and each shard is fetched when it is read.
"""

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO, NamedTuple, cast

from huggingface_hub import parse_hf_uri, snapshot_download

from pipeline.data.atomic import is_unfinished
from pipeline.data.files import HUB, File, find_files, local_file, pinned
from pipeline.data.hub import Repository
from pipeline.data.remote import reaching
from pipeline.data.streams import READ_BYTES, open_stored
from schemas.layout import CARD_FILE, DATA_FOLDER, LEDGER_FOLDER, TOKENIZER_FOLDER, Subset
from schemas.receipts import PUBLISHED_FILE

LINK = "is a link or not a file; replace it with a copy of its target"


class Fault(NamedTuple):
    """A fault in a file of a dataset."""

    file: str
    """Path of the file in the dataset."""
    what: str
    shard: str = ""
    """Name of the shard that must be made again; empty if no shard needs this."""

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


class Content(NamedTuple):
    """A shard's file on this disk, with its digest."""

    file: File
    sha256: str


@dataclass(frozen=True)
class Stored:
    """A subset of a dataset in a folder, or at `hf://datasets/USER/NAME@COMMIT`."""

    place: str
    subset: Subset
    files: Mapping[str, str]
    """Mapping from the path of each file in the subset's data folder to the file's fault, or to an empty string
    for a file without fault."""

    @property
    def remote(self) -> bool:
        return self.place.startswith(HUB)

    def named(self, shard: str) -> str:
        """Return a shard's path in the dataset."""
        return (self.subset.in_repository.data / shard).as_posix()

    def is_link(self, file: Path) -> bool:
        """True if a path in a local folder exists, but is reached through a link or is not a regular file."""
        is_there = file.exists() or file.is_symlink()
        return not self.remote and is_there and leads_elsewhere(self.subset.root, file)

    @contextmanager
    def content(self, shard: str) -> Iterator[Content]:
        """Yield a shard's file and its digest. A shard on the Hub is first copied to a temporary folder.

        Raises:
            ValueError, OSError: as `open_stored`.
        """
        (file,) = find_files([f"{self.place}/{self.named(shard)}"])
        with TemporaryDirectory() as scratch:
            if self.remote:
                copy = Path(scratch, Path(shard).name)
                with open_stored(file) as stored, copy.open("wb") as target:
                    shutil.copyfileobj(cast(BinaryIO, stored), target, READ_BYTES)
                file = local_file(copy)
            with Path(file.url).open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            yield Content(file, digest)


def stored_subsets(place: str, only: str | None) -> list[Stored]:
    """Return the subsets of a dataset, or only the subset called `only`.

    Raises:
        ValueError: if there is no such dataset or subset, or if the folder only stages a dataset published on the Hub.
        ConnectionError: if the Hub cannot be reached.
    """
    subsets = _on_hub(place) if place.startswith(HUB) else _in_folder(place)
    requested = [stored for stored in subsets if only in (None, stored.subset.name)]
    if not requested:
        names = ", ".join(each.subset.name for each in subsets)
        has = f"it has {names}" if names else "make one with pipeline.annotate"
        raise ValueError(f"no annotated dataset{f' {only}' if only else ''} in {place}; {has}")
    for stored in requested:
        if (stored.subset.ledger / PUBLISHED_FILE).exists():
            raise ValueError(
                f"{place} only stages a dataset that is published on the Hub; name hf://datasets/USER/NAME instead"
            )
    return requested


def leads_elsewhere(root: Path, file: Path) -> bool:
    """True if the file is reached through a link, or is not a regular file."""
    return file.resolve() != root.resolve() / file.relative_to(root) or not file.is_file()


def _in_folder(place: str) -> list[Stored]:
    root = Path(place).absolute()
    folders = [folder for name in (LEDGER_FOLDER, DATA_FOLDER) for folder in root.glob(f"{name}/*") if folder.is_dir()]
    subsets = [Subset(name, root) for name in sorted({folder.name for folder in folders})]
    return [Stored(str(root), subset, _files(root, subset)) for subset in subsets]


def _files(root: Path, subset: Subset) -> dict[str, str]:
    if subset.data.is_symlink():
        return {"": "is a link; replace it with a copy of its target"}
    files = [file for file in sorted(subset.data.rglob("*")) if file.is_symlink() or not file.is_dir()]
    return {
        file.relative_to(subset.data).as_posix(): LINK if leads_elsewhere(root, file) else ""
        for file in files
        if not is_unfinished(file)
    }


def _on_hub(place: str) -> list[Stored]:
    assert Repository.at(place)  # raises if the URL is not that of a dataset
    (url,) = pinned((place,))
    uri = parse_hf_uri(url)
    assert uri.revision is not None
    listed = Repository(uri.id, uri.revision).files("", uri.revision)
    parts = [path.split("/") for path in listed]
    names = sorted({part[1] for part in parts if part[0] in (DATA_FOLDER, LEDGER_FOLDER) and len(part) > 2})
    with reaching(url):
        patterns = [CARD_FILE, f"{LEDGER_FOLDER}/**", f"{TOKENIZER_FOLDER}/**"]
        root = Path(snapshot_download(uri.id, repo_type="dataset", revision=uri.revision, allow_patterns=patterns))
    return [
        Stored(url, Subset(name, root), {"/".join(part[2:]): "" for part in parts if part[:2] == [DATA_FOLDER, name]})
        for name in names
    ]
