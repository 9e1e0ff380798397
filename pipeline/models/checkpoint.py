"""Checkpoint folders: `config.json`, safetensors weights, the tokenizer's files and a model card; no torch here.

So that a command that only looks at a checkpoint starts at once. Weights are safetensors alone, never a pickle, which
can run code when it is loaded.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from pipeline.data.shards import unfinished_name

Kind = Literal["estimator", "autoencoder", "second-order", "causal"]
KIND_OF_MODEL_TYPE: dict[str, Kind] = {
    "entropy-estimator": "estimator",
    "window-autoencoder": "autoencoder",
    "second-order-entropy": "second-order",
}

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
"""Names by which configurations tell how many positions a causal language model has, the most common first."""

CAUSAL_NAMES = ("ForCausalLM", "LMHeadModel")  # how transformers' classes of causal language models end
TEXT_CONFIG = "text_config"  # of a model that reads images, too: what concerns its language model

SHIPPED = Path(__file__).parents[1] / "checkpoints"
"""Folders `tokenizer`, `estimator` and `second-order`, which come with the project."""

CONFIG_FILE = "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class UnfitModelError(ValueError):
    """A model that no worker can label with, on whatever node."""


def find_checkpoint(named: str) -> Path:
    """A folder, or the local copy of `user/name` on the Hub, of which no pickle is fetched; its name is the commit.

    `user/name@revision` is a commit, branch or tag there.

    Raises:
        ValueError: if there is neither.
    """
    if Path(named).exists():
        return Path(named)
    try:
        name, _, revision = named.partition("@")
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=["*.json", "*.safetensors"]))
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"no folder {named}, and the Hub does not give out a model of that name; check it, or log in with "
            "`hf auth login`"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ValueError(f"no folder {named}, and the Hub does not give out a model of that name: {error}") from error


def fold_folder(folder: Path, fold: int, folds: int) -> Path:
    """Where the checkpoint stands that was trained without a fold's documents; the folder itself if there is one."""
    return folder if folds == 1 else folder / f"fold-{fold}-of-{folds}"


def checkpoint_members(folder: Path) -> tuple[Path, ...]:
    """The checkpoints of a folder: itself, or one for each fold.

    Raises:
        ValueError: if a fold is missing.
    """
    found = sorted(folder.glob("fold-*-of-*"))
    if not found:
        return (folder,)
    folds = int(found[0].name.rpartition("-")[2])
    members = tuple(fold_folder(folder, fold, folds) for fold in range(folds))
    missing = set(members).symmetric_difference(found)
    if missing:
        raise ValueError(f"{folder} does not hold {folds} folds: see {min(missing).name}; train it again")
    return members


def checkpoint_kind(folder: Path) -> Kind:
    """What a folder holds, from its configuration alone.

    Raises:
        ValueError: if it is not a checkpoint.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}; name a folder that has one")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}; fetch or save the checkpoint again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no JSON object; fetch or save the checkpoint again")
    if config.get("model_type") in KIND_OF_MODEL_TYPE:
        return KIND_OF_MODEL_TYPE[config["model_type"]]
    names = CAUSAL_NAMES if TEXT_CONFIG not in config else (*CAUSAL_NAMES, "ForConditionalGeneration")
    if any(name.endswith(names) for name in config.get("architectures") or ()):
        return "causal"
    kind = config.get("model_type")
    raise ValueError(f"{folder} holds a model of type {kind!r}, which this project does not know; name another")


def require_kind(folder: Path, expected: Kind) -> None:
    """Checks, without loading them, that the folder holds safetensors weights of the expected kind.

    Raises:
        ValueError: if it does not; nothing of a pickle is read.
    """
    kind = checkpoint_kind(folder)
    if kind != expected:
        raise ValueError(f"{folder} holds a checkpoint of kind {kind}; this needs one of kind {expected}: name another")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        reason = (
            f"only pickled ones ({', '.join(pickles)}), which can run code when loaded" if pickles else "none at all"
        )
        raise ValueError(f"{folder} has no safetensors weights, {reason}; save it with `save_pretrained`")
    for file in weights:
        try:
            with safe_open(file, "np"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} is not a safetensors file: {error}; fetch or save it again") from error


def context_and_vocabulary(folder: Path) -> tuple[int | None, int]:
    """Longest window in tokens and number of token ids, from the configuration alone.

    A causal language model keeps one position for the token that stands before the first. No context where the
    configuration names none, as those of Mamba, RWKV and models with ALiBi may.

    Raises:
        ValueError: if the configuration has no `vocab_size`.
    """
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    config = config.get(TEXT_CONFIG, config)
    if "vocab_size" not in config:
        raise ValueError(f"{folder / CONFIG_FILE} names no vocab_size; name another checkpoint")
    return config.get("context") or declared_context(config), config["vocab_size"]


def declared_context(config: Mapping[str, Any]) -> int | None:
    """Tokens that a causal language model can read after the one that stands before them, if its configuration says."""
    named = (config.get(name) for name in POSITIONS)
    positions = next((number for number in named if isinstance(number, int) and number > 1), None)
    return None if positions is None else positions - 1


def checkpoint_sha256(*folders: Path) -> str:
    """Digest of configuration and weights of a checkpoint, or of all its folds: what a label depends on."""
    digest = hashlib.sha256()
    for folder in folders:
        for file in (folder / CONFIG_FILE, *sorted(folder.glob("*.safetensors"))):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def require_new_folder(folder: Path) -> None:
    """Refuses an output that is there already: a training never mixes with what an earlier one left.

    Raises:
        ValueError: if it is a file or a folder that is not empty.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"--output {folder} is there already; delete it or choose another folder")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer's files, so that a checkpoint or dataset is complete by itself."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            unfinished = unfinished_name(target / name)  # a file that is there may be a link to elsewhere
            shutil.copyfile(source / name, unfinished)
            unfinished.replace(target / name)
