"""Atomic files: written under another name, synced, then renamed, so that a file is complete or absent."""

import hashlib
import os
import uuid
from pathlib import Path

UNFINISHED = ".unfinished"


def unfinished_name(path: Path) -> Path:
    """A name to write a file under before it is complete; a new one each time, since two workers may write the same."""
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
    """Writes a small file atomically."""
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
