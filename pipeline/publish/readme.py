"""Existing README.md of a folder or repository, and existing data in the repository.

Anybody may have written the README.md. It is parsed before anything is labelled. The run is refused if the card of the
dataset cannot be added to this file, or if the existing data could not be loaded afterwards.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml
from huggingface_hub import DatasetCard

from pipeline.messages import describe
from schemas.layout import CARD_FILE, Subset

if TYPE_CHECKING:
    from datasets import DatasetBuilder

MOST_VALUES = 1_000_000  # values in front matter, after its aliases are expanded
EMPTY = "---\n{}\n---\n"
REMEDY = "fix it, or delete it to have a new one written"
BEGINS = re.compile(r"\s*---[ \t]*\r?\n")
MARK = r"<!--\s*({kind})\s+{name}(?:\s[^\n>]*)?-->"


def read_readme(file: Path | None) -> str | None:
    """Return the text of a README.md; None if the file does not exist.

    Raises:
        ValueError: if the file is not UTF-8.
    """
    if file is None or not file.is_file():
        return None
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 ({error.reason}); {REMEDY}") from error


def parsed(text: str, name: str) -> DatasetCard:
    """Parse a README.md into a card whose front matter `datasets` can read. `name` is the file's name in errors.

    Raises:
        ValueError: if the front matter is not YAML, has no closing line or repeats a key, or if `datasets` cannot read
            its configurations or its dataset information.
    """
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs

    try:
        card = DatasetCard(text if BEGINS.match(text) else f"{EMPTY}{text}", ignore_metadata_errors=True)
        if BEGINS.match(text) and card.text == text:
            raise ValueError("no line of --- ends it")
        values = vars(card.data)
        if _written_out(values, {}) >= MOST_VALUES:
            raise ValueError("its aliases contain each other")
        if repeated := _repeated(text.removesuffix(card.text)):
            raise ValueError(f"it has {', '.join(repeated)} more than once")
        if not isinstance(values.get("dataset_info", {}), dict | list):
            raise ValueError("dataset_info is neither a mapping nor a list")
        MetadataConfigs.from_dataset_card_data(card.data)
        DatasetInfosDict.from_dataset_card_data(card.data)
    except Exception as error:  # YAML, the Hub and `datasets` raise many kinds of errors
        raise ValueError(f"the front matter of {name} cannot be read: {describe(error)}; {REMEDY}") from error
    return card


def marks(text: str, name: str) -> list[str]:
    """Return `begin` or `end` for each comment around the subset's section, in the order of the text."""
    return re.findall(MARK.format(kind="begin|end", name=re.escape(name)), text)


def _written_out(value: object, known: dict[int, int]) -> int:
    """Return the number of values in a YAML value after its aliases are expanded.

    A list or mapping counts as one value, besides its contents. If a list or mapping contains itself, the result is at
    least MOST_VALUES. `known` has the results by `id`, and is updated.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = MOST_VALUES
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_written_out(part, known) for part in parts)
    return known[id(value)]


def _repeated(front_matter: str) -> list[str]:
    """Return the keys that occur more than once in the same mapping.

    PyYAML reads only the last value of a repeated key, so the other values would be lost.
    """
    nodes, repeated, seen = list(yaml.compose_all(front_matter, yaml.SafeLoader)), list[str](), set[int]()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            repeated += [key for key, times in keys.items() if times > 1]
            nodes += [value for _, value in node.value]
        else:
            nodes += node.value
    return repeated


DEFAULT = "default"  # name that `datasets` gives to files without a configuration
FORMAT = "parquet"
MOST_FILES = 1000  # most files that a card lists


def keeping_own_data(card: str | None, files: Iterable[str], subset: Subset, url: str) -> str | None:
    """Return the card of a repository, prepared for a new subset of labels alongside the repository's existing data.

    If the card has no configurations, one is added for the existing data. Without this configuration, `datasets` would
    no longer find the existing data once the card has a configuration for the labels.

    Raises:
        ValueError: if `datasets` could not read both the existing data and the labels afterwards, or if the subset's
            name is taken.
    """
    paths, name = sorted(files), subset.name
    parsed(card or EMPTY, f"{url}/{CARD_FILE}")
    folder = f"{subset.in_repository.data.as_posix()}/"
    if any(path.startswith(folder) for path in paths):
        raise ValueError(f"{url} already has other files in {folder}; annotate under another `subset`")
    builder = _builder(card, paths, url)
    if builder is None:
        return card
    if builder.name != FORMAT:
        limit = f"but labels are {FORMAT} and it reads only one format per repository"
        remedy = "publish to another repository"
        raise ValueError(f"{url} has data that `datasets` reads as {builder.name}, {limit}; {remedy}")
    whole = parsed(card or EMPTY, f"{url}/{CARD_FILE}")
    configured = [config["config_name"] for config in whole.data.get("configs") or []]
    if name in (configured or [DEFAULT]):
        raise ValueError(f"{url} already has another configuration called {name}; annotate under another `subset`")
    if not configured:
        whole.data["configs"] = [{"config_name": DEFAULT, "data_files": _files_by_split(builder, url)}]
    return str(whole)


def _builder(card: str | None, paths: list[str], url: str) -> "DatasetBuilder | None":
    """Return the builder that `datasets` chooses for files with these names, or None if it finds no data.

    The names are tried with empty files in a temporary folder.
    """
    from datasets import get_dataset_config_names, load_dataset_builder
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError

    with TemporaryDirectory() as folder, TemporaryDirectory() as cache:
        root = Path(folder).resolve()
        for path in paths:
            if not (root / path).resolve().is_relative_to(root):
                raise ValueError(f"{url} names a file {path}, which is outside it; publish to another repository")
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).touch()
        (root / CARD_FILE).write_text(card or "", encoding="utf-8")
        try:
            return load_dataset_builder(str(root), get_dataset_config_names(str(root))[0], cache_dir=cache)
        except (EmptyDatasetError, DataFilesNotFoundError):
            return None
        except Exception as error:  # `datasets` raises many kinds of errors
            remedy = "publish to another repository"
            raise ValueError(f"`datasets` cannot read the existing data of {url}: {error}; {remedy}") from error


def _files_by_split(builder: "DatasetBuilder", url: str) -> list[dict[str, object]]:
    """Return the `data_files` of a configuration for the existing data.

    The files of each split are listed by name, because a pattern could match the labels too.
    """
    files_of = {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}
    if (count := sum(map(len, files_of.values()))) > MOST_FILES:
        remedy = "write `configs` with a pattern for them into its README.md"
        raise ValueError(f"{url} has {count:,} data files, which labels would hide from `datasets`; {remedy}")
    root = str(builder.base_path)
    return [
        {"split": split, "path": [glob.escape(os.path.relpath(file, root)) for file in files]}
        for split, files in files_of.items()
    ]
