"""Files wherever they lie, on a disk or behind a URL: found, and pinned to a revision.

A URL is anything that fsspec takes, `hf://datasets/user/name@revision/path` among it. Filesystems take credentials
from the environment or from their own configuration; a URL must hold none, since inputs are written down.
"""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from os import stat_result
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfApi, parse_hf_uri
from huggingface_hub.errors import HfUriError, RepositoryNotFoundError, RevisionNotFoundError

from pipeline.data.formats import FOUND_IN_FOLDERS, Format, format_of
from pipeline.data.reaching import is_answer, reaching
from pipeline.data.redaction import has_credential, redacted

HUB = "hf://datasets/"
MAGIC = re.compile(r"[*?\[]")
COMMIT = re.compile("[0-9a-f]{40}")
# What filesystems call the digest or the time of a file's content, the surest first.
DIGESTS = ("blob_id", "ETag", "etag", "Content-MD5", "md5Hash")
TIMES = ("Last-Modified", "LastModified", "last_modified", "mtime", "created")


@dataclass(frozen=True)
class File:
    """A file as it was found."""

    url: str
    """Absolute local path, or a URL with its protocol."""
    size: int
    """Bytes as stored."""
    version: str
    """Another one when the content is another, as far as the filesystem tells."""
    path: str = field(default="", compare=False)
    """Below the folder that all files of the input share."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self.url.partition("?")[0] if is_url(self.url) else self.url).name

    @property
    def format(self) -> Format:
        """As what it is read, by its name."""
        return format_of(self.name)


def find_files(inputs: Sequence[str]) -> list[File]:
    """Files named by paths, folders, globs or URLs of these, in the order given; a folder's or glob's in name order.

    Of a folder, and the folders in it, all Parquet and JSON lines files whose path has no part with a leading dot;
    text files only where they are named or a glob names them.

    Raises:
        ValueError: if there is no input, or one names nothing, holds a credential or needs a package that is not
            installed, or a file is named twice.
        ConnectionError: if a store cannot be reached now.
    """
    if not inputs:
        raise ValueError("no input is named; name files, folders or URLs with --input")
    files = [file for named in inputs for file in _found(named)]
    times = Counter(_identity(file) for file in files)
    repeated = [path for path, count in times.items() if count > 1]
    if repeated:
        raise ValueError(f"named more than once in the input: {', '.join(repeated)}; name each file once")
    return _with_paths(files)


def pinned(inputs: Sequence[str]) -> tuple[str, ...]:
    """The inputs, those on the Hugging Face Hub at the commit that their revision is now.

    Raises:
        ValueError: if there is no such dataset or revision, or an input holds a credential.
        ConnectionError: if the network fails.
    """
    return tuple(_pinned(named) if named.startswith(HUB) else named for named in inputs)


def _with_paths(files: Sequence[File]) -> list[File]:
    parts = [file.url.split("/") for file in files]
    shared = len([*takewhile(lambda names: len(set(names)) == 1, zip(*(part[:-1] for part in parts), strict=False))])
    return [replace(file, path="/".join(part[shared:])) for file, part in zip(files, parts, strict=True)]


def _found(named: str) -> list[File]:
    """The files that one input names."""
    try:
        files = _files_behind(named) if is_url(named) else _local_files(named)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    if not files:
        raise ValueError(
            f"no Parquet or JSON lines file at {named}; check the path (a folder's text files are read where a glob "
            "names them, as in notes/*.txt)"
        )
    return files


def _files_behind(url: str) -> list[File]:
    _require_no_credential(url)
    with reaching(url):
        filesystem, path = filesystem_of(url)
        return _local_files(path) if isinstance(filesystem, LocalFileSystem) else _remote_files(filesystem, path)


def _local_files(named: str) -> list[File]:
    folder = Path(named).is_dir()
    pattern = str(Path(glob.escape(named)) / "**") if folder else named
    matches = [named] if Path(named).is_file() else sorted(glob.glob(pattern, recursive=True))
    paths = [Path(match) for match in matches if Path(match).is_file()]
    return [local_file(path) for path in paths if not folder or path.name.lower().endswith(FOUND_IN_FOLDERS)]


def local_file(path: Path) -> File:
    """A file on a disk as it is now, its path not resolved: a link may have a suffix that its target lacks."""
    status: stat_result = path.stat()
    return File(str(path.absolute()), status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _remote_files(filesystem: AbstractFileSystem, path: str) -> list[File]:
    try:
        found = filesystem.info(path)
        if found["type"] == "file" and path.endswith("/"):  # a web server's index, which tells no folder from a page
            raise ValueError(f"{path} is a web page; name files, or a glob of them as in {path}*.parquet")
        if found["type"] == "file":
            return [remote_file(filesystem, found)]
        infos = filesystem.find(path, detail=True)
        names = [name for name in infos if _is_data(name[len(path) :])]
    except FileNotFoundError as error:
        if not MAGIC.search(path) or not is_answer(error):
            raise
        names = infos = filesystem.glob(path, detail=True)
    return [remote_file(filesystem, infos[name]) for name in sorted(names) if infos[name]["type"] == "file"]


def remote_file(filesystem: AbstractFileSystem, info: dict[str, Any]) -> File:
    """A file behind a URL, of what its filesystem says of it.

    Raises:
        ValueError: if that tells no size.
    """
    url = filesystem.unstrip_protocol(info["name"])
    info = info if info.get("size") is not None else filesystem.info(info["name"])
    if info.get("size") is None:
        raise ValueError(f"{url} does not tell its size; download it and name the file")
    versions = [str(info[key]).strip('"') for key in (*DIGESTS, *TIMES) if info.get(key) is not None]
    return File(url, info["size"], "-".join([str(info["size"]), *versions[:1]]))


def _is_data(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return path.lower().endswith(FOUND_IN_FOLDERS) and not hidden


def is_url(named: str) -> bool:
    """Whether a name has a protocol."""
    return "://" in named


def filesystem_of(url: str) -> tuple[AbstractFileSystem, str]:
    """The filesystem of a URL and the path there. A listing that is kept could be older than a changed file."""
    if "::" in url:
        raise ValueError(f"{url} chains filesystems with `::`; name the files behind a single one")
    try:
        filesystem, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        raise ValueError(f"{url} needs a package that is not installed: {error}") from error
    return filesystem, path


def _require_no_credential(url: str) -> None:
    if has_credential(url):
        raise ValueError(
            f"the input {redacted(url)} holds a credential, and inputs are written into the dataset; give it in the "
            "environment or in the filesystem's own configuration instead"
        )


def _identity(file: File) -> str:
    return file.url if is_url(file.url) else str(Path(file.url).resolve())


def _pinned(url: str) -> str:
    _require_no_credential(url)
    try:
        uri = parse_hf_uri(url)
    except HfUriError as error:
        raise ValueError(f"{url} names no dataset of the Hub: {error}; write {HUB}USER/NAME") from error
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
