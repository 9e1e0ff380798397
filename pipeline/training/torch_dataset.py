"""Annotated dataset for torch's DataLoader and trainers: windows of tokens and labels, for ranks and loader workers.

`hf_trainer` has the collator and the loss with which `transformers.Trainer` and TRL train on these windows.

In each epoch, all ranks and workers together yield every token of the dataset once. Each worker of each rank packs its
own documents. The last windows of each worker are therefore padded, and some ranks may yield a few windows more than
others. If all ranks must take the same number of steps, read endlessly (`epochs=None`) and count steps.
"""

import os
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from pipeline.data.annotated import AnnotatedDataset
from pipeline.data.loader import Reading, Resumable, labelled_windows
from pipeline.data.packing import PackedWindow, Packing
from schemas.annotations import ENTROPY


class LabelledWindows(IterableDataset[PackedWindow]):
    """Windows of an annotated dataset, divided among ranks and loader workers.

    Each iteration is a pass over the windows. With a seed, their order depends on the epoch, which `set_epoch` sets.

    The dataset and its iterators have `state_dict` and `load_state_dict`. If the loader has workers, the states are in
    the workers, and torchdata's StatefulDataLoader collects them.

    Pass `rank=0` and `world_size=1` if the loader itself divides batches among ranks, as the loaders of accelerate and
    transformers.Trainer do.
    """

    def __init__(
        self,
        dataset: AnnotatedDataset,
        packing: Packing,
        *,
        seed: int | None = None,
        shuffled_rows: int = 1,
        epochs: int | None = 1,
        rank: int | None = None,
        world_size: int | None = None,
        label: str = ENTROPY,
    ) -> None:
        """Prepare to read windows as `labelled_windows` does.

        Args:
            dataset: dataset to read.
            packing: packing of documents into windows.
            seed: seed for shuffling row groups in each epoch; None keeps the dataset's order.
            shuffled_rows: number of consecutive rows of a row group that are shuffled together.
            epochs: number of epochs in a pass; None for an endless pass.
            rank: rank of this process; None takes it from torch.distributed or the launcher's environment.
            world_size: number of processes that read the dataset together; None takes it from the same place as `rank`.
            label: name of the column that holds the labels.

        Raises:
            ValueError: if only one of `rank` and `world_size` is given.
            ValueError, OSError: as `Reading` and `labelled_windows` do.
        """
        if (rank is None) != (world_size is None):
            raise ValueError("give both rank and world_size, or neither")
        self._dataset, self._packing, self._label = dataset, packing, label
        self._order: dict[str, Any] = {"seed": seed, "shuffled_rows": shuffled_rows, "epochs": epochs}
        self._given = None if rank is None or world_size is None else (rank, world_size)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change
        self._pass: WindowsPass | None = None
        self._state: Mapping[str, Any] | None = None
        self.windows(0)  # raises errors here instead of in a worker

    def __iter__(self) -> "WindowsPass":
        """Start a pass, from the loaded state if there is one."""
        # the copy avoids a reference cycle, which a reader's own thread may collect
        self._pass = WindowsPass(copy(self), int(self._epoch))
        if self._state is not None:
            self._pass.load_state_dict(self._state)
            self._state = None
        return self._pass

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes to send to a spawned loader worker.

        They include rank and world size, since the worker does not belong to a process group of torch.distributed.
        """
        return {**self.__dict__, "_given": self._place(), "_pass": None}

    def set_epoch(self, epoch: int) -> None:
        """Set the index of the epoch with which the next pass begins."""
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this process's pass, as a small dictionary that JSON can hold.

        Raises:
            ValueError: if this process has neither begun a pass nor loaded a state.
        """
        if self._pass is not None and self._state is None:
            return self._pass.state_dict()
        if self._state is None:
            raise ValueError(
                "this process has read nothing, so it has no state; if loader workers read, take the state of"
                " torchdata's StatefulDataLoader"
            )
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next pass resume from a state, with bit-identical windows.

        Beginning the pass raises a ValueError if the state is from another dataset, order, rank or number of workers.
        """
        self._state = dict(state)

    def windows(self, epoch: int) -> Resumable[PackedWindow]:
        """Return an iterator over the windows of this process or loader worker, from the beginning of an epoch."""
        (rank, world_size), worker = self._place(), get_worker_info()
        if worker is not None:
            rank, world_size = rank * worker.num_workers + worker.id, world_size * worker.num_workers
        reading = Reading(rank=rank, ranks=world_size, first_epoch=epoch, **self._order)
        return labelled_windows(self._dataset, self._packing, reading, self._label)

    def _place(self) -> tuple[int, int]:
        """Return the rank of this training process and the number of such processes. Loader workers do not count."""
        if self._given is not None:
            return self._given
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # set by a launcher


class WindowsPass(Iterator[PackedWindow]):
    """One pass over the windows of a process or loader worker."""

    def __init__(self, dataset: LabelledWindows, epoch: int) -> None:
        self._dataset, self._epoch = dataset, epoch
        self._windows = dataset.windows(epoch)

    def __next__(self) -> PackedWindow:
        return next(self._windows)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the pass, and the index of the epoch with which the pass began."""
        return {"epoch": self._epoch, **self._windows.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from the state of a pass.

        Raises:
            ValueError: if the state is incomplete, or from another dataset, packing, order, rank or number of workers.
        """
        if "epoch" not in state:
            raise ValueError("this is not a state of LabelledWindows: it lacks epoch")
        self._epoch = int(state["epoch"])
        self._dataset.set_epoch(self._epoch)
        self._windows = self._dataset.windows(self._epoch)
        self._windows.load_state_dict(state)
