"""Statistics of a sample: sums over its documents, from which the values on the report page are computed.

A measure is a series of labels, or the difference of two series.

M measures, N tokens, B bins, V vocabulary.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.messages import visible
from pipeline.report.sampling import Document, measures_of
from pipeline.report.tokens import TokenTexts

BIN_NATS, MOST_NATS = 0.25, 30
BINS = int(2 * MOST_NATS / BIN_NATS)
"""Number of bins from -MOST_NATS to MOST_NATS. The outermost bins also count the labels outside this range."""
POSITIONS_B = np.unique(np.floor(2.0 ** np.arange(0, 32, 0.25)).astype(np.int64)) - 1
"""First position in each bin of token positions. Bins are narrower at the start, where entropy falls fastest."""
MOST_GROUPS = 20
VALUES_KEPT = 10_000  # most groups of a single column; with several columns, the limit is MOST_GROUPS + 1 for each
LONGEST_VALUE = 200  # characters; a longer value is truncated, with its digest appended
PIECE_TOKENS = 2**18  # number of a document's tokens that are added at a time; each takes 100 bytes of memory
NO_VALUE = "(none)"
LEAST_OCCURRENCES, TOKENS_LISTED = 10, 12
Values = dict[str, Any]
"""JSON object with values for the page's script."""
LEAST_VARIANCE = 1e-9  # nats²; lower values are rounding errors, because labels are multiples of 1/128 nat
SHARE_BEYOND = 0.01  # share of the labels that lie beyond each end of the scale


@dataclass
class Group:
    """Counts and sums over the documents that have the same value in a column of the source."""

    documents: int
    tokens: int
    counts_M: np.ndarray
    sums_M: np.ndarray

    @property
    def means_M(self) -> np.ndarray:
        """Mean of each measure in nats; NaN if no token is labelled."""
        return means_of(self.sums_M, self.counts_M)


class Statistics:
    """Counts and sums of every measure, for a histogram and for means by position, token and group."""

    def __init__(self, measures: int, vocabulary: int) -> None:
        self.documents = self.tokens = 0
        self.counts_MB = np.zeros((measures, BINS), np.int64)
        self.position_counts_MB = np.zeros((measures, len(POSITIONS_B)), np.int64)
        self.position_sums_MB = np.zeros((measures, len(POSITIONS_B)))
        self.token_counts_MV = np.zeros((measures, vocabulary), np.int64)
        self.token_sums_MV = np.zeros((measures, vocabulary))
        self.groups: dict[str, dict[str, Group]] = {}

    def add(self, document: Document, columns: Sequence[str] | None = None) -> None:
        """Add a document to the sums, and to its group in each of `columns` (by default, all columns of the source)."""
        columns = list(document.source) if columns is None else columns
        self.documents += 1
        self.tokens += len(document.tokens_N)
        counts_M, sums_M = np.zeros(len(self.counts_MB), np.int64), np.zeros(len(self.counts_MB))
        for start in range(0, len(document.tokens_N), PIECE_TOKENS):
            measures_MN = document.measured(start, start + PIECE_TOKENS)
            self._add_tokens(document.tokens_N[start : start + PIECE_TOKENS], measures_MN, start)
            counts_M += (~np.isnan(measures_MN)).sum(axis=1)
            sums_M += np.nansum(measures_MN, axis=1)
        most = VALUES_KEPT if len(columns) == 1 else MOST_GROUPS + 1
        for column in columns:
            group = self._group(self.groups.setdefault(column, {}), document.source[column], most)
            if group is not None:
                group.documents += 1
                group.tokens += len(document.tokens_N)
                group.counts_M = group.counts_M + counts_M
                group.sums_M = group.sums_M + sums_M

    def _add_tokens(self, tokens_N: np.ndarray, measures_MN: np.ndarray, start: int) -> None:
        """Add consecutive tokens of a document to the sums. The first token is at position `start`."""
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
        """Number of labelled tokens for each measure."""
        labelled_M: np.ndarray = self.counts_MB.sum(axis=1)
        return labelled_M

    @property
    def means_M(self) -> np.ndarray:
        """Mean of each measure in nats; NaN if no token is labelled."""
        return means_of(self.position_sums_MB.sum(axis=1), self.labelled_M)

    def share_below(self, measure: int, share: float) -> float:
        """Return the nats below which the given share of a measure's labels lies, rounded up to a bin's end."""
        running_B = np.cumsum(self.counts_MB[measure])
        return float((np.searchsorted(running_B, share * running_B[-1]) + 1) * BIN_NATS - MOST_NATS)

    def by_token(self, measure: int, least: int) -> Iterator[tuple[int, int, float]]:
        """Yield the id, the number of labels and the mean in nats of each token that has at least `least` labels.

        Tokens with the highest means come first.
        """
        counts_V, sums_V = self.token_counts_MV[measure], self.token_sums_MV[measure]
        often = np.flatnonzero(counts_V >= least)
        means = sums_V[often] / counts_V[often]
        for rank in np.argsort(-means, kind="stable"):
            yield int(often[rank]), int(counts_V[often[rank]]), float(means[rank])

    def few_groups(self, columns: Sequence[str]) -> str | None:
        """Return the first of these columns that divides the documents into a few groups; None if no column does.

        A few groups are at least two, at most MOST_GROUPS, and at most half as many as there are documents.
        """
        most = min(MOST_GROUPS, self.documents // 2)
        return next((column for column in columns if 1 < len(self.groups.get(column, ())) <= most), None)

    def _group(self, groups: dict[str, Group], value: Any, most: int) -> Group | None:
        """Return the group of a value, and create the group if the value is new.

        Return None if the value is new, but `groups` already has `most` groups.
        """
        name = value_name(value)
        if name not in groups and len(groups) >= most:
            return None
        none_M = np.zeros(len(self.counts_MB))
        return groups.setdefault(name, Group(0, 0, none_M.astype(np.int64), none_M))


@dataclass
class Agreement:
    """Agreement of two series of labels x and y, as sums over the tokens that have both labels."""

    labels: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(6))
    """Sums of x, y, x², y², xy and |x - y|, in this order."""

    def add(self, first_N: np.ndarray, other_N: np.ndarray) -> None:
        """Add a document's two series of labels, float32 [N], with NaN for tokens without a label."""
        both_N = ~np.isnan(first_N) & ~np.isnan(other_N)
        x, y = (labels_N[both_N].astype(np.float64) for labels_N in (first_N, other_N))
        self.labels += len(x)
        self.sums += [x.sum(), y.sum(), x @ x, y @ y, x @ y, np.abs(x - y).sum()]

    def figures(self, series: Sequence[str]) -> Values | None:
        """Return the agreement as values for the report page. Return None if no token has both labels.

        The values are the names of x and y, the number of tokens with both labels, the mean of x - y and of |x - y| in
        nats, the squared correlation of x and y, and R² of y as a prediction of x. R² is None if x does not vary. The
        squared correlation is None if x or y does not vary.

        Args:
            series: names of all series; the first name is that of x, and the last name that of y.
        """
        if not self.labels:
            return None
        x, y, xx, yy, xy, apart = self.sums / self.labels
        of_x, of_y = xx - x * x, yy - y * y
        vary = min(of_x, of_y) > LEAST_VARIANCE
        return {
            "names": [visible(series[0]), visible(series[-1])],
            "labels": self.labels,
            "difference": float(x - y),
            "absolute_difference": float(apart),
            "squared_correlation": float((xy - x * y) ** 2 / (of_x * of_y)) if vary else None,
            "r_squared": float(1 - (xx - 2 * xy + yy) / of_x) if of_x > LEAST_VARIANCE else None,
        }


def value_name(value: Any) -> str:
    """Return the text of a value. A long text is truncated, with its length and the start of its digest appended."""
    text = NO_VALUE if value is None else str(value)
    if len(text) <= LONGEST_VALUE:
        return text
    digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:8]
    return f"{text[:LONGEST_VALUE]}… ({len(text):,} characters, {digest})"


def means_of(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return means, NaN where a count is 0."""
    means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return means


def measure_figures(series: Sequence[str], statistics: Statistics, texts: TokenTexts) -> list[Values]:
    """Return the values for the report page, one object per measure: name, series, scale and statistics.

    All measures that are labels have one scale. All measures that are differences have another scale.
    """
    measures = list(measures_of(series))
    ends = [_ends(statistics, index) for index in range(len(measures))]
    labels, differences = ends[: len(series)], ends[len(series) :]
    return [
        {
            "name": visible(measure.name),
            "series": measure.series,
            "scale": _common(labels if index < len(series) else differences),
            **_figures(statistics, index),
            **_tokens(statistics, index, texts, differs=index >= len(series)),
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


def _tokens(statistics: Statistics, measure: int, texts: TokenTexts, *, differs: bool) -> Values:
    """Return the tokens with the highest and the lowest means, each with text, number of labels and mean.

    No token is in both lists, since each list is taken from one part of the ranking. The ranking is divided in the
    middle or, if the measure is a difference, at a mean of 0.
    """
    ranked = [
        (texts.alone(token), count, mean) for token, count, mean in statistics.by_token(measure, LEAST_OCCURRENCES)
    ]
    middle = (len(ranked) + 1) // 2
    high = [row for row in ranked if row[2] > 0] if differs else ranked[:middle]
    low = [row for row in ranked if row[2] < 0] if differs else ranked[middle:]
    return {"highest": high[:TOKENS_LISTED], "lowest": low[: -TOKENS_LISTED - 1 : -1], "ranked": len(ranked)}


def group_figures(column: str, statistics: Statistics) -> Values:
    """Return a table of a column's groups, the largest first.

    Each row has a group's value, its number of documents, its number of tokens, and its mean of each measure.
    """
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
    """Return the two ends of a measure's scale in whole nats. At most 1% of the labels lie beyond each end."""
    if not statistics.labelled_M[measure]:
        return 0, 1
    low = statistics.share_below(measure, SHARE_BEYOND) - BIN_NATS
    high = statistics.share_below(measure, 1 - SHARE_BEYOND)
    return min(0, math.floor(low)), max(1, math.ceil(high))


def _common(ends: Sequence[tuple[int, int]]) -> tuple[int, int]:
    lows, highs = zip(*ends, strict=True)
    return min(lows), max(highs)
