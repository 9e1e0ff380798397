"""Figures of a sample: sums that documents are added to one by one, and from them the values on the page.

M measures, N tokens, B bins, V vocabulary.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.messages import visible
from pipeline.report.sampling import Document, measures_of
from pipeline.report.tokens import TokenTexts

BIN_NATS, MOST_NATS = 0.25, 30
BINS = int(2 * MOST_NATS / BIN_NATS)
"""From -MOST_NATS to MOST_NATS; labels beyond are counted in the outermost bins."""
POSITIONS_B = np.unique(np.floor(2.0 ** np.arange(0, 32, 0.25)).astype(np.int64)) - 1
"""Position of each bin's first token: finer at the beginning of documents, where entropy falls fastest."""
MOST_GROUPS = 20
VALUES_KEPT = 10_000  # of a single column; of several, as many as show that there are more than MOST_GROUPS
LONGEST_VALUE = 200  # characters; a longer value is named by its digest
PIECE_TOKENS = 2**18  # tokens of a document that are added at a time: they take 100 bytes each
NO_VALUE = "(none)"
LEAST_OCCURRENCES, TOKENS_LISTED = 10, 12
SHARE_BEYOND = 0.01  # of the labels, which the scale's ends do not reach

Values = dict[str, Any]


@dataclass
class Group:
    """Documents that share a value of a column of the source."""

    documents: int
    tokens: int
    counts_M: np.ndarray
    sums_M: np.ndarray

    @property
    def means_M(self) -> np.ndarray:
        """Nats; NaN where no token is labelled."""
        return _means(self.sums_M, self.counts_M)


class Statistics:
    """Counts and sums of every measure: its histogram, and its means by position, token and group."""

    def __init__(self, measures: int, vocabulary: int) -> None:
        self.documents = self.tokens = 0
        self.counts_MB = np.zeros((measures, BINS), np.int64)
        self.position_counts_MB = np.zeros((measures, len(POSITIONS_B)), np.int64)
        self.position_sums_MB = np.zeros((measures, len(POSITIONS_B)))
        self.token_counts_MV = np.zeros((measures, vocabulary), np.int64)
        self.token_sums_MV = np.zeros((measures, vocabulary))
        self.groups: dict[str, dict[str, Group]] = {}

    def add(self, document: Document) -> None:
        """Adds a document, also to the group of its value in each column of the source."""
        self.documents += 1
        self.tokens += len(document.tokens_N)
        counts_M, sums_M = np.zeros(len(self.counts_MB), np.int64), np.zeros(len(self.counts_MB))
        for start in range(0, len(document.tokens_N), PIECE_TOKENS):
            measures_MN = document.measured(start, start + PIECE_TOKENS)
            self._add_tokens(document.tokens_N[start : start + PIECE_TOKENS], measures_MN, start)
            counts_M += (~np.isnan(measures_MN)).sum(axis=1)
            sums_M += np.nansum(measures_MN, axis=1)
        most = VALUES_KEPT if len(document.source) == 1 else MOST_GROUPS + 1
        for column, value in document.source.items():
            group = self._group(self.groups.setdefault(column, {}), value, most)
            if group is not None:
                group.documents += 1
                group.tokens += len(document.tokens_N)
                group.counts_M = group.counts_M + counts_M
                group.sums_M = group.sums_M + sums_M

    def _add_tokens(self, tokens_N: np.ndarray, measures_MN: np.ndarray, start: int) -> None:
        """Adds tokens from position `start` on."""
        positions_N = np.searchsorted(POSITIONS_B, np.arange(start, start + len(tokens_N)), side="right") - 1
        for measure, values_N in enumerate(measures_MN):
            labelled_N = ~np.isnan(values_N)
            nats, tokens, positions = values_N[labelled_N], tokens_N[labelled_N], positions_N[labelled_N]
            bins = np.clip(np.floor((nats + MOST_NATS) / BIN_NATS), 0, BINS - 1).astype(np.int64)
            np.add.at(self.counts_MB[measure], bins, 1)
            np.add.at(self.position_counts_MB[measure], positions, 1)
            np.add.at(self.position_sums_MB[measure], positions, nats)
            np.add.at(self.token_counts_MV[measure], tokens, 1)
            np.add.at(self.token_sums_MV[measure], tokens, nats)

    @property
    def labelled_M(self) -> np.ndarray:
        """Number of tokens that have a label."""
        labelled_M: np.ndarray = self.counts_MB.sum(axis=1)
        return labelled_M

    @property
    def means_M(self) -> np.ndarray:
        """Nats; NaN where no token is labelled."""
        return _means(self.position_sums_MB.sum(axis=1), self.labelled_M)

    def share_below(self, measure: int, share: float) -> float:
        """The upper end, in nats, of the bin that this share of the labels falls in or below."""
        running_B = np.cumsum(self.counts_MB[measure])
        return float((np.searchsorted(running_B, share * running_B[-1]) + 1) * BIN_NATS - MOST_NATS)

    def by_token(self, measure: int, least: int) -> Iterator[tuple[int, int, float]]:
        """Token, number of labels, mean in nats; of tokens with at least so many labels, the highest mean first."""
        counts_V, sums_V = self.token_counts_MV[measure], self.token_sums_MV[measure]
        often = np.flatnonzero(counts_V >= least)
        means = sums_V[often] / counts_V[often]
        for rank in np.argsort(-means, kind="stable"):
            yield int(often[rank]), int(counts_V[often[rank]]), float(means[rank])

    def few_groups(self, columns: Sequence[str]) -> str | None:
        """The first of the columns whose values make a few groups of several documents."""
        most = min(MOST_GROUPS, self.documents // 2)
        return next((column for column in columns if 1 < len(self.groups.get(column, ())) <= most), None)

    def _group(self, groups: dict[str, Group], value: Any, most: int) -> Group | None:
        """The group of a value; None for a new value once as many others are kept."""
        name = value_name(value)
        if name not in groups and len(groups) >= most:
            return None
        none_M = np.zeros(len(self.counts_MB))
        return groups.setdefault(name, Group(0, 0, none_M.astype(np.int64), none_M))


def value_name(value: Any) -> str:
    """A value as shown on the page; a long one is cut short, with its length and the beginning of its digest."""
    text = NO_VALUE if value is None else str(value)
    if len(text) <= LONGEST_VALUE:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{text[:LONGEST_VALUE]}… ({len(text):,} characters, {digest})"


def _means(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return means


def measure_figures(series: Sequence[str], statistics: Statistics, texts: TokenTexts) -> list[Values]:
    """Name, series, scale and figures of every measure; labels share one scale, differences another."""
    measures = list(measures_of(series))
    ends = [_ends(statistics, index) for index in range(len(measures))]
    labels, differences = ends[: len(series)], ends[len(series) :]
    return [
        {
            "name": visible(measure.name),
            "series": measure.series,
            "scale": _common(labels if index < len(series) else differences),
            **_figures(statistics, index),
            **_tokens(statistics, index, texts),
        }
        for index, measure in enumerate(measures)
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
    """Text, number of labels and mean of the tokens with the highest and the lowest means."""
    ranked = [
        (texts.alone(token), count, mean) for token, count, mean in statistics.by_token(measure, LEAST_OCCURRENCES)
    ]
    return {"highest": ranked[:TOKENS_LISTED], "lowest": ranked[: -TOKENS_LISTED - 1 : -1]}


def group_figures(column: str, statistics: Statistics) -> Values:
    """Value, documents, tokens and means of every group of a column, those with the most documents first."""
    groups = sorted(statistics.groups[column].items(), key=lambda item: -item[1].documents)
    return {
        "column": visible(column),
        "rows": [
            (
                visible(name),
                group.documents,
                group.tokens,
                [None if math.isnan(mean) else mean for mean in group.means_M.tolist()],
            )
            for name, group in groups[:MOST_GROUPS]
        ],
        "more": len(groups) > MOST_GROUPS,
    }


def _ends(statistics: Statistics, measure: int) -> tuple[int, int]:
    """Whole nats between which all labels except the outermost lie."""
    if not statistics.labelled_M[measure]:
        return 0, 1
    low = statistics.share_below(measure, SHARE_BEYOND) - BIN_NATS
    high = statistics.share_below(measure, 1 - SHARE_BEYOND)
    return min(0, math.floor(low)), max(1, math.ceil(high))


def _common(ends: Sequence[tuple[int, int]]) -> tuple[int, int]:
    lows, highs = zip(*ends, strict=True)
    return min(lows), max(highs)
