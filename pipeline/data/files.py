"""Files of documents, found by path, folder, glob or URL, with their format and version.

A file's name determines its format and compression. Each folder is listed, and its card (README.md) read,
only once. Datasets on the Hub are pinned to a commit. `pipeline.data.splits` selects files within folders,
and `pipeline.data.streams` opens files.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from os import stat_result
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any, Literal, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfApi, parse_hf_uri
from huggingface_hub.errors import HfUriError, RepositoryNotFoundError, RevisionNotFoundError

from pipeline.checks import in_copy
from pipeline.data.remote import filesystem_of, is_answer, reaching
from pipeline.messages import has_credential, redacted

Format = Literal["Parquet", "JSON lines", "text", "Arrow"]
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
JSON_ENDINGS, TEXT_ENDINGS = (".jsonl", ".json", ".ndjson"), (".txt", ".md", ".text")
JSON_LINES = tuple(kind + end for kind in JSON_ENDINGS for end in ("", *COMPRESSIONS))
TEXT = tuple(kind + end for kind in TEXT_ENDINGS for end in ("", *COMPRESSIONS))
TABLES = tuple(kind + end for kind in (".csv", ".tsv") for end in ("", ".gz", ".zst"))  # tables that DuckDB can read
ARROW = ".arrow"
FOUND_IN_FOLDERS = (".parquet", *JSON_LINES, ARROW)
"""Extensions of the files that are found in a folder. Text files are found only if they are named or match a glob,
since a README.md, for example, is not data."""

HUB = "hf://datasets/"
MAGIC = re.compile(r"[*?\[]")
DOTTED = re.compile(r"(^|/)\.")
COMMIT = re.compile("[0-9a-f]{40}")
ANY_FOLDERS = "**"
CARD = "README.md"

# Equal to FILES_TO_IGNORE in `datasets`.
SETTINGS_FILES = frozenset((CARD, "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"))

# Names that filesystems use for the digest or the time of a file's content, the most reliable first.
DIGESTS = ("blob_id", "ETag", "etag", "Content-MD5", "md5Hash")
TIMES = ("Last-Modified", "LastModified", "last_modified", "mtime", "created")


@dataclass(frozen=True)
class File:
    """Location, size and version of a file at the time when it was found."""

    url: str
    """Absolute local path, or a URL with its protocol."""
    size: int
    """Stored size in bytes."""
    version: str
    """Value that changes when the content changes, as far as the filesystem reports changes."""
    path: str = field(default="", compare=False)
    """Path relative to the folder that contains all files of the input."""

    @property
    def name(self) -> str:
        """Last component of the path or URL. The query of a URL is left out."""
        return PurePosixPath(self.url.partition("?")[0] if is_url(self.url) else self.url).name

    @property
    def format(self) -> Format:
        """Format that the extension indicates; Parquet if the extension is unknown."""
        return format_of(self.name)


@dataclass(frozen=True)
class Folder:
    """Contents of a folder and its subfolders at the time when it was found."""

    url: str
    """Path or URL of the folder, as given in the input or as matched by a glob."""
    files: Mapping[str, File]
    """Files with an extension in FOUND_IN_FOLDERS, keyed and sorted by their path in the folder. Hidden folders are
    left out."""
    card: str = ""
    """Text of the folder's README.md; empty if the folder has no README.md."""

    @property
    def data(self) -> list[str]:
        """Paths of the files that are data, without settings files and hidden files."""
        return [path for path in self.files if is_data(path, "")]


class Located(NamedTuple):
    """Files and folders that one input names."""

    entries: Sequence[File | Folder]
    left_out: Sequence[str] = ()
    """Paths that the input matches but that are left out: files that are not data, and folders without data."""


def find_files(inputs: Sequence[str]) -> list[File]:
    """Find the files that paths, folders, globs or URLs name, in the order of the inputs.

    The files of a folder or a glob are sorted by name. A folder contributes all its data files of every split and
    format, including those in subfolders. Text files are found only if they are named or match a glob.

    Raises:
        ValueError: if there is no input or an input names nothing; if an input holds a credential or needs a package
            that is not installed; if a file is named twice or has Arrow's format.
        ConnectionError: if a store cannot be reached now.
    """
    if not inputs:
        raise ValueError("no input is named; name files, folders or URLs with `input`")
    entries = [entry for named in inputs for entry in locate(named).entries]
    return distinct([file for entry in entries for file in _all_data(entry)])


def locate(named: str) -> Located:
    """Find the files and folders that one input names.

    A folder without data files is not returned as an entry, but its path is in `left_out`.

    Raises:
        ValueError, ConnectionError: as find_files does.
    """
    try:
        located = _at_url(named) if is_url(named) else _on_disk(named)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    entries = [entry for entry in located.entries if _all_data(entry)]
    empty = [entry for entry in located.entries if isinstance(entry, Folder) and not _all_data(entry)]
    if not entries:
        raise _nothing_at(named, [*located.left_out, *(path for folder in empty for path in folder.files)])
    return Located(entries, [*located.left_out, *(f"{folder.url}/" for folder in empty)])


def distinct(files: Sequence[File]) -> list[File]:
    """Check that no file is repeated, and return the files with paths relative to the folder that contains all of them.

    Two links with different names to the same file are two files, as in the Hub's cache.

    Raises:
        ValueError: if a path is repeated, or a file has Arrow's format.
    """
    for file in files:
        if file.format == "Arrow":
            folder = file.url.rpartition("/")[0]
            advice = f'write Parquet first, with datasets.load_from_disk("{folder}").to_parquet("documents.parquet")'
            raise ValueError(f"{file.url} is an Arrow file, the format of save_to_disk; {advice}, and name that file")
    counts = Counter(_identity(file) for file in files)
    repeated = [path for path, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(f"named more than once in the input: {shortened(repeated)}; name each file once")
    return _with_paths(files)


def is_data(path: str, pattern: str) -> bool:
    """True if the file at a path is data.

    Hidden files and settings files are data only if `pattern` asks for them, for example by name.
    """
    name = PurePosixPath(path).name
    settings = name in SETTINGS_FILES and name != PurePosixPath(pattern).name
    return _hidden_parts(path) == _hidden_parts(pattern) and not settings


def shortened(names: Sequence[str], most: int = 3) -> str:
    """Return a list of names as text: the first `most` names, then the number of the remaining names."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def format_of(name: str) -> Format:
    """Return the format that a file's extension indicates, or Parquet if the extension is unknown."""
    if name.lower().endswith(ARROW):
        return "Arrow"
    if name.lower().endswith(JSON_LINES):
        return "JSON lines"
    return "text" if name.lower().endswith(TEXT) else "Parquet"


def compression_of(name: str) -> str | None:
    """Return the compression that the extension of a JSON lines or text file indicates, or None."""
    return COMPRESSIONS.get(PurePosixPath(name.lower()).suffix)


def remedy(name: str) -> str:
    """Return advice for a file that cannot be read in the format that its name indicates."""
    if name.lower().endswith((".parquet", *JSON_LINES, *TEXT)):
        return "write or download it again, or rename it to the extension of its format"
    if name.lower().endswith(TABLES):
        return f"convert it, for example with `duckdb -c \"COPY (FROM '{name}') TO 'documents.parquet'\"`"
    known = ", ".join((".parquet", *JSON_ENDINGS, *TEXT_ENDINGS))
    compressed = f"all except the first also with {', '.join(COMPRESSIONS)}"
    return f"convert it, or rename it to the extension of its format: {known}, {compressed}"


def is_url(named: str) -> bool:
    """True if a name has a protocol, as in `https://`."""
    return "://" in named


def local_file(path: Path) -> File:
    """Return a local file with its current size and version.

    A link is not resolved, since the name of its target may lack the extension.

    Raises:
        ValueError: if the path is a broken link, a device, a pipe or a socket.
    """
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to a file that no longer exists; download it again, or delete the link")
    status: stat_result = path.stat()
    if not S_ISREG(status.st_mode):
        raise ValueError(
            f"{path} is a device, a pipe or a socket, not a file; copy its content into a file, or delete it"
        )
    return File(str(path.absolute()), status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def remote_file(filesystem: AbstractFileSystem, info: dict[str, Any]) -> File:
    """Return a remote file with the size and version in `info`, which is the filesystem's description of the file.

    Raises:
        ValueError: if the filesystem does not report the size.
    """
    url = filesystem.unstrip_protocol(info["name"])
    info = info if info.get("size") is not None else filesystem.info(info["name"])
    if info.get("size") is None:
        raise ValueError(f"the size of {url} is not reported; download the file and name the copy")
    versions = [str(info[key]).strip('"') for key in (*DIGESTS, *TIMES) if info.get(key) is not None]
    return File(url, info["size"], "-".join([str(info["size"]), *versions[:1]]))


def pinned(inputs: Sequence[str]) -> tuple[str, ...]:
    """Return the inputs, after pinning each dataset on the Hugging Face Hub to the current commit of its revision.

    Raises:
        ValueError: if there is no such dataset or revision, or an input holds a credential.
        ConnectionError: if the network fails.
    """
    return tuple(_pinned(named) if named.startswith(HUB) else named for named in inputs)


def is_pin(pin: str, named: str) -> bool:
    """True if `pin` may be the result of pinning the input `named`.

    A Hub input that names a commit is pinned to this commit. Any other Hub input may be pinned to any commit. An input
    that is not on the Hub is not changed.
    """
    if not named.startswith(HUB):
        return pin == named
    try:
        pinned_uri, uri = parse_hf_uri(pin), parse_hf_uri(named)
    except HfUriError:
        return False
    if COMMIT.fullmatch(pinned_uri.revision or "") is None:
        return False
    has_commit = COMMIT.fullmatch(uri.revision or "") is not None
    return pinned_uri == (uri if has_commit else replace(uri, revision=pinned_uri.revision))


def _pinned(url: str) -> str:
    _require_no_credential(url)
    try:
        uri = parse_hf_uri(url)
    except HfUriError as error:
        raise ValueError(f"{url} is not a dataset of the Hub: {error}; write {HUB}USER/NAME") from error
    if COMMIT.fullmatch(uri.revision or ""):
        return url
    with reaching(url):
        try:
            commit = HfApi().dataset_info(uri.id, revision=uri.revision).sha
        except (RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise ValueError(
                f"no dataset at {url} that you may read; check its name and revision, or log in with `hf auth login`"
            ) from error
    return replace(uri, revision=commit).to_uri()


def _require_no_credential(url: str) -> None:
    if has_credential(url):
        raise ValueError(
            f"the input {redacted(url)} holds a credential, and inputs are written into the dataset; set it in the "
            "environment or in the filesystem's own configuration instead"
        )


def _with_paths(files: Sequence[File]) -> list[File]:
    parts = [file.url.split("/") for file in files]
    shared = len([*takewhile(lambda names: len(set(names)) == 1, zip(*(part[:-1] for part in parts), strict=False))])
    return [replace(file, path="/".join(part[shared:])) for file, part in zip(files, parts, strict=True)]


def _identity(file: File) -> str:
    return file.url if is_url(file.url) else str(Path(file.url).parent.resolve() / file.name)


def _all_data(entry: File | Folder) -> list[File]:
    return [entry] if isinstance(entry, File) else [entry.files[path] for path in entry.data]


def _nothing_at(named: str, left_out: Sequence[str]) -> ValueError:
    if left_out:
        return ValueError(f"no data at {named}: {shortened(left_out)} would be left out; name the files that are data")
    if not is_url(named) and in_copy(Path(named)):
        return ValueError(
            f"no documents at {named} in Ray's copy of the working directory, which lacks what .gitignore names; give "
            "an absolute path, on a disk that all nodes share"
        )
    return ValueError(
        f"no documents at {named}; check the path (a folder's text files are read only if a glob names them, as in "
        "notes/*.txt)"
    )


def _on_disk(named: str) -> Located:
    if Path(named).is_file():
        return Located([local_file(Path(named))])
    if Path(named).is_dir():
        return Located([_local_folder(named)])
    matches = {str(path): path.is_dir() for path in _on_disk_matching(named)}
    kept, left_out = _matched(matches, named)
    return Located([_local_folder(path) if matches[path] else local_file(Path(path)) for path in kept], left_out)


def _local_folder(named: str) -> Folder:
    matches = _on_disk_matching(str(Path(glob.escape(named)) / "**"))
    data = [path for path in matches if path.name.lower().endswith(FOUND_IN_FOLDERS) and not path.is_dir()]
    card = Path(named) / CARD
    text = card.read_text(errors="replace", encoding="utf-8") if card.is_file() else ""
    return Folder(named, {path.relative_to(named).as_posix(): local_file(path) for path in data}, text)


def _on_disk_matching(pattern: str) -> list[Path]:
    """Return the files, folders and links that match a glob, sorted by path. Broken links are included."""
    matches = map(Path, sorted(_names_matching(pattern)))
    return [path for path in matches if path.is_file() or path.is_dir() or path.is_symlink()]


def _names_matching(pattern: str) -> set[str]:
    """Return the names that match a recursive glob, as `glob.glob(pattern, recursive=True)` does.

    Unlike `glob.glob`, terminate even if links between folders form a cycle.
    """
    parts = Path(pattern).parts
    if ANY_FOLDERS not in parts:
        return set(glob.glob(pattern))
    at = parts.index(ANY_FOLDERS)
    bases = glob.glob(str(Path(*parts[:at]))) if at else [""]
    folders = [folder for base in bases for folder in _folders_below(base)]
    if parts[at + 1 :]:
        return {
            name for folder in folders for name in _names_matching(str(Path(glob.escape(folder), *parts[at + 1 :])))
        }
    inside = {name for folder in folders for name in glob.glob(str(Path(glob.escape(folder), "*")))}
    return {*folders, *inside} - {"."}


def _folders_below(base: str) -> Iterator[str]:
    """Yield a folder and all folders below it, except hidden ones.

    If a link leads to a folder that was already visited, the subfolders of this folder are not visited again.
    """
    visited = set[str]()
    for folder, inside, _ in os.walk(base or ".", followlinks=True):
        real = os.path.realpath(folder)
        inside[:] = [] if real in visited else sorted(name for name in inside if not name.startswith("."))
        visited.add(real)
        yield str(Path(folder)) if base else str(Path(folder).relative_to("."))


def _at_url(url: str) -> Located:
    _require_no_credential(url)
    with reaching(url):
        filesystem, path = filesystem_of(url)
        return _on_disk(path) if isinstance(filesystem, LocalFileSystem) else _in_store(filesystem, path)


def _in_store(filesystem: AbstractFileSystem, path: str) -> Located:
    try:
        return Located([_entry(filesystem, filesystem.info(path), path)])
    except FileNotFoundError as error:
        if not MAGIC.search(path) or not is_answer(error):
            raise
    infos = filesystem.glob(path, detail=True)
    kept, left_out = _matched({name: infos[name]["type"] == "directory" for name in sorted(infos)}, path)
    return Located([_entry(filesystem, infos[name], name) for name in kept], left_out)


def _entry(filesystem: AbstractFileSystem, info: dict[str, Any], path: str) -> File | Folder:
    if info["type"] == "directory":
        return _remote_folder(filesystem, path.rstrip("/"))
    if path.endswith("/"):  # the index page of a web server, where folders look like pages
        raise ValueError(f"{path} is a web page; name files, or a glob of them as in {path}*.parquet")
    return remote_file(filesystem, info)


def _remote_folder(filesystem: AbstractFileSystem, path: str) -> Folder:
    infos = filesystem.find(path, detail=True)
    inside = {name.removeprefix(path).lstrip("/"): infos[name] for name in sorted(infos)}
    data = [name for name in inside if name.lower().endswith(FOUND_IN_FOLDERS) and not DOTTED.search(name)]
    card = filesystem.cat_file(f"{path}/{CARD}").decode(errors="replace") if CARD in inside else ""
    files = {name: remote_file(filesystem, inside[name]) for name in data}
    return Folder(filesystem.unstrip_protocol(path), files, card)


def _matched(matches: Mapping[str, bool], pattern: str) -> tuple[list[str], list[str]]:
    """Divide the paths that match a glob: return the paths to read, and the paths to report as left out.

    `matches` maps each path to True if it is a folder. If the glob matches both a folder and files in it, only the
    files are read. If the glob matches nested folders, only the outermost folder is read.
    """
    kept = {path: PurePosixPath(path) for path in matches if is_data(path, pattern)}
    with_files = {parent for path in kept if not matches[path] for parent in kept[path].parents}
    folders = {kept[path] for path in kept if matches[path]} - with_files
    to_read = [
        path for path in kept if not matches[path] or (kept[path] in folders and folders.isdisjoint(kept[path].parents))
    ]
    left_out = [path for path in matches if path not in kept and not DOTTED.search(PurePosixPath(path).name)]
    return to_read, [path for path in left_out if not matches[path] or "**" not in pattern]


def _hidden_parts(path: str) -> int:
    return sum(part.startswith((".", "_")) and part not in (".", "..") for part in PurePosixPath(path).parts)
