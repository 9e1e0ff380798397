"""Splits and configurations of a data folder, selected as in `datasets.load_dataset`.

`configs` in the folder's card (README.md) may declare the configurations and splits. Otherwise, there is a single
configuration, and its splits follow from the names of the folder's files and subfolders. The patterns for names are
copied from `datasets`, which need not be installed where models are trained. Patterns are matched against a single
listing of the folder. If there are several formats, only files of the format with the most bytes are read, since many
tables come with logs and statistics in JSON.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import yaml
from fsspec.utils import glob_translate

from pipeline.data.files import CARD, File, Folder, is_data, is_url, shortened

TRAIN, ALL = "train", "all"
KEYWORDS = {
    TRAIN: ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
APART = "[-._ 0-9]"  # separates a keyword from the rest of a name
IN_FOLDERS = ("**/{0}/**", f"**/{{0}}{APART}*/**", f"**/*{APART}{{0}}/**", f"**/*{APART}{{0}}{APART}*/**")
IN_NAMES = (f"**/{{0}}{APART}*", f"**/*{APART}{{0}}{APART}*")
SHARD = re.compile(r"data/([^/]+)-\d{5}-of-\d{5}[^/]*\.[^/]*")
FRONT_MATTER = re.compile(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", re.DOTALL)
DEFAULT_CONFIG = "default"
NOT_DATA = "not data"


@dataclass(frozen=True)
class Selection:
    """Files of a folder that are selected for reading."""

    files: Sequence[File]
    choice: str
    """Selected configuration and split, for example `config en, split train`. A configuration or a split is named only
    if the folder has several."""
    notes: Sequence[str]
    """Messages about what was selected and left out."""


@dataclass(frozen=True)
class Contents:
    """Paths of a configuration's files.

    `splits` maps each split to the files to read. `left_out` maps each reason to the files that are left out for it.
    """

    splits: Mapping[str, Sequence[str]]
    left_out: Mapping[str, Sequence[str]]


def select(folder: Folder, split: str | None = None, config_name: str | None = None) -> Selection:
    """Select the named split and configuration of a folder, or the defaults of `load_dataset`.

    If there are several splits, the default is `train`. The split `all` means all splits, one after the other.

    Raises:
        ValueError: if there is no such split or configuration, or no default, or if the card cannot be read.
    """
    configs = configs_of(folder)
    config = _chosen_config(folder.url, configs, config_name)
    contents = contents_of(folder, configs[config])
    source = f"{folder.url}, config {config}," if len(configs) > 1 else folder.url
    chosen = _chosen_split(source, contents.splits, split)
    names = contents.splits if chosen == ALL else [chosen]
    paths = list(dict.fromkeys(path for name in names for path in contents.splits[name]))
    if not paths:
        raise ValueError(f"{source} has no data in split {chosen}; see the data_files of its {CARD}")
    choice, notes = [], []
    if len(configs) > 1:
        choice.append(f"config {config}")
        notes.append(f"{folder.url}: taking config {config} of {shortened([*configs], 8)}; `config_name` names another")
    if len(contents.splits) > 1:
        choice.append(f"split {chosen}")
        advice = "`split` names one" if chosen == ALL else "`split` names another, `split` all takes all"
        taken = "all splits:" if chosen == ALL else f"split {chosen} of"
        notes.append(f"{folder.url}: taking {taken} {', '.join(contents.splits)}; {advice}")
    notes += [left_out_note(folder.url, reason, left) for reason, left in contents.left_out.items() if left]
    return Selection([folder.files[path] for path in paths], ", ".join(choice), notes)


def left_out_note(url: str, reason: str, paths: Sequence[str]) -> str:
    """Return a message about files that are left out."""
    files = "file" if len(paths) == 1 else "files"
    return f"{url}: left out {len(paths):,} {files} ({reason}): {shortened(paths)}"


def configs_of(folder: Folder) -> dict[str, Mapping[str, Any]]:
    """Return the settings of each configuration that the folder's card declares, by the configuration's name.

    If the card declares none, return a single configuration without settings.

    Raises:
        ValueError: if the card's front matter is not YAML, or its `configs` have a form that `datasets` does not
            accept.
    """
    declared = _front_matter(folder).get("configs")
    if not declared:
        return {DEFAULT_CONFIG: {}}
    if not isinstance(declared, list) or not all(isinstance(each, dict) and "config_name" in each for each in declared):
        raise ValueError(f"`configs` in the {CARD} of {folder.url} must list mappings, each with a config_name")
    return {str(each["config_name"]): each for each in declared}


def contents_of(folder: Folder, config: Mapping[str, Any]) -> Contents:
    """Return the paths of a configuration's files, by split, and the paths that are left out, by reason.

    Splits are given by the configuration's patterns or, if it declares none, by the names of files.

    Raises:
        ValueError: if the patterns have a form that `datasets` does not accept, or a pattern reaches outside the
            folder.
    """
    inside = PurePosixPath(config.get("data_dir") or "")
    paths = {str(PurePosixPath(path).relative_to(inside)): path for path in folder.files if _is_below(path, inside)}
    declared = config.get("data_files")
    if declared is None:
        data = {path: whole for path, whole in paths.items() if is_data(path, "")}
        left_out = {NOT_DATA: [whole for path, whole in paths.items() if path not in data]}
        of_one, format_ = _of_one_format(folder, data)
        splits = by_names(of_one)
        in_split = {path for names in splits.values() for path in names}
        left_out["in no split by their names"] = [data[path] for path in of_one if path not in in_split]
    else:
        declared_patterns = _declared_patterns(folder, declared)
        splits = {split: matching(paths, patterns) for split, patterns in declared_patterns.items()}
        data = {path: paths[path] for names in splits.values() for path in names}
        matched = {path for each in declared_patterns.values() for pattern in each for path in _matched(paths, pattern)}
        left_out = {NOT_DATA: [whole for path, whole in paths.items() if path in matched and path not in data]}
        of_one, format_ = _of_one_format(folder, data)
    others = [whole for path, whole in data.items() if path not in of_one]
    left_out[f"not {format_}, which holds the most bytes"] = others
    kept = {split: [paths[path] for path in names if path in of_one] for split, names in splits.items()}
    return Contents(kept, left_out)


def by_names(paths: Iterable[str]) -> dict[str, list[str]]:
    """Divide paths into splits by the names of files or folders.

    If no name indicates a split, all paths are in the split `train`.
    """
    paths = list(paths)
    shards = {path: match[1] for path in paths if (match := SHARD.fullmatch(path))}
    if shards:
        names = sorted(set(shards.values()), key=lambda name: ([*KEYWORDS, name].index(name), name))
        return {name: [path for path in paths if shards.get(path) == name] for name in names}
    for patterns in (IN_FOLDERS, IN_NAMES):
        splits = {
            split: matching(paths, [pattern.format(word) for word in words for pattern in patterns])
            for split, words in KEYWORDS.items()
        }
        if any(splits.values()):
            return {split: names for split, names in splits.items() if names}
    return {TRAIN: paths}


def matching(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the paths of data files that match any pattern, in the order of the patterns and then of the paths."""
    paths = list(paths)
    matches = (path for pattern in patterns for path in _matched(paths, pattern) if is_data(path, pattern))
    return list(dict.fromkeys(matches))


def _chosen_config(url: str, configs: Mapping[str, Mapping[str, Any]], requested: str | None) -> str:
    listed = ", ".join(configs)
    if requested is not None:
        if requested not in configs:
            raise ValueError(f"{url} has no config {requested}; `config_name` takes one of {listed}")
        return requested
    marked = [name for name in configs if name == DEFAULT_CONFIG or configs[name].get("default")]
    candidates = marked or list(configs)
    if len(candidates) > 1:
        defaults = "several defaults among its" if marked else "no default among its"
        raise ValueError(f"{url} has {defaults} configs; name one with `config_name`: {listed}")
    return candidates[0]


def _chosen_split(source: str, splits: Mapping[str, object], requested: str | None) -> str:
    listed = ", ".join(splits)
    if requested is None:
        if len(splits) > 1 and TRAIN not in splits:
            raise ValueError(f"{source} has no split train; name one with `split`, or all: {listed}")
        return TRAIN if TRAIN in splits else next(iter(splits))
    if requested not in (ALL, *splits):
        raise ValueError(f"{source} has no split {requested}; `split` takes all or one of {listed}")
    return requested


def _front_matter(folder: Folder) -> Mapping[str, Any]:
    front_matter = FRONT_MATTER.match(folder.card)
    try:
        card = yaml.safe_load(front_matter[1]) if front_matter else None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the {CARD} of {folder.url} has no readable YAML at its top ({reason}); fix it") from error
    return card if isinstance(card, dict) else {}


def _declared_patterns(folder: Folder, declared: object) -> dict[str, list[str]]:
    """Return a list of patterns for each split. `declared` has any form that `data_files` in a card may have."""
    entries: list[Any] = declared if isinstance(declared, list) else [declared]
    if all(isinstance(entry, str) for entry in entries):
        entries = [{"split": TRAIN, "path": entries}]
    patterns: dict[str, list[str]] = {}
    for entry in entries:
        path = entry.get("path") if isinstance(entry, dict) and "split" in entry else None
        paths = [path] if isinstance(path, str) else path
        if not isinstance(paths, list) or not all(isinstance(each, str) for each in paths):
            message = f"the {CARD} of {folder.url} has data_files that are neither paths nor splits with paths"
            raise ValueError(f"{message}; fix them")
        patterns.setdefault(str(entry["split"]), []).extend(_relative(folder, each) for each in paths)
    return patterns


def _relative(folder: Folder, pattern: str) -> str:
    path = PurePosixPath(pattern)
    if is_url(pattern) or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the {CARD} of {folder.url} names files outside it, {pattern}; name them with `input`")
    return str(path)


def _of_one_format(folder: Folder, paths: Mapping[str, str]) -> tuple[dict[str, None], str]:
    """Choose the format whose files have the most bytes. Return the paths of these files, and the format's name.

    The paths stay in the order of `paths`.
    """
    files = {path: folder.files[whole] for path, whole in paths.items()}
    sizes: Counter[str] = Counter()
    for file in files.values():
        sizes[file.format] += file.size
    largest = max(sizes, key=lambda name: (sizes[name], name == "Parquet"), default="Parquet")
    return {path: None for path, file in files.items() if file.format == largest}, largest


def _is_below(path: str, folder: PurePosixPath) -> bool:
    return PurePosixPath(path).is_relative_to(folder)


def _matched(paths: Iterable[str], pattern: str) -> Iterable[str]:
    return filter(_compiled(pattern).match, paths)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(glob_translate(pattern))
