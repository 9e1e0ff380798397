"""The figures of a sample as JSON values: of each measure, and of the groups of a column.

B bins, M measures.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.messages import visible
from pipeline.reporting.measures import measures_of
from pipeline.reporting.sampling import LabelledSource
from pipeline.reporting.statistics import BIN_NATS, MOST_GROUPS, MOST_NATS, POSITIONS_B, Statistics
from pipeline.reporting.token_texts import TokenTexts

LEAST_OCCURRENCES, TOKENS_LISTED = 10, 12
SHARE_BEYOND = 0.01  # of the labels, which the scale's ends do not reach

Values = dict[str, Any]


def measures(source: LabelledSource, statistics: Statistics, texts: TokenTexts) -> list[Values]:
    """Name, columns, scale and figures of every measure; a scale is common to the labels, another to differences."""
    series = len(source.series)
    named = list(measures_of(source.series))
    ends = [_ends(statistics, place) for place in range(len(named))]
    return [
        {
            "name": visible(measure.name),
            "series": measure.series,
            "scale": _common(ends[:series] if place < series else ends[series:]),
            **_figures(statistics, place),
            **_tokens(statistics, place, texts),
        }
        for place, measure in enumerate(named)
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


def groups(column: str, statistics: Statistics) -> Values:
    """Value, documents, tokens, mean of every measure, the most documents first."""
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
    """Whole nats between which all but the outermost labels lie."""
    if not statistics.labelled_M[measure]:
        return 0, 1
    low = statistics.share_below(measure, SHARE_BEYOND) - BIN_NATS
    high = statistics.share_below(measure, 1 - SHARE_BEYOND)
    return min(0, math.floor(low)), max(1, math.ceil(high))


def _common(ends: Sequence[tuple[int, int]]) -> tuple[int, int]:
    lows, highs = zip(*ends, strict=True)
    return min(lows), max(highs)
