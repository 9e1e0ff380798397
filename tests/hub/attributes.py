"""Rules by which git stores a file as a pointer, and by which a client leaves a file out of an upload."""

from fnmatch import fnmatchcase
from pathlib import PurePosixPath

LARGE = 10_000_000
SUFFIXES = ("arrow", "bin", "bz2", "gz", "npy", "npz", "parquet", "pickle", "safetensors", "tar", "zip", "zst")
GIT_ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in SUFFIXES).encode()


def is_large(path: str, size: int, attributes: bytes = GIT_ATTRIBUTES) -> bool:
    """True if a file is stored by LFS, because of its size or because of the repository's .gitattributes."""
    rules = [line.split() for line in attributes.decode().splitlines()]
    return size > LARGE or any("filter=lfs" in rule[1:] and _named(path, rule[0]) for rule in rules)


def is_ignored(path: str, git_ignore: str) -> bool:
    """Return whether a .gitignore names the file or a folder above it. Negation and `**` are not supported."""
    rules = [line.strip() for line in git_ignore.splitlines() if line.strip() and not line.startswith("#")]
    parents = [str(parent) for parent in PurePosixPath(path).parents if str(parent) != "."]
    return any(
        _named(name, rule.strip("/"))
        for rule in rules
        for name in (parents if rule.endswith("/") else [path, *parents])
    )


def _named(path: str, pattern: str) -> bool:
    return fnmatchcase(path, pattern) or fnmatchcase(PurePosixPath(path).name, pattern)
