"""Checks of an untrusted checkpoint before a model is built from it.

The checks of `config.json` cover types, sizes, and settings that would fetch code or other files. Sizes determine how
much memory is allocated. The headers of the safetensors files are cheap to read and show how large the sizes in
`config.json` can be.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from pipeline.data.own_files import own_file, read_object

CONFIG_FILE = "config.json"
TEXT_CONFIG = "text_config"  # key of the language model's settings in a model that also reads images

POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",  # MPT
    "max_sequence_length",
    "seq_length",  # Bloom
    "n_ctx",
    "context_length",  # RWKV
    "model_max_length",  # Kimi Linear
    "max_target_positions",  # Whisper's decoder
)
"""Settings in which causal language models declare their number of positions, the most common setting first."""

ELSEWHERE = ("transformers_weights", "configuration_files", "extra_files")  # settings that name other files to read
IMPLEMENTATIONS = {
    "attn_implementation": ("eager", "sdpa", "flex_attention"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}
"""Implementations that are part of transformers. Any other would be fetched from the Hub as a kernel, which is code."""

MOST_NUMBERS = 2**20  # limit for a size; for a model with more weights than this, the limit is the number of weights
MOST_LAYERS = 10**4
COUNTS_OF_LAYERS = re.compile("layer|block|depth")
NO_SIZES = re.compile("theta|base|seed")  # settings that are not sizes: frequencies and seeds


def read_config(folder: Path) -> dict[str, Any]:
    """Read `config.json` and check the types of its values.

    Raises:
        ValueError: if the file is missing or damaged, or has a setting that would fetch code or other files.
    """
    file = own_file(folder, CONFIG_FILE)
    if file is None:
        raise ValueError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}; name a folder that has one")
    config = read_object(file)
    names, parts = config.get("architectures"), [config.get(TEXT_CONFIG), config.get("transformer")]
    for key, fits in (
        ("model_type", isinstance(config.get("model_type"), str | None)),
        ("architectures", names is None or (isinstance(names, list) and all(isinstance(name, str) for name in names))),
        (TEXT_CONFIG, isinstance(parts[0], dict | None)),
        ("transformer", isinstance(parts[1], dict | None)),
    ):
        if not fits:
            raise _wrong(folder / CONFIG_FILE, key, config[key], "has the wrong type")
    for key, value in settings(config):
        _require_plain(folder, key, value)
    for key in POSITIONS:
        if not isinstance(value := language_config(config).get(key), int | None):
            raise _wrong(folder / CONFIG_FILE, key, value, "is not a whole number")
    return config


def language_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the section `text_config` of a configuration, or the whole configuration if the section is missing."""
    part: Mapping[str, Any] = config.get(TEXT_CONFIG) or config
    return part


def settings(config: object, within: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a configuration with its value. Nested keys are joined by dots."""
    if isinstance(config, dict):
        for key, value in config.items():
            name = f"{within}.{key}" if within else key
            yield name, value
            yield from settings(value, name)
    elif isinstance(config, list):
        for value in config:
            yield from settings(value, within)


def require_sizes(file: Path, config: Mapping[str, Any], tensors: int, numbers: int) -> None:
    """Raise if a size in a model's configuration, read from `file`, is too large for its weights.

    Raises:
        ValueError: naming the first size that is too large.
    """
    for key, value in settings(config):
        name = key.rpartition(".")[2]
        most = max(MOST_LAYERS, tensors) if COUNTS_OF_LAYERS.search(name) else max(MOST_NUMBERS, numbers)
        if isinstance(value, int) and value > most and not NO_SIZES.search(name):
            fault = f"is more than weights of {tensors:,} tensors and {numbers:,} numbers can have"
            raise _wrong(file, key, value, fault)


def positive(folder: Path, config: Mapping[str, Any], key: str) -> int:
    """Return the size under `key` in the configuration of the checkpoint in `folder`.

    Raises:
        ValueError: if the size is missing, or not a whole number above 0.
    """
    value = config.get(key)
    if value is None:
        raise ValueError(f"{folder / CONFIG_FILE} has no {key}; name another checkpoint")
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(folder / CONFIG_FILE, key, value, "is not a whole number above 0")
    return value


def declared_context(config: Mapping[str, Any]) -> int | None:
    """Return the number of tokens that a causal language model can read after the start token; None if not declared."""
    named = (config.get(name) for name in POSITIONS)
    positions = next((number for number in named if isinstance(number, int) and number > 1), None)
    return None if positions is None else positions - 1


def _require_plain(folder: Path, key: str, value: Any) -> None:
    """Raise if a setting of `config.json` would fetch code, or would make transformers read further files.

    Raises:
        ValueError: naming the setting.
    """
    file, name = folder / CONFIG_FILE, key.rpartition(".")[2]
    if name in ELSEWHERE and value:
        raise _wrong(file, key, value, "would have other files read; leave it out, and give files their usual names")
    allowed = IMPLEMENTATIONS.get(name.strip("_").removesuffix("_internal"))
    named = value.values() if isinstance(value, dict) else [value]
    if allowed is not None and any(each is not None and each not in allowed for each in named):
        raise _wrong(file, key, value, f"is not one of {', '.join(allowed)}, and other code is never fetched")


def _wrong(file: Path, key: str, value: object, fault: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
    return ValueError(f"{file}: {key} {shown} {fault}; fix it, or name another checkpoint")


WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MOST_INDEX_BYTES = 2**27
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
PLAIN_NAME = re.compile(r"[^/\\\0]+\.safetensors")
PART = re.compile(r"model-\d+-of-\d+\.safetensors")
OF_A_RANK = "shard-*.safetensors"  # parts of a distributed checkpoint; transformers would load all of them


class WeightsSize(NamedTuple):
    """Size of a model's weights: the number of tensors, and the total number of their elements."""

    tensors: int
    numbers: int


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the files that the weights are loaded from, sorted by name.

    Raises:
        ValueError: if there are no safetensors weights, or the index names a file that is not in the folder itself.
    """
    if rank := next(folder.glob(OF_A_RANK), None):
        raise ValueError(f"{rank} is a part of a distributed checkpoint; save the whole model with `save_pretrained`")
    if whole := own_file(folder, WEIGHTS_FILE):
        return (whole,)
    index = own_file(folder, INDEX_FILE)
    if index is None:
        raise ValueError(_without_weights(folder))
    weight_map = read_object(index, MOST_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map of weights to files; fetch or save the checkpoint again")
    names = {str(name) for name in weight_map.values()}
    if wrong := sorted(name for name in names if not PLAIN_NAME.fullmatch(name)):
        raise ValueError(f"{index} names {wrong[0]!r}, which is not a safetensors file in its folder; name another")
    files = {name: own_file(folder, name) for name in sorted(names)}
    if absent := [name for name, file in files.items() if file is None]:
        raise ValueError(f"{index} names {absent[0]!r}, which is not there; fetch or save the checkpoint again")
    return tuple(file for file in files.values() if file is not None)


def weights_size(folder: Path) -> WeightsSize:
    """Return the size of a checkpoint's weights, read from only the headers of the files.

    Raises:
        ValueError: if `weight_files` raises it, a file is damaged, or two files hold tensors of the same name.
    """
    seen: set[str] = set()
    numbers = 0
    for file in weight_files(folder):
        try:
            with safe_open(file, "np") as stored:
                names = set(stored.keys())
                numbers += sum(math.prod(stored.get_slice(name).get_shape()) for name in names)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} is not a safetensors file: {error}; fetch or save it again") from error
        if twice := seen & names:
            raise ValueError(f"{file} holds {min(twice)}, which another file holds too; fetch or save them again")
        seen |= names
    return WeightsSize(len(seen), numbers)


def digested_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return all safetensors files of a checkpoint, and the names of the files that are loaded.

    The list of names is empty if the loaded files are the usual ones: `model.safetensors`, or else all numbered parts,
    or else all safetensors files. The checkpoint's digest then depends only on the contents of the files.
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
