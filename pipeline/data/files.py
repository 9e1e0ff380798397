"""What the name of a file of documents tells: how it is written, and whether it is compressed."""

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
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from huggingface_hub import HfApi, parse_hf_uri
from huggingface_hub.errors import HfUriError, RepositoryNotFoundError, RevisionNotFoundError

from pipeline.data.remote import is_answer, reaching
from pipeline.messages import has_credential, redacted

Format = Literal["Parquet", "JSON lines", "text", "Arrow"]

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bzip2", ".xz": "xz"}
JSON_ENDINGS, TEXT_ENDINGS = (".jsonl", ".json", ".ndjson"), (".txt", ".md", ".text")
JSON_LINES = tuple(kind + end for kind in JSON_ENDINGS for end in ("", *COMPRESSIONS))
TEXT = tuple(kind + end for kind in TEXT_ENDINGS for end in ("", *COMPRESSIONS))
TABLES = tuple(kind + end for kind in (".csv", ".tsv") for end in ("", ".gz", ".zst"))  # which DuckDB reads
ARROW = ".arrow"
FOUND_IN_FOLDERS = (".parquet", *JSON_LINES, ARROW)
"""Text is read where it is named or a glob names it: beside data lie a README.md and a LICENSE.txt."""


def format_of(name: str) -> Format:
    """As what a file is read; any name that tells nothing is taken for Parquet's."""
    if name.lower().endswith(ARROW):
        return "Arrow"
    if name.lower().endswith(JSON_LINES):
        return "JSON lines"
    return "text" if name.lower().endswith(TEXT) else "Parquet"


def compression_of(name: str) -> str | None:
    """Compression of a file of JSON lines or text; None where its name tells of none."""
    return COMPRESSIONS.get(PurePosixPath(name.lower()).suffix)


def remedy(name: str) -> str:
    """Advice for a file that cannot be read as what its name tells."""
    if name.lower().endswith((".parquet", *JSON_LINES, *TEXT)):
        return "write or fetch it again, or give it the ending of what it is"
    if name.lower().endswith(TABLES):
        return f"convert it, as with `duckdb -c \"COPY (FROM '{name}') TO 'documents.parquet'\"`"
    known = ", ".join((".parquet", *JSON_ENDINGS, *TEXT_ENDINGS))
    compressed = f"all but the first also with {', '.join(COMPRESSIONS)}"
    return f"convert it, or give it the ending of what it is: {known}, {compressed}"


HUB = "hf://datasets/"
MAGIC = re.compile(r"[*?\[]")
DOTTED = re.compile(r"(^|/)\.")
COMMIT = re.compile("[0-9a-f]{40}")
ANY_FOLDERS = "**"
CARD = "README.md"
# As `datasets` has them (FILES_TO_IGNORE).
SETTINGS_FILES = frozenset((CARD, "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"))
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


@dataclass(frozen=True)
class Folder:
    """A folder as it was found, with the folders in it."""

    url: str
    """As it was named, or as a glob matched it."""
    files: Mapping[str, File]
    """Files with an ending of data by their paths in the folder, in the order of these; none in a hidden folder."""
    card: str = ""
    """Text of its README.md."""

    @property
    def data(self) -> list[str]:
        """Paths of the files that are data."""
        return [path for path in self.files if is_asked_for(path, "")]


class Located(NamedTuple):
    """What an input names."""

    places: Sequence[File | Folder]
    left_out: Sequence[str] = ()
    """What a glob matched besides and is no data."""


def find_files(inputs: Sequence[str]) -> list[File]:
    """Files named by paths, folders, globs or URLs of these, in the order given; a folder's or glob's in name order.

    Of a folder, and the folders in it, all files of data, of every split and format; text files only where they are
    named or a glob names them.

    Raises:
        ValueError: if there is no input, or one names nothing, holds a credential or needs a package that is not
            installed, or a file is named twice or is of Arrow's format.
        ConnectionError: if a store cannot be reached now.
    """
    if not inputs:
        raise ValueError("no input is named; name files, folders or URLs with --input")
    places = [place for named in inputs for place in locate(named).places]
    return distinct([file for place in places for file in _all_data(place)])


def locate(named: str) -> Located:
    """The files and folders that one input names: folders have data.

    Raises:
        ValueError, ConnectionError: as find_files does.
    """
    try:
        found = _behind(named) if is_url(named) else _on_disk(named)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from None
    places = [place for place in found.places if _all_data(place)]
    empty = [f"{place.url}/" for place in found.places if isinstance(place, Folder) and not _all_data(place)]
    if not places:
        hidden = [path for place in found.places if isinstance(place, Folder) for path in place.files]
        raise ValueError(_nothing_at(named, [*found.left_out, *hidden]))
    return Located(places, [*found.left_out, *empty])


def distinct(files: Sequence[File]) -> list[File]:
    """The files, each of another path. Links of two names to one file are two files, as in the cache of the Hub.

    Raises:
        ValueError: if a path is there twice, or one is of Arrow's format.
    """
    for file in files:
        if file.format == "Arrow":
            folder = file.url.rpartition("/")[0]
            remedy = f'write Parquet first, with datasets.load_from_disk("{folder}").to_parquet("documents.parquet")'
            raise ValueError(f"{file.url} is an Arrow file, as save_to_disk writes them; {remedy}, and name that")
    times = Counter(_identity(file) for file in files)
    repeated = [path for path, count in times.items() if count > 1]
    if repeated:
        raise ValueError(f"named more than once in the input: {shortened(repeated)}; name each file once")
    return _with_paths(files)


def is_asked_for(path: str, pattern: str) -> bool:
    """False for a path that the pattern matches by accident: hidden, or a file of settings."""
    name = PurePosixPath(path).name
    settings = name in SETTINGS_FILES and name != PurePosixPath(pattern).name
    return _hidden_parts(path) == _hidden_parts(pattern) and not settings


def shortened(names: Sequence[str], most: int = 3) -> str:
    """The first of the names and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def pinned(inputs: Sequence[str]) -> tuple[str, ...]:
    """The inputs, those on the Hugging Face Hub at the commit that their revision is now.

    Raises:
        ValueError: if there is no such dataset or revision, or an input holds a credential.
        ConnectionError: if the network fails.
    """
    return tuple(_pinned(named) if named.startswith(HUB) else named for named in inputs)


def is_pin(pin: str, named: str) -> bool:
    """True if a URL is that of an input, at any commit where the input names a file of the Hub and no commit."""
    if not named.startswith(HUB):
        return pin == named
    try:
        there, asked = parse_hf_uri(pin), parse_hf_uri(named)
    except HfUriError:
        return False
    same = (there.type, there.id, there.path_in_repo) == (asked.type, asked.id, asked.path_in_repo)
    revision = there.revision or ""
    free = COMMIT.fullmatch(asked.revision or "") is None
    return same and COMMIT.fullmatch(revision) is not None and (free or revision == asked.revision)


def _with_paths(files: Sequence[File]) -> list[File]:
    parts = [file.url.split("/") for file in files]
    shared = len([*takewhile(lambda names: len(set(names)) == 1, zip(*(part[:-1] for part in parts), strict=False))])
    return [replace(file, path="/".join(part[shared:])) for file, part in zip(files, parts, strict=True)]


def _all_data(place: File | Folder) -> list[File]:
    return [place] if isinstance(place, File) else [place.files[path] for path in place.data]


def _nothing_at(named: str, left_out: Sequence[str]) -> str:
    if left_out:
        return f"no data at {named}: {shortened(left_out)} would be left out; name the files that are data"
    remedy = "check the path (a folder's text files are read where a glob names them, as in notes/*.txt)"
    return f"no Parquet or JSON lines file at {named}; {remedy}"


def _behind(url: str) -> Located:
    _require_no_credential(url)
    with reaching(url):
        filesystem, path = filesystem_of(url)
        return _on_disk(path) if isinstance(filesystem, LocalFileSystem) else _in_store(filesystem, path)


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
    """Files, folders and links, broken ones among them."""
    matches = map(Path, sorted(_names_matching(pattern)))
    return [path for path in matches if path.is_file() or path.is_dir() or path.is_symlink()]


def _names_matching(pattern: str) -> set[str]:
    """As `glob.glob(pattern, recursive=True)` has them, which goes round where links of folders do."""
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
    """The folder and those below it, none whose name begins with a dot; nothing below one that links lead to again."""
    read = set[str]()
    for folder, inside, _ in os.walk(base or ".", followlinks=True):
        real = os.path.realpath(folder)
        inside[:] = [] if real in read else sorted(name for name in inside if not name.startswith("."))
        read.add(real)
        yield str(Path(folder)) if base else str(Path(folder).relative_to("."))


def _matched(matches: Mapping[str, bool], pattern: str) -> tuple[list[str], list[str]]:
    """What to read of a glob's matches, True for folders, and what to tell of the others.

    Of a folder in which the glob matches files, these are read; of folders in one another, the outermost.
    """
    kept = {path: PurePosixPath(path) for path in matches if is_asked_for(path, pattern)}
    with_files = {parent for path in kept if not matches[path] for parent in kept[path].parents}
    folders = {kept[path] for path in kept if matches[path]} - with_files
    places = [
        path for path in kept if not matches[path] or (kept[path] in folders and folders.isdisjoint(kept[path].parents))
    ]
    told = [path for path in matches if path not in kept and not DOTTED.search(PurePosixPath(path).name)]
    return places, [path for path in told if not matches[path] or "**" not in pattern]


def local_file(path: Path) -> File:
    """A file on a disk as it is now, its path not resolved: a link may have a suffix that its target lacks."""
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link to a file that is gone; fetch it again, or delete the link")
    status: stat_result = path.stat()
    if not S_ISREG(status.st_mode):
        raise ValueError(
            f"{path} is a device, a pipe or a socket, not a file; copy what it gives into one, or delete it"
        )
    return File(str(path.absolute()), status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _in_store(filesystem: AbstractFileSystem, path: str) -> Located:
    try:
        return Located([_place(filesystem, filesystem.info(path), path)])
    except FileNotFoundError as error:
        if not MAGIC.search(path) or not is_answer(error):
            raise
    infos = filesystem.glob(path, detail=True)
    kept, left_out = _matched({name: infos[name]["type"] == "directory" for name in sorted(infos)}, path)
    return Located([_place(filesystem, infos[name], name) for name in kept], left_out)


def _place(filesystem: AbstractFileSystem, info: dict[str, Any], path: str) -> File | Folder:
    if info["type"] == "directory":
        return _remote_folder(filesystem, path.rstrip("/"))
    if path.endswith("/"):  # a web server's index, which tells no folder from a page
        raise ValueError(f"{path} is a web page; name files, or a glob of them as in {path}*.parquet")
    return remote_file(filesystem, info)


def _remote_folder(filesystem: AbstractFileSystem, path: str) -> Folder:
    found = filesystem.find(path, detail=True)
    inside = {name.removeprefix(path).lstrip("/"): found[name] for name in sorted(found)}
    data = [name for name in inside if name.lower().endswith(FOUND_IN_FOLDERS) and not DOTTED.search(name)]
    card = filesystem.cat_file(f"{path}/{CARD}").decode(errors="replace") if CARD in inside else ""
    files = {name: remote_file(filesystem, inside[name]) for name in data}
    return Folder(filesystem.unstrip_protocol(path), files, card)


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


def _hidden_parts(path: str) -> int:
    return sum(part.startswith((".", "_")) and part not in (".", "..") for part in PurePosixPath(path).parts)


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
    return file.url if is_url(file.url) else str(Path(file.url).parent.resolve() / file.name)


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
