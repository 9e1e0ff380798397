"""The line of Python with which `datasets` loads an annotated dataset, and the folders where it cannot."""

from pathlib import Path

from pipeline.data.locations import MAGIC


def require_loadable(folder: Path) -> None:
    """Refuses a folder whose path `load_dataset` takes for a pattern, for a chain of filesystems or for no text.

    Raises:
        ValueError: if it is one.
    """
    path = str(folder)
    as_text = path.encode(errors="replace").decode()  # a byte that is not UTF-8 becomes a `?`
    if MAGIC.search(as_text) or "::" in as_text:
        raise ValueError(
            f"--output {ascii(path)[1:-1]} is a path that load_dataset cannot read: it has [, *, ?, :: or bytes "
            "that are not UTF-8; choose a folder without them"
        )


def load_call(place: str, subset: str, revision: str = "main") -> str:
    """Loads a subset from a folder, or from a branch of a repository."""
    branch = "" if revision == "main" else f", revision={_quoted(revision)}"
    return f'load_dataset({_quoted(place)}, "{subset}", split="train"{branch})'


def _quoted(text: str) -> str:
    return f'"{text}"' if text.isprintable() and not set(text) & set('"\\') else repr(text)
