"""Files that are there whole or not at all: written under another name, synced, then renamed."""

import hashlib
import os
import uuid
from pathlib import Path

UNFINISHED = ".unfinished"


def unfinished_name(path: Path) -> Path:
    """Where a file is written before it has its name; another one each time, should two workers write the same."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{UNFINISHED}")


def is_unfinished(file: Path) -> bool:
    """True for the names that `unfinished_name` gives."""
    return file.name.startswith(".") and file.suffix == UNFINISHED


def commit(unfinished: Path, path: Path) -> str:
    """Syncs a finished file, gives it its name and returns its sha256."""
    with unfinished.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settle(unfinished, path)
    return digest


def settle(unfinished: Path, path: Path) -> None:
    """Syncs a finished file and gives it its name, so that neither is lost when the power is."""
    _sync(unfinished)
    unfinished.replace(path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_name(path)
    try:
        unfinished.write_text(text, encoding="utf-8")
        commit(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
