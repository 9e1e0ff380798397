"""Sample of an annotated dataset: the sample's size, the choice of rows, and the documents with their labels.

A series is a column of labels, or the `entropy` of a dataset to compare with.

S series, M measures, N tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.annotated import AnnotatedDataset, Row, as_rows
from pipeline.data.shards import SHARD
from schemas.annotations import ENTROPY, ENTROPY_COLUMNS, INPUT_IDS, MEAN_ENTROPY, NUM_TOKENS, PER_TOKEN

# Limits for the tokens of a page, which then has about 3 MB, and of a document, which a browser then lays out at once.
MOST_OF_ALL, MOST_OF_ONE = 300_000, 20_000


@dataclass(frozen=True, kw_only=True)
class SampleSize:
    """Size of the sample, and of the part of the sample that is shown."""

    documents: int = 200
    """Number of documents to show, out of the sample."""
    sample: int = 2000
    """Number of documents in the sample for the statistics, drawn from the whole dataset."""
    tokens: int | None = None
    """Maximum number of tokens to show of each document. The default is 300,000 divided by the number of documents to
    show, but at most 20,000."""
    seed: int = 0
    """Random seed of the sample."""

    def __post_init__(self) -> None:
        for name in ("documents", "sample", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} to show must be at least 1, not {value}")
        if self.seed < 0:
            raise ValueError(f"the seed must be at least 0, not {self.seed}")

    def tokens_each(self, documents: int) -> int:
        """Return the maximum number of tokens to show of each document, if this many documents are shown."""
        return self.tokens or min(MOST_OF_ONE, max(1, MOST_OF_ALL // max(1, documents)))


@dataclass(frozen=True)
class Document:
    """A document: a row of the dataset, or its first tokens."""

    row: int
    tokens_N: np.ndarray
    labels_SN: np.ndarray
    """Labels of each series in nats, float32; NaN for a token without a label."""
    source: dict[str, Any] = field(default_factory=dict)
    """The document's values in columns of the source, by column name."""
    left: int = 0
    """Number of the row's remaining tokens, which are not in `tokens_N`."""

    def first(self, tokens: int) -> "Document":
        """Return a document that copies only the first `tokens` tokens, so that this document's memory can be freed."""
        kept, left = self.tokens_N[:tokens].copy(), max(0, len(self.tokens_N) - tokens)
        return replace(self, tokens_N=kept, labels_SN=self.labels_SN[:, :tokens].copy(), left=self.left + left)

    @property
    def size(self) -> int:
        """Number of tokens of the row."""
        return len(self.tokens_N) + self.left

    def measured(self, start: int, stop: int) -> np.ndarray:
        """Return all measures of the tokens from `start` up to `stop`, float64 [M, N]; NaN for a token without a label.

        The measures are the labels of all series, then the first series minus each of the other series.
        """
        labels_SN = self.labels_SN[:, start:stop]
        return np.concatenate([labels_SN, labels_SN[:1] - labels_SN[1:]]).astype(np.float64)


@dataclass(frozen=True)
class Measure:
    """A measure of tokens: the labels of one series, or the difference of the first series and another."""

    name: str
    series: tuple[int, ...]


def measures_of(series: Sequence[str]) -> Iterator[Measure]:
    """Yield the measures of the named series, in the order of the rows of `Document.measured`."""
    yield from (Measure(name, (index,)) for index, name in enumerate(series))
    yield from (Measure(f"{series[0]} − {name}", (0, index)) for index, name in enumerate(series[1:], 1))


RUNS = 20  # a run in the middle of a row group, of at most 100 MB, requires decoding the group up to the run


def sampled_rows(rows: int, size: int, seed: int) -> list[range]:
    """Return the ranges of rows that are in the sample: at most RUNS ranges, spread over the dataset.

    The dataset is divided into equal stretches, with a range at a random place in each stretch. Together, the ranges
    have `size` rows, or all rows of a smaller dataset.
    """
    size = min(rows, size)
    runs = min(RUNS, size)
    offsets = np.random.default_rng(seed).random(runs)
    starts = [int((rows - size) * (run + offset) / runs) for run, offset in enumerate(offsets)]
    bounds = [size * run // max(1, runs) for run in range(runs + 1)]
    return [range(start + bounds[run], start + bounds[run + 1]) for run, start in enumerate(starts)]


@dataclass(frozen=True)
class LabelledSource:
    """An annotated dataset to report on, possibly compared with another dataset."""

    dataset: AnnotatedDataset
    against: AnnotatedDataset | None = None
    """Another dataset with labels of the same documents."""

    def __post_init__(self) -> None:
        if self.against is not None and len(self.dataset) != len(self.against):
            ours = f"{self.dataset.source} has {len(self.dataset):,} documents"
            theirs = f"{self.against.source} {len(self.against):,}"
            raise ValueError(f"{ours} and {theirs}; compare labels of the same documents")

    @property
    def label_columns(self) -> list[str]:
        return [name for name in ENTROPY_COLUMNS if name in self.dataset.schema.names]

    @property
    def series(self) -> list[str]:
        """Names of the series: one for each label column, and one more for the other dataset if there is one.

        In a comparison, the two `entropy` series are named after their datasets.
        """
        if self.against is None:
            return [name.replace("_", " ") for name in self.label_columns]
        names = [short_name(self.dataset), short_name(self.against)]
        ours, theirs = names if names[0] != names[1] else (self.dataset.source, self.against.source)
        return [ours, *(name.replace("_", " ") for name in self.label_columns[1:]), theirs]

    @property
    def source_columns(self) -> list[str]:
        """Names of the columns that were copied from the source, except the text of the documents."""
        ours = {INPUT_IDS, *PER_TOKEN, NUM_TOKENS, MEAN_ENTROPY, self.dataset.provenance.text_column, "text"}
        return [name for name in self.dataset.schema.names if name not in ours]

    @property
    def scalar_columns(self) -> list[str]:
        """Names of the source's columns that hold a single number, text or time per row."""
        types = {name: self.dataset.schema.field(name).type for name in self.source_columns}
        return [name for name, kind in types.items() if not pa.types.is_nested(kind) and not is_bytes(kind)]

    def documents(self, rows: range, columns: Sequence[str] = ()) -> Iterator[Document]:
        """Yield the documents in these rows, with their labels and their values in these columns of the source.

        Raises:
            ValueError: if a label is not finite, if a document does not have one label per token, if the dataset to
                compare with has different tokens, or if AnnotatedDataset.batches raises it.
        """
        names = (INPUT_IDS, *self.label_columns, *columns)
        own = _rows(self.dataset, names, rows)
        others = None if self.against is None else _rows(self.against, (INPUT_IDS, ENTROPY), rows)
        for row, values in zip(rows, own, strict=True):
            labels = [values[name] for name in self.label_columns]
            if self.against is not None and others is not None:
                other = next(others)
                if not np.array_equal(values[INPUT_IDS], other[INPUT_IDS]):
                    raise ValueError(
                        f"row {row} has other tokens in {self.against.source} than in {self.dataset.source}; "
                        f"{_remedy(self.dataset, self.against)}"
                    )
                labels.append(other[ENTROPY])
            yield Document(row, values[INPUT_IDS], np.stack(labels), {name: values[name] for name in columns})


def is_bytes(kind: pa.DataType) -> bool:
    """True if an Arrow type holds bytes that are not text."""
    of_bytes = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
    return any(is_of(kind) for is_of in of_bytes)


def short_name(dataset: AnnotatedDataset) -> str:
    """Return the name of the dataset's folder or repository, followed by the name of the subset."""
    found = SHARD.fullmatch(dataset.shards[0].url)
    assert found is not None
    return f"{found[1].rpartition('/')[2].partition('@')[0]}/{found[2]}"


def _remedy(one: AnnotatedDataset, other: AnnotatedDataset) -> str:
    """Return advice on how to compare the labels of two datasets with different tokens."""
    if one.tokenizer is None:
        one, other = other, one
    if one.tokenizer is None:
        return "compare labels of the same documents and tokenizer"
    if one.provenance.tokenizer_sha256 == other.provenance.tokenizer_sha256:
        return "compare labels of the same documents"
    return (
        f"for the same documents, annotate those of {other.source} again with --tokenizer {one.tokenizer}, which moves "
        "the labels to the same tokens"
    )


def _rows(dataset: AnnotatedDataset, names: Sequence[str], rows: range) -> Iterator[Row]:
    return chain.from_iterable(map(as_rows, dataset.batches(names, rows.start, rows.stop)))
