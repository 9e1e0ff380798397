"""What the page of an annotated dataset says, as JSON values: figures of a sample, and documents out of it.

A label is a whole number of ROUNDING_NATS, null where a token has none; a token is its place among the texts.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from pipeline.reporting.measures import Document, measures_of
from pipeline.reporting.palette import LEVELS
from pipeline.reporting.sampling import LabelledSource, sampled_rows, short_name
from pipeline.reporting.statistics import BIN_NATS, MOST_GROUPS, MOST_NATS, POSITIONS_B, Statistics
from pipeline.reporting.token_texts import TokenTexts
from schemas.annotations import LIMITS, ROUNDING_NATS
from schemas.documents import is_text

LEAST_OCCURRENCES, TOKENS_LISTED = 10, 12
MOST_OF_ALL, MOST_OF_ONE = 300_000, 20_000  # tokens on a page: about 3 MB, and what a browser lays out in a moment
SHARE_BEYOND = 0.01  # of the labels, which the scale's ends do not reach

Values = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of a dataset is looked at."""

    documents: int = 200
    """Documents to show, of those in the sample."""
    sample: int = 2000
    """Documents for the statistics, from all over the dataset."""
    tokens: int | None = None
    """Tokens to show of a document, its first ones; by default 1,500 where 200 documents are shown, 20,000 of one."""
    seed: int = 0
    """Of the sample."""

    def __post_init__(self) -> None:
        for name in ("documents", "sample", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} to show must be at least 1, not {value}")
        if self.seed < 0:
            raise ValueError(f"the seed must be at least 0, not {self.seed}")

    def tokens_each(self, documents: int) -> int:
        """Tokens to show of each of so many documents."""
        return self.tokens or min(MOST_OF_ONE, MOST_OF_ALL // max(1, documents))


@dataclass(frozen=True)
class Sampled:
    """A sample's statistics, and the documents to show, whole."""

    statistics: Statistics
    shown: list[Document]


def page_contents(source: LabelledSource, tokenizer: Tokenizer | None, extent: Extent, by: str | None) -> Values:
    """Everything on the page.

    Raises:
        ValueError: if there is no document or no column `by`; as LabelledSource.documents does.
    """
    if not len(source.dataset):
        raise ValueError(f"{source.dataset.source} has no document to show")
    if by is not None and by not in source.source_columns:
        there = ", ".join(source.source_columns) or "none"
        raise ValueError(f"the source of {source.dataset.source} has no column {by}; it has {there}")
    columns = [by] if by else [name for name in source.source_columns if is_text(source.schema.field(name).type)]
    sampled = _read(source, extent, columns)
    statistics, texts = sampled.statistics, TokenTexts(tokenizer)
    column, most = by or statistics.few_groups(columns), extent.tokens_each(len(sampled.shown))
    return {
        "title": short_name(source.dataset),
        "told": [*_told(source, sampled, extent, most), LIMITS[source.dataset.provenance.method]],
        "rounding": ROUNDING_NATS,
        "levels": LEVELS,
        "series": source.series,
        "beside": None if source.against is None else len(source.series) - 1,
        "measures": _measures(source, statistics, texts),
        "least": LEAST_OCCURRENCES,
        "groups": None if column is None else _groups(column, statistics),
        **_documents(sampled.shown, texts, most),
    }


def _read(source: LabelledSource, extent: Extent, columns: Sequence[str]) -> Sampled:
    """All that is kept of a document that is not shown is in sums."""
    statistics = Statistics(2 * len(source.series) - 1, source.dataset.provenance.vocabulary)
    runs = sampled_rows(len(source.dataset), extent.sample, extent.seed)
    sample = sum(map(len, runs))
    documents = min(extent.documents, sample)
    places = {sample * place // documents for place in range(documents)}
    shown: list[Document] = []
    for run in runs:
        for document in source.documents(run, columns):
            if statistics.documents in places:
                shown.append(document)
            statistics.add(document)
    return Sampled(statistics, shown)


def _told(source: LabelledSource, sampled: Sampled, extent: Extent, most_tokens: int) -> Iterator[str]:
    """What was looked at."""
    rows, statistics, provenance = len(source.dataset), sampled.statistics, source.dataset.provenance
    first, more = provenance.source[0], len(provenance.source) - 1
    others = f" and {more:,} more" if more else ""
    compared = "" if source.against is None else f", beside {short_name(source.against)}"
    yield f"{provenance.method.capitalize()} labels of {first}{others}{compared}."
    drawn = "" if statistics.documents == rows else f", drawn from all over it with seed {extent.seed}"
    cut = any(len(document.tokens_N) > most_tokens for document in sampled.shown)
    shown = f", the first {most_tokens:,} tokens of each at most" if cut else ""
    yield (
        f"Shown: {len(sampled.shown):,} of {_documents_of(rows)}{shown}. "
        f"The figures below are of {_documents_of(statistics.documents)} with {statistics.tokens:,} tokens{drawn}."
    )


def _documents_of(count: int) -> str:
    return f"{count:,} document{'s' if count != 1 else ''}"


def _measures(source: LabelledSource, statistics: Statistics, texts: TokenTexts) -> list[Values]:
    measures = list(measures_of(source.series))
    series = len(source.series)
    ends = [_ends(statistics, place) for place in range(len(measures))]
    return [
        {
            "name": measure.name,
            "series": measure.series,
            "scale": _common(ends[:series] if place < series else ends[series:]),
            **_figures(statistics, place),
            **_tokens(statistics, place, texts),
        }
        for place, measure in enumerate(measures)
    ]


def _figures(statistics: Statistics, measure: int) -> Values:
    labelled, filled_B = int(statistics.labelled_M[measure]), np.flatnonzero(statistics.counts_MB[measure])
    first, stop = (int(filled_B[0]), int(filled_B[-1]) + 1) if labelled else (0, 0)
    positions_B = np.flatnonzero(statistics.position_counts_MB[measure])
    counts_B, sums_B = (of[measure][positions_B] for of in (statistics.position_counts_MB, statistics.position_sums_MB))
    return {
        "labelled": labelled,
        "mean": float(statistics.means_M[measure]) if labelled else None,
        "histogram": {
            "start": first * BIN_NATS - MOST_NATS,
            "width": BIN_NATS,
            "counts": statistics.counts_MB[measure, first:stop].tolist(),
        },
        "positions": {
            "first": POSITIONS_B[positions_B].tolist(),
            "counts": counts_B.tolist(),
            "means": (sums_B / counts_B).tolist(),
        },
    }


def _tokens(statistics: Statistics, measure: int, texts: TokenTexts) -> Values:
    """Text, labels, mean of the tokens with the highest means and the lowest."""
    ranked = [
        (texts.alone(token), count, mean) for token, count, mean in statistics.by_token(measure, LEAST_OCCURRENCES)
    ]
    return {"highest": ranked[:TOKENS_LISTED], "lowest": ranked[: -TOKENS_LISTED - 1 : -1]}


def _groups(column: str, statistics: Statistics) -> Values:
    """Value, documents, tokens, mean of every measure, the most documents first."""
    groups = sorted(statistics.groups[column].items(), key=lambda item: -item[1].documents)
    return {
        "column": column,
        "rows": [
            (
                name,
                group.documents,
                group.tokens,
                [None if math.isnan(mean) else mean for mean in group.means_M.tolist()],
            )
            for name, group in groups[:MOST_GROUPS]
        ],
        "more": len(groups) > MOST_GROUPS,
    }


def _documents(shown: Sequence[Document], texts: TokenTexts, most_tokens: int) -> Values:
    """The texts that occur, the most frequent first, and the documents' tokens as places among them."""
    tokens = [texts.of(document.tokens_N[:most_tokens].tolist()) for document in shown]
    place_of = {
        text: place for place, (text, _) in enumerate(Counter(t for each in tokens for t in each).most_common())
    }
    return {
        "texts": list(place_of),
        "documents": [
            {
                "row": document.row,
                "size": len(document.tokens_N),
                "tokens": [place_of[text] for text in each],
                "labels": [_rounded(labels_N[:most_tokens]) for labels_N in document.labels_SN],
            }
            for document, each in zip(shown, tokens, strict=True)
        ],
    }


def _rounded(labels_N: np.ndarray) -> list[int | None]:
    given_N = ~np.isnan(labels_N)
    steps_N = np.round(np.where(given_N, labels_N, 0) / ROUNDING_NATS).astype(np.int64)
    return [step if given else None for step, given in zip(steps_N.tolist(), given_N.tolist(), strict=True)]


def _ends(statistics: Statistics, measure: int) -> tuple[int, int]:
    """Whole nats between which all but the outermost labels lie."""
    if not statistics.labelled_M[measure]:
        return 0, 1
    low = statistics.share_below(measure, SHARE_BEYOND) - BIN_NATS
    high = statistics.share_below(measure, 1 - SHARE_BEYOND)
    return min(0, math.floor(low)), max(1, math.ceil(high))


def _common(ends: Sequence[tuple[int, int]]) -> tuple[int, int]:
    lows, highs = zip(*ends, strict=True)
    return min(lows), max(highs)
