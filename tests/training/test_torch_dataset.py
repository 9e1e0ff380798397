"""Windows through torch's DataLoader: every token once, for any workers and ranks, and states to resume from."""

import copy
import json
import math
import pickle
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.data.annotated import AnnotatedDataset
from pipeline.data.loader import Reading, labelled_rows, labelled_windows
from pipeline.data.packing import BestFit, CutAtEnd, Packing
from pipeline.training.torch_dataset import LabelledWindows
from tests.forkserver import group
from tests.labelled import LABELS, TOKENS, write_labelled

CUT = CutAtEnd(length=8)
PACKINGS: list[Packing] = [CUT, BestFit(length=11, buffer=2, separator=0)]
LABEL_OF = dict(zip(chain(*TOKENS), chain(*LABELS), strict=True))
EVERY = [*LABEL_OF]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedDataset:
    return write_labelled(tmp_path_factory.mktemp("annotated"))


def tokens_of(windows: Iterator[Any]) -> list[int]:
    """Return the documents' tokens without separators (id 0), and check that each token has its own label."""
    found: list[int] = []
    for window in windows:
        ids, labels, documents = (np.asarray(values).ravel() for values in window)
        for token, nats in zip(ids[documents >= 0].tolist(), labels[documents >= 0].tolist(), strict=True):
            if token:
                wanted = LABEL_OF[token]
                assert nats == wanted or (math.isnan(nats) and math.isnan(wanted))
                found.append(token)
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.long), 2, pytest.param(4, marks=pytest.mark.long)]
)
def test_every_token_comes_once_per_epoch(
    dataset: AnnotatedDataset, workers: int, ranks: int, packing: Packing
) -> None:
    read = [
        LabelledWindows(dataset, packing, seed=3, shuffled_rows=2, rank=rank, world_size=ranks) for rank in range(ranks)
    ]
    loaders = [DataLoader(windows, batch_size=2, num_workers=workers) for windows in read]
    orders = []
    for epoch in (0, 0, 1):
        for windows in read:
            windows.set_epoch(epoch)
        orders.append([token for loader in loaders for token in tokens_of(iter(loader))])
        assert sorted(orders[-1]) == EVERY
    assert orders[0] == orders[1] != orders[2]


def test_persistent_workers_see_the_epoch_change(dataset: AnnotatedDataset) -> None:
    windows = LabelledWindows(dataset, CUT, seed=3)
    loader = DataLoader(windows, batch_size=None, num_workers=2, persistent_workers=True)
    first = tokens_of(iter(loader))
    windows.set_epoch(1)
    second = tokens_of(iter(loader))
    assert sorted(first) == sorted(second) == EVERY and first != second


def test_spawned_workers_have_their_parts(dataset: AnnotatedDataset) -> None:
    """Workers get a pickled copy, which stores the rank."""
    windows = LabelledWindows(dataset, CUT, rank=1, world_size=2)
    sent = pickle.loads(pickle.dumps(windows))  # noqa: S301
    assert tokens_of(iter(sent)) == tokens_of(iter(windows)) != tokens_of(iter(LabelledWindows(dataset, CUT)))


def test_a_pass_has_the_requested_epochs_and_the_next_starts_elsewhere(dataset: AnnotatedDataset) -> None:
    windows = LabelledWindows(dataset, CUT, seed=3, epochs=2)
    order = [tokens_of(iter(windows))]
    windows.set_epoch(1)
    order.append(tokens_of(iter(windows)))
    assert order[0][len(LABEL_OF) :] == order[1][: len(LABEL_OF)] and len(order[1]) == 2 * len(LABEL_OF)
    endless = islice(LabelledWindows(dataset, CUT, epochs=None), 100)
    assert len(tokens_of(endless)) > 3 * len(LABEL_OF)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_pass_resumes_from_every_position(dataset: AnnotatedDataset, packing: Packing, epoch: int) -> None:
    windows = LabelledWindows(dataset, packing, seed=1)
    windows.set_epoch(epoch)
    whole = tokens_of(iter(windows))
    for done in range(0, 20, 3):
        stopped, resumed = LabelledWindows(dataset, packing, seed=1), LabelledWindows(dataset, packing, seed=1)
        stopped.set_epoch(epoch)
        before = tokens_of(islice(DataLoader(stopped, batch_size=None), done)) if done else tokens_of(iter(()))
        if done:
            resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
            assert resumed.state_dict() == stopped.state_dict()
        else:
            resumed.set_epoch(epoch)
        assert before + tokens_of(iter(resumed)) == whole
        assert sorted(tokens_of(iter(resumed))) == EVERY  # the next pass is a whole one


def test_workers_resume_from_their_states(dataset: AnnotatedDataset) -> None:
    """States are loaded in the order of torchdata's StatefulDataLoader: a worker's dataset first, then its iterator."""
    for rank in range(2):
        place: dict[str, Any] = {"seed": 2, "rank": rank, "world_size": 2}
        whole = LabelledWindows(dataset, CUT, **place)
        iterator = iter(whole)
        before = tokens_of(islice(iterator, 2))
        states = whole.state_dict(), iterator.state_dict()
        copied = copy.deepcopy(states)
        resumed = LabelledWindows(dataset, CUT, **place)
        resumed.load_state_dict(copied[0])
        going_on = iter(resumed)
        going_on.load_state_dict(copied[1])
        assert before + tokens_of(going_on) == tokens_of(iter(LabelledWindows(dataset, CUT, **place)))


def test_wrong_states_are_refused(dataset: AnnotatedDataset) -> None:
    windows = LabelledWindows(dataset, CUT)
    next(iter(DataLoader(windows, num_workers=1)))
    with pytest.raises(ValueError, match=r"this process has read nothing.*StatefulDataLoader"):
        windows.state_dict()
    iterator = iter(windows)
    next(iterator)
    for other, told in (
        (LabelledWindows(dataset, CUT, rank=0, world_size=2), "ranks 1 there, 2 now"),
        (LabelledWindows(dataset, CutAtEnd(length=9)), "another stream"),
    ):
        other.load_state_dict(windows.state_dict())
        with pytest.raises(ValueError, match=told):
            iter(other)
    with pytest.raises(ValueError, match="it lacks epoch"):
        iterator.load_state_dict(labelled_windows(dataset, CUT).state_dict())
    windows.load_state_dict(iterator.state_dict())
    with pytest.raises(ValueError, match="ranks 1 there, 2 now"):
        next(iter(DataLoader(windows, num_workers=2)))


def refusal_by(loader: DataLoader[Any]) -> str:
    """Return the error message of a loader's first window, and stop the loader's workers.

    If the workers were not stopped, torch's error would keep them in a reference cycle. The thread that collects the
    cycle would then wait for the workers.
    """
    reading: Any = iter(loader)
    try:
        next(reading)
    except ValueError as error:
        return str(error)
    finally:
        reading._shutdown_workers()
    raise AssertionError("it gives windows")


def test_impossible_settings_are_refused(dataset: AnnotatedDataset) -> None:
    with pytest.raises(ValueError, match="both rank and world_size"):
        LabelledWindows(dataset, CUT, rank=0)
    with pytest.raises(ValueError, match="no rank 2 of 2"):
        LabelledWindows(dataset, CUT, rank=2, world_size=2)
    refusal = refusal_by(DataLoader(LabelledWindows(dataset, CUT, rank=0, world_size=12), num_workers=2))
    assert "23 rows for 24 ranks; use fewer ranks or workers" in refusal
    with pytest.raises(ValueError, match="first epoch must be at least 0, not -1"):
        Reading(first_epoch=-1)


@pytest.mark.parametrize("begun", [False, True])
def test_an_iterator_is_not_copied_into_workers(dataset: AnnotatedDataset, begun: bool) -> None:
    class Copied(torch.utils.data.IterableDataset[Any]):
        def __init__(self, windows: Any) -> None:
            self.windows = windows

        def __iter__(self) -> Iterator[Any]:
            return iter(self.windows)

    for windows in (labelled_windows(dataset, CUT), labelled_rows(dataset, ("num_tokens",))):
        if begun:
            next(windows)
        refusal = refusal_by(DataLoader(Copied(windows), num_workers=2))
        assert re.search(r"every worker of the DataLoader has a copy.*LabelledWindows", refusal)
        windows.close()


def test_the_processes_of_a_launcher_are_ranks(dataset: AnnotatedDataset, tmp_path: Path) -> None:
    """A dataset finds its process's rank before and after the processes join a group.

    A dataset that is pickled within the group keeps the rank.
    """
    processes = group(2, "tests.training.ranked_tokens", dataset.source, tmp_path)
    assert [one.wait(120) for one in processes] == [0, 0], processes[0].communicate()
    for way in ("launched", "joined", "pickled"):
        each = [json.loads((tmp_path / f"{way}-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
        assert all(each) and sorted(chain(*each)) == EVERY
