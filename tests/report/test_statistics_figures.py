"""The figures that a page shows of a sample."""

from pipeline.report.statistics import MOST_GROUPS, Statistics, groups
from tests.report.test_statistics import add_documents


def test_the_most_frequent_values_of_a_column_are_shown_wherever_they_stand() -> None:
    statistics = Statistics(1, 1)
    add_documents(statistics, {"dump": [*map(str, range(MOST_GROUPS + 5)), *["often"] * 30]})
    shown = groups("dump", statistics)
    assert shown["rows"][0][:2] == ("often", 30) and len(shown["rows"]) == MOST_GROUPS and shown["more"]
