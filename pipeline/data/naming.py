"""Public names of a dataset's inputs, without local paths, and the call that loads the dataset."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.data.files import MAGIC, File, is_url
from pipeline.messages import is_harmless

LOCAL_URLS = ("file:", "local:")
HTTP_PARAMETERS = re.compile(r"(?:[?#]|;[^/?;#=]*=).*")
PARAMETERS = re.compile(r"[?;#][^/?;#=]*=.*")  # in other URLs, where a `?` may belong to a glob
LOCAL_NAME = "a local file"
MOST_NAMED = 4  # every shard stores these names twice: its footer stays at 4 kB for any number of inputs


def is_local(named: str) -> bool:
    """True if an input is a local path, or the URL of a local path."""
    return not is_url(named) or named.startswith(LOCAL_URLS)


def recorded(inputs: Sequence[str]) -> tuple[str, ...]:
    """Return the inputs as they are recorded in a dataset.

    The parameters of a URL are removed if any of them may hold a credential. Otherwise, all parameters are kept.
    """
    return tuple(named if is_local(named) else _without_parameters(named) for named in inputs)


def without_paths(inputs: Sequence[str]) -> tuple[str, ...]:
    """Replace each local path in the inputs by LOCAL_NAME."""
    return tuple(LOCAL_NAME if is_local(named) else named for named in inputs)


def urls(inputs: Sequence[str]) -> list[str]:
    """Return the inputs that are not on a local disk."""
    return [named for named in inputs if not is_local(named)]


def named_inputs(inputs: Sequence[str], files: Sequence[File]) -> tuple[str, ...]:
    """Return the names of inputs for a dataset's provenance: URLs, followed by a description of the local files.

    Only the first MOST_NAMED URLs are returned. If there are more URLs, a text with the number of the remaining URLs
    follows. The description of the local files has their number and the name of the folder that contains all of them.
    """
    local = [Path(file.url) for file in files if not is_url(file.url)]
    number = [f"{len(local):,} local file{'s' if len(local) > 1 else ''}{_in_folder(local)}"] if local else []
    return (*_first(recorded(urls(inputs))), *number)


def public_names(source: Sequence[str]) -> tuple[str, ...]:
    """Return the input names that a provenance records, in a form that can be published.

    Only the first MOST_NAMED names are returned, followed by the number of further names if there are any. Older
    versions recorded local paths as names. An absolute path is shortened to its last component, since the full path
    would reveal a user's folders.
    """
    return tuple(_first([Path(name).name if Path(name).is_absolute() else name for name in source]))


def load_call(place: str, subset: str, revision: str = "main") -> str:
    """Return the Python call that loads a subset from a folder, or from a branch of a repository."""
    branch = "" if revision == "main" else f", revision={_quoted(revision)}"
    return f'load_dataset({_quoted(place)}, "{subset}", split="train"{branch})'


def require_loadable(folder: Path) -> None:
    """Check that `load_dataset` can read from a folder with this path.

    Raises:
        ValueError: if the path would be read as a pattern or as a chain of filesystems, or is not UTF-8.
    """
    path = str(folder)
    as_text = path.encode(errors="replace").decode()  # a byte that is not UTF-8 becomes a `?`
    if MAGIC.search(as_text) or "::" in as_text:
        raise ValueError(
            f"`output` {ascii(path)[1:-1]} is a path that load_dataset cannot read: it has [, *, ?, :: or bytes "
            "that are not UTF-8; choose a folder without them"
        )


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
    """Return ` in NAME` for the folder that contains all files.

    Return an empty text if this folder is the home folder or contains it.
    """
    folder = Path(os.path.commonpath([file.parent for file in files]))
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - Path.home() raises for a user without one
    return "" if home.is_relative_to(folder) else f" in {folder.name}"


def _quoted(text: str) -> str:
    return f'"{text}"' if text.isprintable() and not set(text) & set('"\\') else repr(text)
