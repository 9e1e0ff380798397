"""An annotated dataset read by several ranks, row by row and in windows."""

import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.loader import Reading, labelled_rows, labelled_windows
from pipeline.data.packing import BestFit, CutAtEnd, Packing
from tests.annotated import write_annotated
from tests.hub import hub_server
from tests.labelled import LABELS, LENGTHS, PACKINGS, TOKENS, assert_same, write_labelled


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedDataset:
    return write_labelled(tmp_path_factory.mktemp("annotated"))


def documents(rows: Iterator[dict[str, Any]]) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in rows]


def test_one_rank_reads_every_row_in_order_with_its_labels(dataset: AnnotatedDataset) -> None:
    rows = list(labelled_rows(dataset, reading=Reading(epochs=1)))
    assert [*rows[0]] == ["input_ids", "entropy"]
    expected = [
        {"input_ids": np.array(tokens, np.int32), "entropy": np.array(labels, np.float32)}
        for tokens, labels in zip(TOKENS, LABELS, strict=True)
    ]
    assert_same(rows, expected)


def test_any_columns_of_the_files_are_read(dataset: AnnotatedDataset) -> None:
    rows = list(labelled_rows(dataset, ("num_tokens", "entropy", "mean_entropy"), Reading(epochs=1)))
    assert [row["num_tokens"] for row in rows] == LENGTHS
    for row, labels in zip(rows, LABELS, strict=True):
        np.testing.assert_array_equal(row["entropy"], np.array(labels, np.float32))
        given = [label for label in labels if not math.isnan(label)]
        assert row["mean_entropy"] == (pytest.approx(np.mean(given)) if given else None)


def test_missing_columns_are_named_with_existing_ones(dataset: AnnotatedDataset) -> None:
    there = "input_ids, entropy, num_tokens, mean_entropy"
    with pytest.raises(ValueError, match=f"no column dump, text; it has {there}"):
        labelled_rows(dataset, ("text", "input_ids", "dump"))
    with pytest.raises(ValueError, match="no column expected_entropy"):
        labelled_windows(dataset, PACKINGS[0], label="expected_entropy")
    with pytest.raises(ValueError, match="`num_tokens` is not a column of labels"):
        labelled_windows(dataset, PACKINGS[0], label="num_tokens")
    for columns in ((), ("entropy", "entropy")):
        with pytest.raises(ValueError, match="at least one column, and each only once"):
            labelled_rows(dataset, columns)


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, len(TOKENS)),
    seed=st.none() | st.integers(0, 9),
    shuffled_rows=st.integers(1, 5),
    epochs=st.integers(1, 3),
)
def test_any_number_of_ranks_divide_each_epoch_equally(
    dataset: AnnotatedDataset, ranks: int, seed: int | None, shuffled_rows: int, epochs: int
) -> None:
    order: dict[str, Any] = {"seed": seed, "shuffled_rows": 1 if seed is None else shuffled_rows}
    read = [
        documents(labelled_rows(dataset, reading=Reading(rank=rank, ranks=ranks, epochs=epochs, **order)))
        for rank in range(ranks)
    ]
    sizes = [len(rows) // epochs for rows in read]
    assert max(sizes) - min(sizes) <= 1 and [len(rows) for rows in read] == [size * epochs for size in sizes]
    for epoch in range(epochs):
        whole = [*chain(*(rows[size * epoch : size * (epoch + 1)] for rows, size in zip(read, sizes, strict=True)))]
        assert sorted(whole) == sorted(TOKENS)
        assert seed is not None or whole == TOKENS


def test_a_seed_shuffles_row_groups_differently_each_epoch_and_reproducibly(dataset: AnnotatedDataset) -> None:
    first, again, other = (
        documents(islice(labelled_rows(dataset, reading=Reading(seed=seed)), 2 * len(TOKENS))) for seed in (1, 1, 2)
    )
    one, two = first[: len(TOKENS)], first[len(TOKENS) :]
    assert first == again and TOKENS != one != two and first != other
    groups = {(*map(tuple, TOKENS[at : at + 3]),) for at in (0, 3, 8, 11, 16, 19)}
    assert all(any((*map(tuple, one[at : at + 3]),) == group for at in range(len(one))) for group in groups)


def test_a_given_number_of_rows_is_shuffled_within_a_row_group(tmp_path: Path) -> None:
    write_annotated(tmp_path, [[token] for token in range(100)], [[0.0]] * 100)
    read = documents(
        labelled_rows(find_annotations(str(tmp_path)), reading=Reading(seed=0, shuffled_rows=30, epochs=1))
    )
    blocks = [[*chain(*read[start : start + 30])] for start in (0, 30, 60, 90)]
    assert [sorted(block) for block in blocks] == [[*range(start, min(100, start + 30))] for start in (0, 30, 60, 90)]
    orders = [[token - min(block) for token in block] for block in blocks]
    assert all(order != sorted(order) for order in orders) and orders[0] != orders[1] != orders[2]


def test_the_windows_of_one_rank_are_the_documents_end_to_end(dataset: AnnotatedDataset) -> None:
    windows = list(labelled_windows(dataset, CutAtEnd(length=8, separator=0), Reading(epochs=1)))
    tokens = [token for document in TOKENS for token in (0, *document)]
    labels = [label for document in LABELS for label in (math.nan, *document)]
    np.testing.assert_array_equal(np.concatenate([w.input_ids_T for w in windows])[: len(tokens)], tokens)
    np.testing.assert_array_equal(np.concatenate([w.entropy_T for w in windows])[: len(labels)], labels)


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (4, 17), (8, 9), (20, None)])
@pytest.mark.parametrize("order", [{}, {"seed": 3, "shuffled_rows": 2}])
def test_all_ranks_together_read_the_selected_rows(
    dataset: AnnotatedDataset, start: int, stop: int | None, order: dict[str, Any]
) -> None:
    part: dict[str, Any] = {"start": start, "stop": stop, "epochs": 2, **order}
    ranks = min(2, len(TOKENS[start:stop]))
    read = [documents(labelled_rows(dataset, reading=Reading(rank=r, ranks=ranks, **part))) for r in range(ranks)]
    assert sorted(chain(*read)) == sorted(TOKENS[start:stop] * 2)


@pytest.mark.parametrize("packing", PACKINGS)
def test_endless_windows_hold_epoch_after_epoch(dataset: AnnotatedDataset, packing: Packing) -> None:
    rows = labelled_rows(dataset, reading=Reading(seed=5))
    packed = packing.windows((row["input_ids"], row["entropy"]) for row in rows)
    found = list(islice(labelled_windows(dataset, packing, Reading(seed=5)), 80))
    assert_same(found, [each.window for each in islice(packed, 80)])
    last = TOKENS[-1][-1]
    assert sum(int((window.input_ids_T == last).sum()) for window in found) >= 3


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 2, "ranks": 2}, "no rank 2 of 2"),
        ({"rank": -1}, "no rank -1 of 1"),
        ({"seed": -1}, "seed must be at least 0, not -1"),
        ({"shuffled_rows": 3}, "above 1 needs a seed, not 3"),
        ({"seed": 0, "shuffled_rows": 0}, "shuffled_rows must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"start": -1}, "no rows from -1 to None"),
        ({"start": 3, "stop": 3}, "no rows from 3 to 3"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Reading(**settings)


def test_more_ranks_than_rows_are_refused(dataset: AnnotatedDataset) -> None:
    with pytest.raises(ValueError, match="has 23 rows for 24 ranks; use fewer"):
        labelled_rows(dataset, reading=Reading(ranks=24))


def test_a_dataset_of_empty_documents_is_refused_instead_of_read_forever(tmp_path: Path) -> None:
    dataset = find_annotations(str(write_annotated(tmp_path, [[], []], [[], []])))
    for packing in (CutAtEnd(length=4), BestFit(length=4)):
        with pytest.raises(ValueError, match="every document is empty"):
            next(labelled_windows(dataset, packing))


def test_a_number_of_labels_other_than_that_of_tokens_is_refused(tmp_path: Path) -> None:
    write_annotated(tmp_path, [[1, 2], [3, 4], [5], [6, 7]], [[1.0, 2.0], [1.0, 2.0], [1.0], [1.0]])
    sound, damaged = (
        labelled_rows(find_annotations(str(tmp_path)), reading=Reading(rank=rank, ranks=2, epochs=1)) for rank in (0, 1)
    )
    assert documents(sound) == [[1, 2], [3, 4]]
    with pytest.raises(ValueError, match=r"row 3 of .*1 labels in `entropy` for 2 tokens"):
        list(damaged)


def test_an_infinite_label_is_refused(tmp_path: Path) -> None:
    write_annotated(tmp_path, [[1, 2]], [[math.inf, 1.0]])
    with pytest.raises(ValueError, match="a label in `entropy` that is not finite"):
        next(labelled_rows(find_annotations(str(tmp_path)), ("entropy",)))


HUB_SCRIPT = """
from pipeline.data.annotated import find_annotations
from pipeline.data.loader import Reading, labelled_rows
for row in labelled_rows(find_annotations("hf://datasets/user/name"), reading=Reading(rank=1, ranks=2, epochs=1)):
    print(*row["input_ids"].tolist())
"""


def test_a_rank_reads_its_part_from_the_hub(dataset: AnnotatedDataset, tmp_path: Path) -> None:
    """This runs in another process, since the Hub's clients read their environment only once."""
    folder = Path(dataset.source)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with hub_server() as hub:
        hub.add("user/name", files)
        environment = {**hub.environment, "HF_HOME": str(tmp_path)}
        ran = subprocess.run(
            [sys.executable, "-c", HUB_SCRIPT], env=environment, capture_output=True, text=True, check=False
        )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [" ".join(map(str, tokens)) for tokens in TOKENS[11:]]
