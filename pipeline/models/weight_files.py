"""The safetensors files that a checkpoint's weights are loaded from, and what their headers tell; no torch here.

transformers loads `model.safetensors`, or whatever `model.safetensors.index.json` names, wherever it is. Here it
may name nothing but safetensors files of its own folder.
"""

import re
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from pipeline.data.own_files import own_file, read_object

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MOST_INDEX_BYTES = 2**27
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
PLAIN_NAME = re.compile(r"[^/\\\0]+\.safetensors")
PART = re.compile(r"model-\d+-of-\d+\.safetensors")
OF_A_RANK = "shard-*.safetensors"  # of a distributed checkpoint, of which transformers loads every file


class Size(NamedTuple):
    """Sizes of weights, from their headers."""

    tensors: int
    numbers: int


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that the weights are loaded from, in the order of their names.

    Raises:
        ValueError: if there are none, or one is not a safetensors file of the folder itself.
    """
    if rank := next(folder.glob(OF_A_RANK), None):
        raise ValueError(f"{rank} is a part of a distributed checkpoint; save the whole model with `save_pretrained`")
    if whole := own_file(folder, WEIGHTS_FILE):
        return (whole,)
    index = own_file(folder, INDEX_FILE)
    if index is None:
        raise ValueError(_without_weights(folder))
    places = read_object(index, MOST_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map of weights to files; fetch or save the checkpoint again")
    names = {str(name) for name in places.values()}
    if wrong := sorted(name for name in names if not PLAIN_NAME.fullmatch(name)):
        raise ValueError(f"{index} names {wrong[0]!r}, which is no safetensors file of its own folder; name another")
    files = {name: own_file(folder, name) for name in sorted(names)}
    if absent := [name for name, file in files.items() if file is None]:
        raise ValueError(f"{index} names {absent[0]!r}, which is not there; fetch or save the checkpoint again")
    return tuple(file for file in files.values() if file is not None)


def weights_size(folder: Path) -> Size:
    """How much the weights are.

    Raises:
        ValueError: as weight_files, or if a file is damaged, or two hold a weight of one name.
    """
    seen: set[str] = set()
    numbers = 0
    for file in weight_files(folder):
        try:
            with safe_open(file, "np") as stored:
                names = set(stored.keys())
                numbers += sum(_product(stored.get_slice(name).get_shape()) for name in names)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is not a safetensors file: {error}; fetch or save it again") from error
        if twice := seen & names:
            raise ValueError(f"{file} holds {min(twice)}, which another file holds too; fetch or save them again")
        seen |= names
    return Size(len(seen), numbers)


def digested_files(folder: Path) -> tuple[list[Path], list[str]]:
    """All safetensors files of a checkpoint, and the names of those that are loaded where that is not plain from these.

    It is plain where weights have their usual names, or all files are loaded: digests of such checkpoints are those of
    the files alone.
    """
    loaded = [file.name for file in weight_files(folder)]
    files = [file for each in sorted(folder.glob("*.safetensors")) if (file := own_file(folder, each.name))]
    names = [file.name for file in files]
    parts = [name for name in names if PART.fullmatch(name)]
    usual = [WEIGHTS_FILE] if WEIGHTS_FILE in names else parts or names
    return files, [] if loaded == usual else loaded


def _without_weights(folder: Path) -> str:
    others = sorted(folder.glob("*.safetensors"))
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if others:
        return (
            f"{folder} has neither {WEIGHTS_FILE} nor {INDEX_FILE}, only {others[0].name}; save it with "
            "`save_pretrained`"
        )
    reason = f"only pickled ones ({', '.join(pickles)}), which can run code when loaded" if pickles else "none at all"
    return f"{folder} has no safetensors weights, {reason}; save it with `save_pretrained`"


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
