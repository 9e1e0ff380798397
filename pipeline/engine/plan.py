"""Plan of a run: the source's rows are divided into units (ranges of rows), and each unit becomes one shard."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from pipeline.data.documents import Column, FileInfo, inspect_file, unified
from pipeline.data.files import File
from pipeline.data.hub import Repository
from pipeline.labels.ensemble import Ensemble
from pipeline.models.checkpoint import Checkpoint
from schemas.annotations import INPUT_IDS, Device, Dtype, Provenance
from schemas.layout import Subset

FEWEST_ROWS, MOST_ROWS, UNITS_WANTED = 8, 16384, 16
MOST_UNITS = 10**7  # 164 billion rows by default; a cap, because a footer may claim any number of rows
LOOKS_AT_A_TIME = 16  # files inspected at once, because inspecting a remote file is mostly waiting for an answer


@dataclass(frozen=True)
class Unit:
    """Rows of a file, from `start` up to but not including `stop`. They become one shard, with the number `index`."""

    index: int
    file: File
    start: int
    stop: int

    def __str__(self) -> str:
        return f"unit {self.index}, rows {self.start} to {self.stop} of {self.file.url}"


@dataclass(frozen=True)
class Source:
    """Input of a run: its files, a summary of each file, the schema that the files share, and a digest of all files."""

    files: tuple[File, ...]
    infos: tuple[FileInfo, ...]
    schema: pa.Schema
    sha256: str
    choices: tuple[str, ...] = ()
    """Names of the chosen configurations and splits, for inputs that have several."""

    @property
    def rows(self) -> int:
        return sum(info.rows for info in self.infos)


def inspect(
    files: Sequence[File], column: Column, choices: tuple[str, ...] = (), passed: Collection[str] | None = None
) -> Source:
    """Inspect every file: read the footers of Parquet files, and the whole content of JSON and text files.

    `passed` names the columns to copy to the output, and None means all columns. Only these columns and the column of
    documents must have compatible types in all files.

    Raises:
        ValueError: if a file is unreadable, or if the columns of the files cannot be merged (see `unified`).
        OSError: if a file is missing, or its disk or server cannot be reached.
    """
    with ThreadPoolExecutor(LOOKS_AT_A_TIME) as pool:
        infos = tuple(pool.map(lambda file: inspect_file(file, column, passed), files))
    digest = hashlib.sha256("".join(info.sha256 for info in infos).encode())
    return Source(tuple(files), infos, unified(infos, files, column, passed), digest.hexdigest(), choices)


def plan_units(source: Source, *, rows_per_unit: int, limit: int | None) -> list[Unit]:
    """Divide the rows of the source into consecutive units. If `limit` is given, divide only the first `limit` rows.

    A unit has at most `rows_per_unit` rows, and all of them come from the same file. If the row groups of a file have
    at most `rows_per_unit` rows, a unit consists of whole row groups, so that no row group is read twice.

    Raises:
        ValueError: if there would be more than MOST_UNITS units.
    """
    units: list[Unit] = []
    left = source.rows if limit is None else limit
    for file, info in zip(source.files, source.infos, strict=True):
        start = 0
        for stop in _borders(info.groups, rows_per_unit):
            if start >= left:  # stop here: a footer may name any number of rows after the limit
                break
            if len(units) == MOST_UNITS:
                more = f"{file.url}, of {info.rows:,} rows, takes the input beyond {MOST_UNITS:,} shards"
                raise ValueError(f"{more}; give more rows to each with `rows_per_unit`, or leave the file out")
            units.append(Unit(len(units), file, start, min(stop, left)))
            start = stop
        left -= min(left, info.rows)
    return units


def default_rows_per_unit(rows: int) -> int:
    """Return the default number of rows per unit.

    The default depends only on the total number of rows, so that the shards do not depend on the number of workers.
    """
    return min(MOST_ROWS, max(FEWEST_ROWS, -(-rows // UNITS_WANTED)))


def _borders(groups: Sequence[int], rows_per_unit: int) -> Iterator[int]:
    """Yield the field `stop` of each unit of a file, in increasing order.

    `groups` has the number of rows of each row group in the file.
    """
    start = position = 0
    for rows in groups:
        if position > start and position + rows > start + rows_per_unit:
            yield (start := position)
        position += rows
        while position - start > rows_per_unit:
            yield (start := start + rows_per_unit)
    if position > start:
        yield position


# Linux's names for x86 instructions that multiply bfloat16. On a core with AVX512-BF16, bfloat16 labelled more tokens/s
# than float32: 2.0 times as many with the shipped second-order model, 1.9 times with the estimator, 2.5 times with
# SmolLM2. Without these instructions bfloat16 is slower than float32.
BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})
CPU_INFO = Path("/proc/cpuinfo")


def fast_dtype(device: Device, cpu_info: Path = CPU_INFO) -> Dtype:
    """Return bfloat16 for a GPU or for a CPU with bfloat16 instructions, and float32 for any other CPU."""
    return "bfloat16" if device == "cuda" or BFLOAT16_INSTRUCTIONS & _cpu_flags(cpu_info) else "float32"


def _cpu_flags(cpu_info: Path) -> set[str]:
    """Return the feature flags of the first core that Linux lists, or an empty set on other systems."""
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.is_file() else []
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def reading_tokenizers(provenance: Provenance, checkpoints: Sequence[Path]) -> tuple[Path | None, ...]:
    """Return the folders of the tokenizers whose tokens the checkpoints read, for `Run.estimator_tokenizers`.

    `checkpoints` has the folder of the only checkpoint, or the folders of all members of an ensemble. The result has
    one element for all checkpoints or, if the members have different tokenizers, one element per member. An element is
    None if the checkpoint reads the tokens of `input_ids`.
    """
    digests = [member.tokenizer_sha256 for member in provenance.members] or [provenance.estimator_tokenizer_sha256]
    read = tuple(folder if digest else None for folder, digest in zip(checkpoints, digests, strict=True))
    return read if provenance.has_several_tokenizers else read[:1]


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint from the Hub, pinned to a commit."""

    name: str
    """Name with the commit: USER/NAME@COMMIT."""
    folder: Path
    """Folder of the checkpoint's copy on the node that prepared the run."""

    def here(self) -> Path:
        """Return the folder of the copy on this node. If this node has no copy, fetch the checkpoint first."""
        return Checkpoint.find(self.name).folder.resolve()


@dataclass(frozen=True)
class Run:
    """A run: all paths, settings and schemas that its units share."""

    subset: Subset
    """Subset of the dataset that the run writes."""
    checkpoints: tuple[Path, ...]
    """Folders of the checkpoints: one for each member of an ensemble or, with cross-validation, one for each fold of
    each member. All folds of a member are next to each other."""
    tokenizer: Path | None
    """Folder of the tokenizer for `input_ids`, or None if the documents are already tokenized."""
    estimator_tokenizers: tuple[Path | None, ...]
    """Folders of the tokenizers whose tokens the checkpoints read. There is one entry for all checkpoints or, if the
    members of an ensemble have different tokenizers, one entry per member. None means the same tokens as in
    `input_ids`. Otherwise, the nats of each token are divided among the tokens of `input_ids` that cover the same
    bytes."""
    provenance: Provenance
    source_schema: pa.Schema
    """Columns to read from the source."""
    schema: pa.Schema
    """Columns to write."""
    units: int
    """Number of units."""
    repository: Repository | None = None
    """Repository on the Hub to which the dataset is published, or None if the output is a folder."""
    snapshots: tuple[Snapshot, ...] = ()
    """Snapshots of the checkpoints that come from the Hub."""

    @property
    def labelled_schema(self) -> pa.Schema:
        """Columns of labelled rows before they are written: the columns to write and, in any case, `input_ids`.

        A sidecar has no column `input_ids`. Its labelled rows have this column until they are written.
        """
        tokens = [] if INPUT_IDS in self.schema.names else [pa.field(INPUT_IDS, pa.list_(pa.int32()))]
        return pa.schema([*self.schema, *tokens], metadata=self.schema.metadata)

    @property
    def column(self) -> Column:
        """Column of the source that holds the documents."""
        settings = self.provenance
        return Column(settings.text_column, tokenized=self.tokenizer is None, longest=settings.longest_document)

    @property
    def ensembles(self) -> tuple[Ensemble, ...]:
        """Groups of checkpoints that label together: one group for each cross-validation fold, with all members.

        If members have different tokenizers, each checkpoint is a group by itself. The folds of a member are next to
        each other.
        """
        settings = self.provenance
        starts = tuple(member.start_token for member in settings.members) or (settings.start_token,)
        members = range(len(starts))
        groups = [(member,) for member in members] if settings.has_several_tokenizers else [tuple(members)]
        return tuple(
            Ensemble(
                tuple(self.checkpoints[member * settings.folds + fold] for member in group),
                tuple(starts[member] for member in group),
            )
            for group in groups
            for fold in range(settings.folds)
        )

    def on_this_node(self) -> "Run":
        """Return a copy of the run with paths that exist on this node. The nodes need not share a cache of the Hub.

        Raises:
            ValueError: if the checkpoint must be fetched but cannot be fetched.
        """
        if not self.snapshots:
            return self
        copies = [(snapshot.folder, snapshot.here()) for snapshot in self.snapshots]

        def moved(folder: Path) -> Path:
            found = [here / folder.relative_to(there) for there, here in copies if folder.is_relative_to(there)]
            return found[0] if found else folder

        return replace(
            self,
            checkpoints=tuple(map(moved, self.checkpoints)),
            tokenizer=self.tokenizer and moved(self.tokenizer),
            estimator_tokenizers=tuple(folder and moved(folder) for folder in self.estimator_tokenizers),
        )
