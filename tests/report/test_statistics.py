"""Statistics of a sample, compared with statistics that loops over all tokens compute."""

import math
from collections import defaultdict
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.report.sampling import Document
from pipeline.report.statistics import (
    BIN_NATS,
    LONGEST_VALUE,
    MOST_GROUPS,
    MOST_NATS,
    POSITIONS_B,
    VALUES_KEPT,
    Agreement,
    Statistics,
    group_figures,
    value_name,
)

VOCABULARY = 5
LABEL = st.just(math.nan) | st.integers(-4000, 4000).map(lambda steps: steps / 128)
ROWS = st.lists(st.lists(st.tuples(st.integers(0, VOCABULARY - 1), LABEL, LABEL), max_size=20), min_size=1, max_size=6)


def documents_of(rows: list[list[tuple[int, float, float]]]) -> list[Document]:
    return [
        Document(
            number,
            np.array([token for token, _, _ in row], np.int32),
            np.array([[first for _, first, _ in row], [second for _, _, second in row]], np.float32),
            {"kind": "even" if number % 2 == 0 else None},
        )
        for number, row in enumerate(rows)
    ]


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_figures_are_those_of_a_loop_over_all_tokens(rows: list[list[tuple[int, float, float]]]) -> None:
    statistics = Statistics(3, VOCABULARY)
    values: list[list[tuple[float, int, int, str]]] = [[], [], []]
    for document, row in zip(documents_of(rows), rows, strict=True):
        statistics.add(document)
        for position, (token, first, second) in enumerate(row):
            for measure, nats in enumerate((first, second, first - second)):
                if not math.isnan(nats):
                    values[measure].append((nats, position, token, str(document.source["kind"] or "(none)")))
    assert statistics.documents == len(rows) and statistics.tokens == sum(map(len, rows))
    for measure, given_values in enumerate(values):
        by_position, by_token = defaultdict[int, list[float]](list), defaultdict[int, list[float]](list)
        bins, by_group = defaultdict[int, int](int), defaultdict[str, list[float]](list)
        for nats, position, token, group in given_values:
            held = min(max(nats, -MOST_NATS), MOST_NATS - BIN_NATS / 2)
            bins[math.floor((held + MOST_NATS) / BIN_NATS)] += 1
            by_position[max(place for place, start in enumerate(POSITIONS_B) if start <= position)].append(nats)
            by_token[token].append(nats)
            by_group[group].append(nats)
        assert statistics.labelled_M[measure] == len(given_values)
        assert {place: int(n) for place, n in enumerate(statistics.counts_MB[measure]) if n} == bins
        for place, found in by_position.items():
            assert statistics.position_counts_MB[measure, place] == len(found)
            assert statistics.position_sums_MB[measure, place] == pytest.approx(sum(found))
        often = {token: found for token, found in by_token.items() if len(found) >= 2}
        ranked = list(statistics.by_token(measure, 2))
        assert {token: count for token, count, _ in ranked} == {token: len(found) for token, found in often.items()}
        assert [mean for _, _, mean in ranked] == pytest.approx(sorted(map(np.mean, often.values()), reverse=True))
        for name, kept in statistics.groups["kind"].items():
            assert kept.counts_M[measure] == len(by_group[name])
            assert kept.sums_M[measure] == pytest.approx(sum(by_group[name]))


def test_positions_are_told_apart_one_by_one_at_the_beginning() -> None:
    assert POSITIONS_B[:4].tolist() == [0, 1, 2, 3] and (np.diff(POSITIONS_B) > 0).all()


def test_the_outermost_hundredth_of_labels_is_found_to_a_bin() -> None:
    statistics = Statistics(1, 1)
    labels_N = np.arange(1000, dtype=np.float32) / 100
    statistics.add(Document(0, np.zeros(1000, np.int32), labels_N[None]))
    assert statistics.share_below(0, 0.5) - BIN_NATS <= np.quantile(labels_N, 0.5) <= statistics.share_below(0, 0.5)
    assert statistics.share_below(0, 0.99) == 10


def add_documents(statistics: Statistics, columns: dict[str, list[str | None]]) -> None:
    for values in zip(*columns.values(), strict=True):
        source = dict(zip(columns, values, strict=True))
        statistics.add(Document(0, np.zeros(1, np.int32), np.ones((1, 1), np.float32), source))


def test_documents_are_grouped_by_the_first_column_with_a_few_values() -> None:
    statistics = Statistics(1, 1)
    names = [str(number) for number in range(100)]
    columns: dict[str, list[str | None]] = {"id": [*names], "language": ["en"] * 100, "dump": ["a", "b"] * 50}
    add_documents(statistics, columns)
    assert statistics.few_groups([*columns]) == "dump" and statistics.few_groups(["id", "language"]) is None
    assert [group.documents for group in statistics.groups["dump"].values()] == [50, 50]


def test_of_a_column_with_many_values_only_some_are_kept() -> None:
    statistics = Statistics(1, 1)
    add_documents(statistics, {"id": [str(number) for number in range(VALUES_KEPT + 10)]})
    assert len(statistics.groups["id"]) == VALUES_KEPT


def test_of_several_columns_no_more_values_are_kept_than_tell_that_there_are_many() -> None:
    statistics = Statistics(1, 1)
    names = [f"{number}" + "x" * 1000 for number in range(100)]
    add_documents(statistics, {"html": [*names], "dump": ["a", "b"] * 50})
    assert len(statistics.groups["html"]) == MOST_GROUPS + 1
    assert statistics.few_groups(["html", "dump"]) == "dump"


def test_long_values_are_cut_short_and_still_told_apart() -> None:
    statistics = Statistics(1, 1)
    long = ["x" * 10**6 + end for end in ("a", "b", "a")]
    add_documents(statistics, {"html": [*long]})
    assert [group.documents for group in statistics.groups["html"].values()] == [2, 1]
    assert all(len(name) < 250 and "… (1,000,001 characters, " in name for name in statistics.groups["html"])
    assert value_name("x" * LONGEST_VALUE) == "x" * LONGEST_VALUE


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(1, 7))
def test_long_documents_are_added_up_piece_by_piece(rows: list[list[tuple[int, float, float]]], piece: int) -> None:
    whole, by_piece = Statistics(3, VOCABULARY), Statistics(3, VOCABULARY)
    for document in documents_of(rows):
        whole.add(document)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.report.statistics.PIECE_TOKENS", piece)
            by_piece.add(document)
    for name in ("counts_MB", "position_counts_MB", "position_sums_MB", "token_counts_MV", "token_sums_MV"):
        np.testing.assert_array_equal(getattr(by_piece, name), getattr(whole, name))
    for name, group in whole.groups["kind"].items():
        np.testing.assert_array_equal(by_piece.groups["kind"][name].sums_M, group.sums_M)  # of multiples of 1/128
        np.testing.assert_array_equal(by_piece.groups["kind"][name].counts_M, group.counts_M)


def test_as_many_values_as_documents_are_no_groups() -> None:
    statistics = Statistics(1, 1)
    add_documents(statistics, {"id": ["1", "2", "3"]})
    assert statistics.few_groups(["id"]) is None


def test_the_most_frequent_values_of_a_column_are_shown_wherever_they_stand() -> None:
    statistics = Statistics(1, 1)
    add_documents(statistics, {"dump": [*map(str, range(MOST_GROUPS + 5)), *["often"] * 30]})
    shown = group_figures("dump", statistics)
    assert shown["rows"][0][:2] == ("often", 30) and len(shown["rows"]) == MOST_GROUPS and shown["more"]


@given(
    hnp.arrays(np.float32, st.integers(0, 40), elements=st.sampled_from([np.nan, 0.0, 0.5, 1.25, 7.0])),
    st.randoms(use_true_random=False),
)
def test_agreement_is_that_of_all_common_labels_at_once(first_N: np.ndarray, random: Random) -> None:
    other_N = np.array([random.choice([np.nan, 0.25, 1.0, 6.5]) for _ in first_N], np.float32)
    agreement = Agreement()
    for start in range(0, len(first_N), 7):
        agreement.add(first_N[start : start + 7], other_N[start : start + 7])
    both_N = ~np.isnan(first_N) & ~np.isnan(other_N)
    figures = agreement.figures(["a", "b", "c"])
    if not both_N.any():
        assert figures is None
        return
    x, y = first_N[both_N].astype(float), other_N[both_N].astype(float)
    assert figures is not None and (figures["names"], figures["labels"]) == (["a", "c"], len(x))
    assert figures["difference"] == pytest.approx(np.mean(x - y))
    assert figures["absolute_difference"] == pytest.approx(np.mean(abs(x - y)))
    if np.ptp(x):
        assert figures["r_squared"] == pytest.approx(1 - np.sum((x - y) ** 2) / np.sum((x - x.mean()) ** 2))
    else:
        assert figures["r_squared"] is None
    if np.ptp(x) and np.ptp(y):
        assert figures["squared_correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)
    else:
        assert figures["squared_correlation"] is None
