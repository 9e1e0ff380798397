"""Row groups are divided among ranks: every row goes to one rank, and the ranks' shares differ by at most one row."""

from itertools import chain

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.data.loader import RowRange, row_groups, rows_of_rank

SHARDS = st.lists(st.lists(st.integers(0, 30), max_size=5), max_size=6)


def rows_of(runs: list[RowRange]) -> list[tuple[int, int]]:
    return [(run.shard, row) for run in runs for row in range(run.start, run.stop)]


@settings(max_examples=200, deadline=None)
@given(shards=SHARDS, ranks=st.integers(1, 70), random=st.randoms(use_true_random=False))
@example(shards=[[100]], ranks=7, random=None)
def test_ranks_partition_the_rows_into_equal_parts(shards: list[list[int]], ranks: int, random: object) -> None:
    groups = list(row_groups(shards))
    if random is not None:
        random.shuffle(groups)  # type: ignore[attr-defined]
    parts = [list(rows_of_rank(groups, rank, ranks)) for rank in range(ranks)]
    assert [*chain(*map(rows_of, parts))] == rows_of(groups)
    sizes = [sum(map(len, part)) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=200, deadline=None)
@given(shards=SHARDS, ranks=st.integers(1, 70))
def test_a_row_range_is_in_one_row_group_and_few_groups_are_split(shards: list[list[int]], ranks: int) -> None:
    groups = list(row_groups(shards))
    runs = [run for rank in range(ranks) for run in rows_of_rank(groups, rank, ranks)]
    for run in runs:
        assert len(run) > 0
        assert any(g.shard == run.shard and g.start <= run.start < run.stop <= g.stop for g in groups)
    assert len(runs) <= len(groups) + ranks - 1


@settings(max_examples=50, deadline=None)
@given(shards=SHARDS)
def test_row_groups_are_the_rows_of_the_shards_in_order(shards: list[list[int]]) -> None:
    found = list(row_groups(shards))
    assert [len(run) for run in found] == [rows for groups in shards for rows in groups if rows]
    assert rows_of(found) == [(shard, row) for shard, groups in enumerate(shards) for row in range(sum(groups))]


@pytest.mark.parametrize(("ranks", "sizes"), [(1, [10]), (2, [5, 5]), (4, [2, 3, 2, 3]), (12, [0, 1])])
def test_fewer_row_groups_than_ranks_are_split_by_rows(ranks: int, sizes: list[int]) -> None:
    parts = [sum(map(len, rows_of_rank([RowRange(0, 0, 10)], rank, ranks))) for rank in range(ranks)]
    assert parts[: len(sizes)] == sizes and sum(parts) == 10
