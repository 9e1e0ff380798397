"""Data that a repository has already, which `datasets` must still find once labels are published beside it.

Where a card has no `configs`, `datasets` looks for files by itself; where it has some, it reads those alone, and all of
them in the format of the first.
"""

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pipeline.publishing.readme import EMPTY, parsed
from schemas.layout import CARD_FILE, Subset

if TYPE_CHECKING:
    from datasets import DatasetBuilder

DEFAULT = "default"  # as `datasets` calls what it finds by itself
FORMAT = "parquet"
MOST_FILES = 1000  # that a card can list


def beside_own_data(card: str | None, files: Iterable[str], subset: Subset, url: str) -> str | None:
    """The card of a repository without the subset, with a configuration for data that has none.

    Raises:
        ValueError: if `datasets` could not read both the data and the labels afterwards.
    """
    paths, name = sorted(files), subset.name
    parsed(card or EMPTY, f"{url}/{CARD_FILE}")
    folder = f"{subset.in_repository.data.as_posix()}/"
    if any(path.startswith(folder) for path in paths):
        raise ValueError(f"{url} has files of its own in {folder}; annotate under another --subset")
    builder = _builder(card, paths, url)
    if builder is None:
        return card
    if builder.name != FORMAT:
        remedy = f"and labels are {FORMAT}, of which it can read one in a repository; publish to another repository"
        raise ValueError(f"{url} has data that `datasets` reads as {builder.name}, {remedy}")
    whole = parsed(card or EMPTY, f"{url}/{CARD_FILE}")
    configured = [config["config_name"] for config in whole.data.get("configs") or []]
    if name in (configured or [DEFAULT]):
        raise ValueError(f"{url} has a configuration {name} of its own; annotate under another --subset")
    if not configured:
        whole.data["configs"] = [{"config_name": DEFAULT, "data_files": _listed(builder, url)}]
    return str(whole)


def _builder(card: str | None, paths: list[str], url: str) -> "DatasetBuilder | None":
    """What `datasets` makes of empty files of these names; None if it finds no data among them."""
    from datasets import get_dataset_config_names, load_dataset_builder
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    with TemporaryDirectory() as folder, TemporaryDirectory() as cache:
        root = Path(folder).resolve()
        for path in paths:
            if not (root / path).resolve().is_relative_to(root):
                raise ValueError(f"{url} names a file {path}, which is outside of it; publish to another repository")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        (root / CARD_FILE).write_text(card or "", encoding="utf-8")
        try:
            return load_dataset_builder(str(root), get_dataset_config_names(str(root))[0], cache_dir=cache)
        except (EmptyDatasetError, DataFilesNotFoundError):
            return None
        except Exception as error:  # of many kinds
            remedy = "publish to another repository"
            raise ValueError(f"`datasets` cannot tell what data {url} has already: {error}; {remedy}") from error


def _listed(builder: "DatasetBuilder", url: str) -> list[dict[str, object]]:
    """The files of each split one by one, since a pattern that finds them could find labels too."""
    found = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    if (count := sum(map(len, found.values()))) > MOST_FILES:
        remedy = "write `configs` with a pattern for them into its README.md"
        raise ValueError(f"{url} has {count:,} data files, which labels would hide from `datasets`; {remedy}")
    root = str(builder.base_path)
    return [
        {"split": split, "path": [glob.escape(os.path.relpath(file, root)) for file in files]}
        for split, files in found.items()
    ]
