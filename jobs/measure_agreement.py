"""Measure the agreement of labels with a reference, for all documents and for groups by length or by a column.

Needs two annotated datasets that share documents. One has the labels to measure. The other has the labels of the
reference, for example of a larger model. If the datasets have different tokenizers, the reference's labels are
transferred to the tokens of the measured labels. Documents are then paired by their tokens. To compare labels fairly,
take documents on which neither labeller was trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.data.annotated import find_annotations
from pipeline.labels.agreement import HEADER, LEGEND, Pair, agreement, paired
from pipeline.messages import one_line, say
from pipeline.progress import stage

LENGTHS = (128, 256, 512, 1024, 2048)  # tokens at which groups of documents begin
WIDTH = 28


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the measurement: two datasets, and a column."""

    labels: str
    """Annotated dataset whose labels are measured: a folder or hf://datasets/USER/NAME."""
    reference: str
    """Annotated dataset with the labels of the reference. It must share documents with --labels."""
    by: str | None = None
    """Column of --labels, for example a language or a site. The agreement is printed for each value of this column."""
    groups: int = 20
    """Maximum number of values of the column --by to print. Values with the most tokens come first."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "groups")


def measure_agreement(config: Config) -> None:
    """Measure the agreement of labels with a reference, by length of the documents and by a column."""
    with stage("finding the datasets"):
        labels, reference = find_annotations(config.labels), find_annotations(config.reference)
    with stage("pairing the documents"):
        found = paired(labels, reference, config.by)
    say(f"documents      {len(found.pairs):,} of both{found.left_out}")
    for column in found.columns:
        say("", f"{column:{WIDTH}}{'documents':>10}{HEADER}")
        for name, pairs in groups(found.pairs, config):
            figures = agreement(pairs, column) or "  no labels that differ"
            say(f"{one_line(name)[: WIDTH - 1]:{WIDTH}}{len(pairs):>10,}{figures}")
    say("", *LEGEND)


def groups(pairs: Sequence[Pair], config: Config) -> Iterator[tuple[str, Sequence[Pair]]]:
    """Yield the name and the documents of each group.

    The first group is all documents. Then follow a group per range of lengths, and a group per value of `by`.
    """
    yield "all documents", pairs
    for start, stop in zip((1, *LENGTHS), (*LENGTHS, None), strict=True):
        name = f"{start:,} tokens or more" if stop is None else f"{start:,} to {stop - 1:,} tokens"
        inside = [pair for pair in pairs if start <= len(pair.ids_T) and (stop is None or len(pair.ids_T) < stop)]
        if inside:
            yield name, inside
    if config.by is not None:
        yield from _by_value(pairs, config)


def _by_value(pairs: Sequence[Pair], config: Config) -> Iterator[tuple[str, Sequence[Pair]]]:
    values = dict[str | None, list[Pair]]()
    for pair in pairs:
        values.setdefault(pair.domain, []).append(pair)
    tokens = {value: sum(len(pair.ids_T) for pair in members) for value, members in values.items()}
    largest = sorted(values, key=lambda value: -tokens[value])
    for value in largest[: config.groups]:
        yield f"{config.by} {'null' if value is None else value}", values[value]
    if others := largest[config.groups :]:
        yield f"{len(others):,} other values", [pair for value in others for pair in values[value]]


if __name__ == "__main__":
    run(measure_agreement, "jobs.measure_agreement", resumes=False)
