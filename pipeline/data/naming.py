"""Inputs as a dataset names them to everybody who reads it: URLs, and no path of anybody's disk."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.files import MAGIC, File, is_url
from pipeline.messages import is_harmless

LOCAL_URLS = ("file:", "local:")
HTTP_PARAMETERS = re.compile(r"(?:[?#]|;[^/?;#=]*=).*")
PARAMETERS = re.compile(r"[?;#][^/?;#=]*=.*")  # where a `?` may be a glob's
LOCAL_NAME = "a local file"
MOST_NAMED = 4  # every shard has these names twice: its footer stays at 4 kB whatever the number of inputs


def is_local(named: str) -> bool:
    """True for a path, and for a URL of one."""
    return not is_url(named) or named.startswith(LOCAL_URLS)


def recorded(inputs: Sequence[str]) -> tuple[str, ...]:
    """The inputs as they are written down: a URL ends before parameters, unless all of these are harmless."""
    return tuple(named if is_local(named) else _without_parameters(named) for named in inputs)


def without_paths(inputs: Sequence[str]) -> tuple[str, ...]:
    """The inputs, each path replaced by LOCAL_NAME."""
    return tuple(LOCAL_NAME if is_local(named) else named for named in inputs)


def urls(inputs: Sequence[str]) -> list[str]:
    """Those of the inputs that are elsewhere than on a disk here."""
    return [named for named in inputs if not is_local(named)]


def named_inputs(inputs: Sequence[str], files: Sequence[File]) -> tuple[str, ...]:
    """The first URLs, then the number of all local files among those found and the name of the folder that has them."""
    local = [Path(file.url) for file in files if not is_url(file.url)]
    counted = [f"{len(local):,} local file{'s' if len(local) > 1 else ''}{_in_folder(local)}"] if local else []
    return (*_first(recorded(urls(inputs))), *counted)


def public_names(source: Sequence[str]) -> tuple[str, ...]:
    """The names that a provenance has; of the paths that older versions wrote there the last part, of the first few."""
    return tuple(_first([Path(name).name if Path(name).is_absolute() else name for name in source]))


def _first(names: Sequence[str]) -> list[str]:
    more = len(names) - MOST_NAMED
    return list(names) if more <= 0 else [*names[:MOST_NAMED], f"{more:,} more"]


def _without_parameters(url: str) -> str:
    parameters = (HTTP_PARAMETERS if url.lower().startswith("http") else PARAMETERS).search(url)
    if parameters is None:
        return url
    names = [each.partition("=")[0] for each in re.split("[?&;#]", parameters[0]) if each]
    return url if all(map(is_harmless, names)) else url[: parameters.start()]


def _in_folder(files: Sequence[Path]) -> str:
    """Nothing where the folder's name is a user's, or one above it."""
    folder = Path(os.path.commonpath([file.parent for file in files]))
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises for a user without one
    return "" if home.is_relative_to(folder) else f" in {folder.name}"


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
