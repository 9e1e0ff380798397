"""A dataset of a million tokens to export, and the ids and labels that its exports must hold."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.label_units import NO_LABEL
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.annotated import write_annotated
from tests.conftest import RunCommand

EXPORT = "pipeline.export"
SEPARATOR = 0


@dataclass(frozen=True)
class Documents:
    """Token ids of documents, and their labels in units of 1/128 nat. NO_LABEL stands for a missing label."""

    ids: list[np.ndarray]
    units: list[np.ndarray]

    @cached_property
    def separated(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and labels of each document that is not empty, with a separator at the end."""
        pairs = zip(self.ids, self.units, strict=True)
        return [(np.append(ids, SEPARATOR), np.append(units, np.int16(NO_LABEL))) for ids, units in pairs if len(ids)]


@pytest.fixture(scope="session")
def documents() -> Documents:
    """Return documents of a million tokens in all. Some documents are empty, and some tokens have no label."""
    random = np.random.default_rng(0)
    sizes = random.integers(0, 1000, size=2500) * (random.random(2500) > 0.1)
    ids = [random.integers(1, 8192, size=size) for size in sizes]
    nats = [np.where(random.random(size) < 0.05, np.nan, random.gamma(1, 2.5, size)) for size in sizes]
    units = [np.where(np.isnan(row), NO_LABEL, np.round(np.nan_to_num(row) * 128)).astype(np.int16) for row in nats]
    return Documents(ids, units)


@pytest.fixture(scope="session")
def dataset(documents: Documents, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the documents as an annotated dataset of three shards."""
    nats = [np.where(row == NO_LABEL, np.nan, row / 128).tolist() for row in documents.units]
    ids = [row.tolist() for row in documents.ids]
    folder = write_annotated(tmp_path_factory.mktemp("export") / "set", ids, nats, shards=3, vocabulary=8192)
    copy_tokenizer(SHIPPED / "tokenizer", folder / "tokenizer" / "exact")
    return folder


@pytest.fixture(scope="session")
def expected(documents: Documents) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all documents as one array, and their labels as another, with separators after documents."""
    ids, units = zip(*documents.separated, strict=True)
    assert sum(map(len, ids)) > 1_000_000
    return np.concatenate(ids), np.concatenate(units)


def exported(run_command: RunCommand, dataset: Path, output: Path, kind: str, *more: object) -> Path:
    assert run_command(EXPORT, dataset, "--to", kind, "--output", output, *more) == 0
    return output


def whole_windows(folder: Path, pattern: str, length: int) -> list[slice]:
    """Return all complete windows of `length` ids in the files of a folder that match a pattern.

    The files hold 16-bit ids. A window is returned as a slice of the ids of all files, joined in the order of their
    names. No window spans two files.
    """
    sizes = [file.stat().st_size // 2 for file in sorted(folder.glob(pattern))]
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    firsts = [
        start + at for start, size in zip(starts, sizes, strict=True) for at in range(0, size - length + 1, length)
    ]
    return [slice(first, first + length) for first in firsts]
