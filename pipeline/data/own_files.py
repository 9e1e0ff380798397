"""Files of an untrusted folder, read only if they are plain files of bounded size inside the folder.

A link may lead to a file in its own folder, or from a snapshot in the Hub's cache to the blobs of the cache. A link to
any other place could cause a private file to be read, digested and copied as part of the folder.
"""

import json
from pathlib import Path
from typing import Any

MOST_BYTES = 2**24
"""Maximum size of a configuration file in bytes. Configuration files of the largest models have 100 kB, and an index of
60,000 weights has 5 MB."""


def own_file(folder: Path, name: str) -> Path | None:
    """Return the path of a file in a folder, or None if there is no file of that name.

    Raises:
        ValueError: if the file is not a plain file, or is a link that leads neither into the folder nor to a blob of
            the Hub's cache.
    """
    file = folder / name
    if not file.is_symlink() and not file.exists():
        return None
    target = file.resolve()
    if not any(target.is_relative_to(root) for root in _roots(folder.resolve())):
        raise ValueError(f"{file} is a link to {target}, outside its folder; replace it with a copy")
    if not target.is_file():
        raise ValueError(f"{file} is not a plain file; fetch or save it again")
    return file


def read_bounded(file: Path, most: int = MOST_BYTES) -> bytes:
    """Read all bytes of a file.

    Raises:
        ValueError: if the file has more than `most` bytes.
    """
    with file.open("rb") as stream:
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{file} has more than {most:,} bytes, too many for what it is; fetch or save it again")
    return content


def read_object(file: Path, most: int = MOST_BYTES) -> dict[str, Any]:
    """Read the JSON object that a file holds.

    Raises:
        ValueError: if the file holds anything else, or more than `most` bytes.
    """
    content = read_bounded(file, most)
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply; fetch or save it again") from error
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}; fetch or save it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds no JSON object; fetch or save it again")
    return value


def _roots(folder: Path) -> list[Path]:
    """Return the folders that the targets of links in `folder` are allowed to be in."""
    snapshots = [parent for parent in folder.parents if parent.name == "snapshots"]
    return [folder, *(parent.parent / "blobs" for parent in snapshots[:1])]
