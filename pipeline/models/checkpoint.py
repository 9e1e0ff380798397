"""Checkpoint folders: `config.json`, safetensors weights, the tokenizer's files and a model card; no torch here.

So that a command that only looks at a checkpoint starts at once. Weights are safetensors alone, never a pickle, which
can run code when it is loaded.
"""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from pipeline.data.atomic import unfinished_name
from pipeline.data.own_files import own_file
from pipeline.models.checkpoint_files import (
    CONFIG_FILE,
    TEXT_CONFIG,
    declared_context,
    digested_files,
    language_config,
    positive,
    read_config,
    require_sizes,
    weights_size,
)
from schemas.annotations import Method

CheckpointKind = Literal["estimator", "autoencoder", "second-order", "causal"]
KIND_OF_MODEL_TYPE: dict[str, CheckpointKind] = {
    "entropy-estimator": "estimator",
    "window-autoencoder": "autoencoder",
    "second-order-entropy": "second-order",
}
KIND_OF_METHOD: dict[Method, CheckpointKind] = {
    "second-order": "second-order",
    "exact": "estimator",
    "causal": "causal",
}

CAUSAL_NAMES = ("ForCausalLM", "LMHeadModel")  # how transformers' classes of causal language models end

SHIPPED = Path(__file__).parents[1] / "checkpoints"
"""Folders `tokenizer`, `estimator` and `second-order`, which come with the project."""

ADAPTER_FILE = "adapter_config.json"
DIGESTED_BYTES = 2**20  # at a time
FOLD = re.compile(r"fold-(\d{1,6})-of-(\d{1,6})")
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
        ValueError: if a fold is missing, or a folder is named like one and is none.
    """
    found = sorted(folder.glob("fold-*-of-*"))
    if not found:
        return (folder,)
    places = {file: FOLD.fullmatch(file.name) for file in found}
    odd = [file for file, place in places.items() if place is None or file.is_symlink() or not file.is_dir()]
    if odd:
        raise ValueError(f"{odd[0]} is not a fold of a checkpoint, such as fold-0-of-{len(found)}; rename or remove it")
    folds = int(found[0].name.rpartition("-")[2])
    members = tuple(fold_folder(folder, fold, folds) for fold in range(min(folds, len(found) + 1)))
    missing = set(members).symmetric_difference(found)
    if missing:
        raise ValueError(f"{folder} does not hold {folds} folds: see {min(missing).name}; train it again")
    return members


def checkpoint_kind(folder: Path) -> CheckpointKind:
    """What a folder holds, from its configuration alone.

    Raises:
        ValueError: if it is not a checkpoint.
    """
    config = read_config(folder)
    kind = config.get("model_type")
    if kind in KIND_OF_MODEL_TYPE:
        return KIND_OF_MODEL_TYPE[kind]
    names = (*CAUSAL_NAMES, "ForConditionalGeneration") if config.get(TEXT_CONFIG) else CAUSAL_NAMES
    if any(name.endswith(names) for name in config.get("architectures") or ()):
        return "causal"
    raise ValueError(f"{folder} holds a model of type {kind!r}, which this project does not know; name another")


def require_kind(folder: Path, expected: CheckpointKind) -> None:
    """Checks, without loading them, that the folder holds safetensors weights of the expected kind and size.

    Raises:
        ValueError: if it does not; nothing of a pickle is read.
    """
    kind = checkpoint_kind(folder)
    if kind != expected:
        raise ValueError(f"{folder} holds a checkpoint of kind {kind}; this needs one of kind {expected}: name another")
    if own_file(folder, ADAPTER_FILE):
        raise ValueError(
            f"{folder} has an {ADAPTER_FILE}, of weights that only peft would add; save the model after "
            "`merge_and_unload`, or remove the file"
        )
    require_sizes(folder, read_config(folder), *weights_size(folder))


def context_and_vocabulary(folder: Path) -> tuple[int | None, int]:
    """Longest window in tokens and number of token ids, from the configuration alone.

    A causal language model keeps one position for the token that stands before the first. No context where the
    configuration names none, as those of Mamba, RWKV and models with ALiBi may.

    Raises:
        ValueError: if the configuration has no `vocab_size`, or one of the two is no such number.
    """
    config = language_config(read_config(folder))
    vocabulary = positive(folder, config, "vocab_size")
    if config.get("context") is not None:
        return positive(folder, config, "context"), vocabulary
    return declared_context(config), vocabulary


def checkpoint_sha256(*folders: Path) -> str:
    """Digest of configuration and weights of a checkpoint, or of all its folds: what a label depends on."""
    digest = hashlib.sha256()
    for folder in folders:
        files, loaded = digested_files(folder)
        for file in (folder / CONFIG_FILE, *files):
            with file.open("rb") as stream:
                while part := stream.read(DIGESTED_BYTES):
                    digest.update(part)
        digest.update("\n".join(loaded).encode())
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
