"""Atomic writing: a file is written under a temporary name, synced and renamed, so it is either complete or absent."""

import hashlib
import os
import uuid
from pathlib import Path

UNFINISHED = ".unfinished"


def unfinished_name(path: Path) -> Path:
    """Return a temporary name for a file while it is written.

    The name is unique, so several workers may write the same file at the same time.
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{UNFINISHED}")


def is_unfinished(file: Path) -> bool:
    """True if a file has a name that `unfinished_name` made."""
    return file.name.startswith(".") and file.suffix == UNFINISHED


def commit(unfinished: Path, path: Path) -> str:
    """Sync a completely written file to disk, rename it to `path` and return its sha256."""
    with unfinished.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    settle(unfinished, path)
    return digest


def settle(unfinished: Path, path: Path) -> None:
    """Sync a completely written file to disk and rename it to `path`. The renamed file survives a power failure."""
    _sync(unfinished)
    unfinished.replace(path)
    _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically: an existing file is replaced only once the new one is complete."""
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
