"""Readers that stop in the middle, with an error or in another process, and resume."""

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.loader import Reading, Resumable, labelled_rows, labelled_windows
from pipeline.data.packing import CutAtEnd, PackedWindow, Packing
from tests.annotated import write_annotated
from tests.labelled import LABELS, PACKINGS, TOKENS, assert_same, write_labelled


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedDataset:
    return write_labelled(tmp_path_factory.mktemp("annotated"))


def read_by(dataset: AnnotatedDataset, packing: Packing | None, **order: Any) -> Resumable[Any]:
    reading = Reading(epochs=2, **order)
    return labelled_rows(dataset, reading=reading) if packing is None else labelled_windows(dataset, packing, reading)


@pytest.mark.parametrize("order", [{}, {"seed": 3, "rank": 1, "ranks": 2}, {"seed": 3, "shuffled_rows": 3}])
@pytest.mark.parametrize("packing", [None, *PACKINGS])
def test_reading_resumes_from_every_position_with_the_same_items(
    dataset: AnnotatedDataset, packing: Packing | None, order: dict[str, Any]
) -> None:
    reader = read_by(dataset, packing, **order)
    states, items = [json.dumps(reader.state_dict())], []
    for item in reader:
        items.append(item)
        states.append(json.dumps(reader.state_dict()))
    assert len(items) > 15 and max(map(len, states)) < 400
    resumed = read_by(dataset, packing, **order)
    for place, state in enumerate(states):
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state
        if place % 5 == 0:
            assert_same(list(resumed), items[place:])
        else:  # stopped again in the middle
            assert_same(list(islice(resumed, 3)), items[place : place + 3])
            assert json.dumps(resumed.state_dict()) == states[min(place + 3, len(items))]


def test_a_state_of_other_settings_or_another_dataset_is_refused(dataset: AnnotatedDataset, tmp_path: Path) -> None:
    whole: dict[str, Any] = {"rank": 0, "ranks": 2, "seed": 1}
    state = read_by(dataset, PACKINGS[0], **whole).state_dict()
    others: list[tuple[dict[str, Any], str]] = [
        ({"rank": 1}, "rank 0 there, 1 now"),
        ({"ranks": 3}, "ranks 2 there, 3 now"),
        ({"seed": None}, "seed 1 there, None now"),
        ({"shuffled_rows": 4}, "shuffled_rows 1 there, 4 now"),
    ]
    for changed, told in others:
        with pytest.raises(ValueError, match=told):
            read_by(dataset, PACKINGS[0], **(whole | changed)).load_state_dict(state)
    for packing in (None, *PACKINGS[1:]):
        with pytest.raises(ValueError, match=r"the state is of another stream.*CutAtEnd"):
            read_by(dataset, packing, **whole).load_state_dict(state)
    write_annotated(tmp_path, TOKENS, LABELS, shards=3, share=0.5)
    with pytest.raises(ValueError, match="dataset_sha256"):
        read_by(find_annotations(str(tmp_path)), PACKINGS[0], **whole).load_state_dict(state)
    with pytest.raises(ValueError, match=r"not the state of a reader: it lacks .*rows, within"):
        read_by(dataset, PACKINGS[0], **whole).load_state_dict({"rank": 0})


def test_a_copy_of_the_dataset_is_the_same_dataset(dataset: AnnotatedDataset, tmp_path: Path) -> None:
    folder = Path(dataset.source)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        copy = tmp_path / file.relative_to(folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    reader, elsewhere = (labelled_rows(each) for each in (dataset, find_annotations(str(tmp_path))))
    next(reader)
    elsewhere.load_state_dict(reader.state_dict())
    assert next(elsewhere)["input_ids"].tolist() == TOKENS[1]


@pytest.mark.parametrize("packing", [None, *PACKINGS[:2]])
def test_after_an_error_the_next_item_is_the_one_that_failed(tmp_path: Path, packing: Packing | None) -> None:
    write_annotated(tmp_path, TOKENS, LABELS, shards=3)
    dataset = find_annotations(str(tmp_path))
    expected = list(read_by(dataset, packing))
    last, away = Path(dataset.shards[2].url), tmp_path / "away"
    reader, found = read_by(dataset, packing), list[Any]()
    last.rename(away)
    with pytest.raises(FileNotFoundError, match="has disappeared"):
        for item in reader:
            found.append(item)
    with pytest.raises(FileNotFoundError, match="has disappeared"):
        next(reader)
    away.rename(last)
    assert 0 < len(found) < len(expected)
    assert_same([*found, *reader], expected)


def test_closing_does_not_change_the_next_item(dataset: AnnotatedDataset) -> None:
    reader = labelled_rows(dataset)
    assert next(reader)["input_ids"].tolist() == TOKENS[0]
    reader.close()
    assert next(reader)["input_ids"].tolist() == TOKENS[1]


EXIT_SCRIPT = """
import sys, threading
from pipeline.data.annotated import find_annotations
from pipeline.data.packing import CutAtEnd
from pipeline.data.loader import labelled_windows
windows = labelled_windows(find_annotations(sys.argv[1]), CutAtEnd(length=8))
threading.kept = windows  # as any library may keep it for longer than the modules that end its thread
print(next(windows).input_ids_T.tolist())
"""


def test_an_unfinished_reader_does_not_keep_its_process_alive(dataset: AnnotatedDataset) -> None:
    command = [sys.executable, "-c", EXIT_SCRIPT, dataset.source]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"{[*range(1, 9)]}\n", "")


class Windows(IterableDataset[PackedWindow]):
    """An iterable dataset as a user of torch's DataLoader would write it, with one rank for each worker."""

    def __init__(self, dataset: AnnotatedDataset, packing: Packing) -> None:
        self.dataset, self.packing = dataset, packing
        self.reader = labelled_windows(dataset, packing, Reading(epochs=1))

    def __iter__(self) -> Iterator[PackedWindow]:
        worker = get_worker_info()
        if worker is None:
            return self.reader
        return labelled_windows(self.dataset, self.packing, Reading(rank=worker.id, ranks=worker.num_workers, epochs=1))


def test_a_torch_loader_stacks_windows_and_resumes_from_a_state(dataset: AnnotatedDataset) -> None:
    packing = CutAtEnd(length=8, separator=0)
    whole = [*DataLoader(Windows(dataset, packing), batch_size=4)]
    assert isinstance(whole[0], PackedWindow) and [tuple(each.shape) for each in whole[0]] == [(4, 8)] * 3
    assert [each.dtype for each in whole[0]] == [torch.int32, torch.float32, torch.int32]
    expected = list(labelled_windows(dataset, packing, Reading(epochs=1)))
    assert_same([PackedWindow(*map(np.asarray, row)) for batch in whole for row in zip(*batch, strict=True)], expected)
    stopped, resumed = Windows(dataset, packing), Windows(dataset, packing)
    assert len([*islice(DataLoader(stopped, batch_size=4), 3)]) == 3
    resumed.reader.load_state_dict(stopped.reader.state_dict())
    for batch, other in zip([*DataLoader(resumed, batch_size=4)], whole[3:], strict=True):
        assert all(torch.equal(one.nan_to_num(-1), two.nan_to_num(-1)) for one, two in zip(batch, other, strict=True))


def test_workers_of_a_torch_loader_are_ranks(dataset: AnnotatedDataset) -> None:
    loader = DataLoader(Windows(dataset, CutAtEnd(length=8)), batch_size=None, num_workers=2)
    ids = [int(token) for window in loader for token in window.input_ids_T if token]
    assert sorted(ids) == [*chain(*TOKENS)]


def test_a_reader_that_has_not_begun_can_be_pickled(dataset: AnnotatedDataset) -> None:
    reader = labelled_windows(dataset, PACKINGS[0], Reading(epochs=1))
    assert_same(list(pickle.loads(pickle.dumps(reader))), list(reader))  # noqa: S301
