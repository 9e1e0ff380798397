"""Rows of an annotated dataset for people to look at: a sample spread over all of it, read a batch at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.data.annotated import AnnotatedDataset, Row, as_rows, read_labelled
from pipeline.data.shards import ENTROPY_COLUMNS, SHARD, inspect_shard
from pipeline.reporting.measures import Document
from schemas.annotations import ENTROPY, INPUT_IDS, MEAN_ENTROPY, NUM_TOKENS

RUNS = 20  # a run in the middle of a row group, of 100 MB at the most, costs its decoding up to there


def sampled_rows(rows: int, wanted: int, seed: int) -> list[range]:
    """Runs of rows in order, one in each of RUNS equal stretches or as many as are wanted, at places of chance.

    They hold `wanted` rows together, or all.
    """
    wanted = min(rows, wanted)
    runs = min(RUNS, wanted)
    places = np.random.default_rng(seed).random(runs)
    starts = [int((rows - wanted) * (run + place) / runs) for run, place in enumerate(places)]
    bounds = [wanted * run // max(1, runs) for run in range(runs + 1)]
    return [range(start + bounds[run], start + bounds[run + 1]) for run, start in enumerate(starts)]


@dataclass(frozen=True)
class LabelledSource:
    """An annotated dataset, and which of its columns are read."""

    dataset: AnnotatedDataset
    schema: pa.Schema
    """Of all its columns."""
    against: AnnotatedDataset | None = None
    """The same documents with other labels."""

    @classmethod
    def of(cls, dataset: AnnotatedDataset, against: AnnotatedDataset | None = None) -> "LabelledSource":
        """The dataset after a look at its first shard.

        Raises:
            ValueError: if the other dataset has not as many documents; as inspect_file does.
        """
        if against is not None and len(dataset) != len(against):
            counted = f"{dataset.source} has {len(dataset):,} documents and {against.source} {len(against):,}"
            raise ValueError(f"{counted}; compare labels of the same documents")
        return cls(dataset, inspect_shard(dataset.shards[0]).schema, against)

    @property
    def label_columns(self) -> list[str]:
        return [name for name in ENTROPY_COLUMNS if name in self.schema.names]

    @property
    def series(self) -> list[str]:
        """Names of what every token is labelled with."""
        if self.against is None:
            return [name.replace("_", " ") for name in self.label_columns]
        names = [short_name(self.dataset), short_name(self.against)]
        ours, theirs = names if names[0] != names[1] else (self.dataset.source, self.against.source)
        return [ours, *(name.replace("_", " ") for name in self.label_columns[1:]), theirs]

    @property
    def source_columns(self) -> list[str]:
        """Columns that the source had, but for its documents."""
        ours = {INPUT_IDS, *ENTROPY_COLUMNS, NUM_TOKENS, MEAN_ENTROPY, self.dataset.provenance.text_column, "text"}
        return [name for name in self.schema.names if name not in ours]

    def documents(self, rows: range, columns: Sequence[str] = ()) -> Iterator[Document]:
        """These rows, with the values of these columns of the source.

        Raises:
            ValueError: if labels are not finite or not one a token, or the other dataset's tokens are not the same; as
                read_rows does.
        """
        names = (INPUT_IDS, *self.label_columns, *columns)
        own = _rows(self.dataset, rows, pa.schema([self.schema.field(name) for name in names]))
        others = None if self.against is None else _rows(self.against, rows, self.against.schema)
        for row, values in zip(rows, own, strict=True):
            labels = [values[name] for name in self.label_columns]
            if self.against is not None and others is not None:
                other = next(others)
                if not np.array_equal(values[INPUT_IDS], other[INPUT_IDS]):
                    raise ValueError(
                        f"row {row} has other tokens in {self.against.source} than in {self.dataset.source}; "
                        "compare labels of the same documents and tokenizer"
                    )
                labels.append(other[ENTROPY])
            yield Document(row, values[INPUT_IDS], np.stack(labels), {name: values[name] for name in columns})


def short_name(dataset: AnnotatedDataset) -> str:
    """The last part of the dataset's place and its subset."""
    found = SHARD.fullmatch(dataset.shards[0].url)
    assert found is not None
    return f"{found[1].rpartition('/')[2].partition('@')[0]}/{found[2]}"


def _rows(dataset: AnnotatedDataset, rows: range, schema: pa.Schema) -> Iterator[Row]:
    first = 0
    for shard, length in zip(dataset.shards, dataset.rows, strict=True):
        start, stop = max(rows.start, first), min(rows.stop, first + length)
        if start < stop:
            for batch in read_labelled(shard, start - first, stop - first, schema, dataset.vocabulary):
                yield from as_rows(batch)
        first += length
