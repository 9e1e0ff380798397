"""The plan: which rows of which files make which shard, frozen before the first one is labelled."""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pyarrow as pa

from pipeline.data.documents import Column, FileInfo, inspect_file, unified
from pipeline.data.files import File
from pipeline.data.hub import Repository
from pipeline.models.checkpoint import Checkpoint
from schemas.annotations import Dtype, Provenance
from schemas.layout import Subset

FEWEST_ROWS, MOST_ROWS, UNITS_WANTED = 8, 16384, 16
MOST_UNITS = 10**7  # 164 billion rows by default; a footer, which anybody writes, may tell of any number
LOOKS_AT_A_TIME = 16  # at files: on a remote store most of a look is waiting for an answer


@dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` of a file, which become shard number `index`."""

    index: int
    file: File
    start: int
    stop: int

    def __str__(self) -> str:
        return f"unit {self.index}, rows {self.start} to {self.stop} of {self.file.url}"


@dataclass(frozen=True)
class Source:
    """The input as it was found: files, what is in them, their one schema and a digest of them all."""

    files: tuple[File, ...]
    layouts: tuple[FileInfo, ...]
    schema: pa.Schema
    sha256: str
    choices: tuple[str, ...] = ()
    """What was chosen of folders with several configurations or splits."""

    @property
    def rows(self) -> int:
        return sum(layout.rows for layout in self.layouts)


def inspect(
    files: Sequence[File], column: Column, choices: tuple[str, ...] = (), passed: Collection[str] | None = None
) -> Source:
    """Looks at every file: a Parquet file's footer, JSON lines and text from beginning to end.

    Of their columns, those to pass on are compared, all where None.

    Raises:
        ValueError: if a file is unreadable, lacks a column, or has a type there that does not go with another file's.
        OSError: if a file is gone, or its store cannot be reached.
    """
    with ThreadPoolExecutor(LOOKS_AT_A_TIME) as pool:
        layouts = tuple(pool.map(lambda file: inspect_file(file, column, passed), files))
    digest = hashlib.sha256("".join(layout.sha256 for layout in layouts).encode())
    return Source(tuple(files), layouts, unified(layouts, files, column, passed), digest.hexdigest(), choices)


def plan_units(source: Source, *, rows_per_unit: int, limit: int | None) -> list[Unit]:
    """Consecutive units of at most `rows_per_unit` rows that do not cross files, `limit` rows in all.

    Where a file's row groups are smaller than that, a unit is made of whole ones, so that no group is read twice.

    Raises:
        ValueError: if there would be more than MOST_UNITS.
    """
    units: list[Unit] = []
    left = source.rows if limit is None else limit
    for file, layout in zip(source.files, source.layouts, strict=True):
        start = 0
        for stop in _borders(layout.groups, rows_per_unit):
            if start >= left:  # a footer may tell of any number of rows after the limit
                break
            if len(units) == MOST_UNITS:
                more = f"{file.url}, of {layout.rows:,} rows, takes the input beyond {MOST_UNITS:,} shards"
                raise ValueError(f"{more}; give more rows to each with --rows-per-unit, or leave the file out")
            units.append(Unit(len(units), file, start, min(stop, left)))
            start = stop
        left -= min(left, layout.rows)
    return units


def default_rows_per_unit(rows: int) -> int:
    """Enough units to share out, from the rows alone, so that the shards do not depend on the number of workers."""
    return min(MOST_ROWS, max(FEWEST_ROWS, -(-rows // UNITS_WANTED)))


def _borders(groups: Sequence[int], rows_per_unit: int) -> Iterator[int]:
    """Where the units of a file end."""
    start = position = 0
    for rows in groups:
        if position > start and position + rows > start + rows_per_unit:
            yield (start := position)
        position += rows
        while position - start > rows_per_unit:
            yield (start := start + rows_per_unit)
    if position > start:
        yield position


Device = Literal["cpu", "cuda"]

# Linux's names for x86 instructions that multiply bfloat16. A core with AVX512-BF16 labelled 2.0 times as many tokens a
# second in it as in float32 with the shipped second-order model, 1.9 times with the estimator, 2.5 times with SmolLM2;
# without such instructions bfloat16 is slower than float32.
BFLOAT16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16"})
CPU_INFO = Path("/proc/cpuinfo")


def fast_dtype(device: Device, cpu_info: Path = CPU_INFO) -> Dtype:
    """bfloat16 on a GPU and on a CPU that multiplies in it, float32 on any other CPU."""
    return "bfloat16" if device == "cuda" or BFLOAT16_INSTRUCTIONS & _cpu_flags(cpu_info) else "float32"


def _cpu_flags(cpu_info: Path) -> set[str]:
    """What Linux says that the first core can do; nothing on other systems."""
    lines = cpu_info.read_text(encoding="utf-8").splitlines() if cpu_info.is_file() else []
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint from the Hub."""

    name: str
    """With the commit: USER/NAME@COMMIT."""
    folder: Path
    """Its copy on the node that prepared the run."""

    def here(self) -> Path:
        """Its copy on this node, fetched if there is none."""
        return Checkpoint.find(self.name).folder.resolve()


@dataclass(frozen=True)
class Run:
    """All that a unit needs beside its rows."""

    subset: Subset
    """Where the dataset goes."""
    checkpoints: tuple[Path, ...]
    """One, or one a fold."""
    tokenizer: Path | None
    """Of `input_ids`."""
    estimator_tokenizer: Path | None
    """Of the checkpoints, where it is another: labels are then moved to the tokens of `input_ids`."""
    provenance: Provenance
    source_schema: pa.Schema
    """Columns that are read."""
    schema: pa.Schema
    """Columns that are written."""
    units: int
    repository: Repository | None = None
    """Where the dataset is published, if anywhere."""
    snapshot: Snapshot | None = None
    """Where the checkpoints are fetched from, if from the Hub."""

    @property
    def column(self) -> Column:
        """What documents are read from."""
        settings = self.provenance
        return Column(settings.text_column, tokenized=self.tokenizer is None, longest=settings.longest_document)

    def on_this_node(self) -> "Run":
        """The same with paths that exist here, though nodes share no cache of the Hub.

        Raises:
            ValueError: if the checkpoint has to be fetched and cannot be.
        """
        if self.snapshot is None:
            return self
        there, here = self.snapshot.folder, self.snapshot.here()

        def moved(folder: Path) -> Path:
            return here / folder.relative_to(there) if folder.is_relative_to(there) else folder

        return replace(
            self,
            checkpoints=tuple(map(moved, self.checkpoints)),
            tokenizer=self.tokenizer and moved(self.tokenizer),
            estimator_tokenizer=self.estimator_tokenizer and moved(self.estimator_tokenizer),
        )
