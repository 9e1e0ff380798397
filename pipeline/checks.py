"""Checks of settings that several commands share."""

import os
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path


def require_at_least_one(settings: object, *names: str) -> None:
    """Refuses numbers below 1; other values, such as None or `auto`, pass.

    Raises:
        ValueError: with the name of the first that is below.
    """
    for name in names:
        value = getattr(settings, name)
        if isinstance(value, int) and value < 1:
            raise ValueError(f"`{name}` must be at least 1, not {value}")


COPIES = ("runtime_resources", "working_dir_files")  # of the folder that `ray job submit --working-dir` is given
WRITTEN = ("output", "staging")


def require_lasting(name: str, folder: Path) -> None:
    """Refuses a folder in Ray's copy of the working directory, which is deleted after a job.

    Raises:
        ValueError: if it is in there.
    """
    parts = folder.resolve().parts
    if COPIES in pairwise(parts):
        home = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises for a user without one
        better = Path(home).absolute() / folder.name
        raise ValueError(
            f"`{name}` {folder} is in Ray's copy of the working directory, which Ray deletes after the job; give an "
            f"absolute path that lasts, on a disk that all nodes share, as in `{name}` {better}"
        )


def require_lasting_outputs(config: object) -> None:
    """Refuses a command's settings if they name such a folder for output.

    Raises:
        ValueError: as require_lasting does.
    """
    named = {field.name for field in fields(config)} if is_dataclass(config) else set()
    for name in named.intersection(WRITTEN):
        if isinstance(folder := getattr(config, name), Path):
            require_lasting(name, folder)
