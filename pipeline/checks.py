"""Checks of settings that several commands share."""

import os
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path


def require_at_least_one(settings: object, *names: str) -> None:
    """Raise if one of the named settings is an integer below 1. Other values, for example None, are accepted.

    Raises:
        ValueError: if a named setting is an integer below 1. The message names the setting.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"`{name}` must be at least 1, not {value}")


COPIES = ("runtime_resources", "working_dir_files")
"""Names of two folders, the second within the first. Ray copies the working directory of a job into the second."""
WRITTEN = ("output", "staging")
"""Settings that name a folder to write to."""


def require_lasting(name: str, folder: Path) -> None:
    """Raise if a folder is in Ray's copy of the working directory, which Ray deletes after the job.

    Raises:
        ValueError: if the folder is in Ray's copy. The message names the setting and a better folder.
    """
    if in_copy(folder):
        home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises for a user without one
        better = Path(home).absolute() / folder.name
        raise ValueError(
            f"`{name}` {folder} is in Ray's copy of the working directory, which Ray deletes after the job; give an "
            f"absolute path that lasts, on a disk that all nodes share, as in `{name}` {better}"
        )


def in_copy(path: Path) -> bool:
    """True if a path is in Ray's copy of the working directory of a job."""
    return COPIES in pairwise(path.resolve().parts)


def require_lasting_outputs(config: object) -> None:
    """Raise if a command's settings name an output folder in Ray's copy of the working directory.

    Raises:
        ValueError: if an output folder is in Ray's copy, which Ray deletes after the job. The message names the setting
            and a better folder.
    """
    named = {field.name for field in fields(config)} if is_dataclass(config) else set()
    for name in named.intersection(WRITTEN):
        if isinstance(folder := getattr(config, name), Path):
            require_lasting(name, folder)
