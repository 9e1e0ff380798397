"""Tokens that one of several processes reads. The dataset must find out the rank of its process by itself."""

import json
import os
import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from pipeline.data.annotated import find_annotations
from pipeline.data.packing import CutAtEnd, PackedWindow
from pipeline.training.distributed import process_group, this_process
from pipeline.training.torch_dataset import LabelledWindows


def ranked_tokens(source: str, folder: Path) -> None:
    """Write the tokens that this process reads, to one file for each way in which the dataset finds the process's rank.

    - launched: the dataset reads a launcher's environment variables
    - joined: the dataset asks the process group
    - pickled: the dataset was pickled in the process group, and the pickle holds the rank
    """
    windows = LabelledWindows(find_annotations(source), CutAtEnd(length=8))
    launched = tokens(DataLoader(windows, batch_size=None))
    with process_group():
        rank = this_process().process_index
        assert torch.distributed.get_world_size() == 2
        del os.environ["RANK"], os.environ["WORLD_SIZE"]
        joined, pickled = tokens(DataLoader(windows, batch_size=None)), pickle.dumps(windows)
    found = {"launched": launched, "joined": joined, "pickled": tokens(pickle.loads(pickled))}  # noqa: S301
    for way, ids in found.items():
        (folder / f"{way}-{rank}.json").write_text(json.dumps(ids), encoding="utf-8")


def tokens(loader: Iterable[PackedWindow]) -> list[int]:
    return [int(token) for window in loader for token in window[0].ravel() if token]
