"""A model's checkpoint: a folder of `config.json`, safetensors weights, the tokenizer's files and a model card.

What a command asks of one is answered from its files without torch, so that the command starts at once;
`pipeline.models.loading` loads it. Weights are safetensors alone, never a pickle, which can run code when it is loaded.
"""

import hashlib
import re
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

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
from pipeline.data.tokenizer import tokenizer_sha256
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
from schemas.annotations import SHIPPED_MODEL, Method

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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, or those of a cross-fitting, one for each fold. Its files are read once, when they are asked for.

    A property raises a ValueError if a file that it needs is missing or damaged.
    """

    folder: Path
    repository: str | None = None
    """With the commit, USER/NAME@COMMIT, if the folder is a local copy of a model on the Hub."""

    @classmethod
    def find(cls, named: str) -> Self:
        """A folder, or the local copy of `user/name` or `user/name@revision` on the Hub, fetched without its pickles.

        A revision is a commit, branch or tag. The name of the copy's folder is the commit.

        Raises:
            ValueError: if there is neither.
        """
        if Path(named).exists():
            return cls(Path(named))
        name, _, revision = named.partition("@")
        refused = f"no folder {named}, and the Hub does not give out a model of that name"
        try:
            copy = snapshot_download(name, revision=revision or None, allow_patterns=["*.json", "*.safetensors"])
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise ValueError(f"{refused}; check it, or log in with `hf auth login`") from error
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise ValueError(f"{refused}: {error}") from error
        return cls(Path(copy), f"{name}@{Path(copy).resolve().name}")

    @cached_property
    def members(self) -> tuple[Self, ...]:
        """The checkpoint itself, or those of its folds.

        Raises:
            ValueError: if a fold is missing, or a folder is named like one and is none.
        """
        existing = sorted(self.folder.glob("fold-*-of-*"))
        if not existing:
            return (self,)
        for file in existing:
            if not FOLD.fullmatch(file.name) or file.is_symlink() or not file.is_dir():
                raise ValueError(
                    f"{file} is not a fold of a checkpoint, such as fold-0-of-{len(existing)}; rename or remove it"
                )
        folds = int(existing[0].name.rpartition("-")[2])
        expected = [fold_folder(self.folder, fold, folds) for fold in range(min(folds, len(existing) + 1))]
        if odd := set(expected).symmetric_difference(existing):
            raise ValueError(f"{self.folder} does not hold {folds} folds: see {min(odd).name}; train it again")
        return tuple(type(self)(folder) for folder in expected)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Its config.json, with the types that it should have."""
        return read_config(self.folder)

    @property
    def kind(self) -> CheckpointKind:
        """What the configuration says that the folder holds."""
        model_type = self.config.get("model_type")
        if model_type in KIND_OF_MODEL_TYPE:
            return KIND_OF_MODEL_TYPE[model_type]
        names = (*CAUSAL_NAMES, "ForConditionalGeneration") if self.config.get(TEXT_CONFIG) else CAUSAL_NAMES
        if any(name.endswith(names) for name in self.config.get("architectures") or ()):
            return "causal"
        raise ValueError(
            f"{self.folder} holds a model of type {model_type!r}, which this project does not know; name another"
        )

    @property
    def context(self) -> int | None:
        """Longest window in tokens; None if the configuration names none, as for Mamba, RWKV and models with ALiBi.

        A causal language model keeps one position for the token that stands before the first.
        """
        config = language_config(self.config)
        if config.get("context") is not None:
            return positive(self.folder, config, "context")
        return declared_context(config)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return positive(self.folder, language_config(self.config), "vocab_size")

    @cached_property
    def tokenizer_sha256(self) -> str | None:
        """Digest of its tokenizer; None if it has none."""
        return tokenizer_sha256(self.folder)

    @property
    def sha256(self) -> str:
        """Digest of configuration and weights, of all its folds: what a label depends on."""
        return checkpoint_sha256(*self.members)

    @property
    def is_shipped(self) -> bool:
        """True if it comes with the project."""
        return self.folder.resolve().is_relative_to(SHIPPED.resolve())

    @property
    def name(self) -> str:
        """SHIPPED_MODEL, name on the Hub with the commit, or last part of the folder."""
        return SHIPPED_MODEL if self.is_shipped else self.repository or self.folder.resolve().name

    def require_kind(self, expected: CheckpointKind) -> None:
        """Checks, without loading them, that the folder holds safetensors weights of the expected kind and size.

        Raises:
            ValueError: if it does not; nothing of a pickle is read.
        """
        if self.kind != expected:
            raise ValueError(
                f"{self.folder} holds a checkpoint of kind {self.kind}; this needs one of kind {expected}: name another"
            )
        if own_file(self.folder, ADAPTER_FILE):
            raise ValueError(
                f"{self.folder} has an {ADAPTER_FILE}, of weights that only peft would add; save the model after "
                "`merge_and_unload`, or remove the file"
            )
        require_sizes(self.folder, self.config, *weights_size(self.folder))


def checkpoint_sha256(*checkpoints: Checkpoint) -> str:
    """Digest of configurations and weights, one checkpoint after the other."""
    digest = hashlib.sha256()
    for checkpoint in checkpoints:
        files, loaded = digested_files(checkpoint.folder)
        for file in (checkpoint.folder / CONFIG_FILE, *files):
            with file.open("rb") as stream:
                while part := stream.read(DIGESTED_BYTES):
                    digest.update(part)
        digest.update("\n".join(loaded).encode())
    return digest.hexdigest()


def fold_folder(folder: Path, fold: int, folds: int) -> Path:
    """Folder of the checkpoint that was trained without a fold's documents; `folder` itself if there is one fold."""
    return folder if folds == 1 else folder / f"fold-{fold}-of-{folds}"


def require_new_folder(folder: Path) -> None:
    """Refuses an output that exists already: a training never mixes with what an earlier one left.

    Raises:
        ValueError: if it is a file or a folder that is not empty.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"`output` {folder} is there already; delete it or choose another folder")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer's files, so that a checkpoint or dataset is complete by itself."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            unfinished = unfinished_name(target / name)  # an existing file may be a link to elsewhere
            shutil.copyfile(source / name, unfinished)
            unfinished.replace(target / name)
