"""Checkpoint folders: `config.json`, safetensors weights, the tokenizer's files and a model card.

Weights are read from safetensors alone, never from a pickle, which can run code when it is loaded.
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pipeline.data.tokenizer import declared_beginning
from pipeline.models.card import CARD_FILE
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.language_model import require_known_head, start_token
from pipeline.models.second_order import SecondOrderModel

Kind = Literal["estimator", "second-order", "causal"]
WeightType = Literal["float32", "bfloat16"]

SHIPPED = Path(__file__).parents[1] / "checkpoints"
"""Folders `tokenizer`, `estimator` and `second-order`, which come with the project."""

CONFIG_FILE = "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def find_checkpoint(named: str) -> Path:
    """A folder, or the local copy of a Hub repository `user/name`, of which no pickle is fetched.

    Raises:
        ValueError: if there is neither.
    """
    if Path(named).exists():
        return Path(named)
    try:
        return Path(snapshot_download(named, allow_patterns=["*.json", "*.safetensors"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
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
        raise ValueError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}")
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if config.get("model_type") == EntropyEstimator.config_class.model_type:
        return "estimator"
    if config.get("model_type") == SecondOrderModel.config_class.model_type:
        return "second-order"
    if any(name.endswith("ForCausalLM") for name in config.get("architectures") or ()):
        return "causal"
    raise ValueError(f"{folder} holds a model of type {config.get('model_type')!r}, which this project does not know")


def load_estimator(folder: Path, device: str = "cpu") -> EntropyEstimator:
    """An entropy estimation model in float32 on the device, ready to evaluate."""
    require_kind(folder, "estimator")
    estimator: EntropyEstimator = _loaded(EntropyEstimator, folder, device)
    return estimator


def load_second_order(folder: Path, device: str = "cpu") -> SecondOrderModel:
    """A second-order model in float32 on the device, ready to evaluate."""
    require_kind(folder, "second-order")
    model: SecondOrderModel = _loaded(SecondOrderModel, folder, device)
    return model


def load_causal(folder: Path, device: str = "cpu") -> PreTrainedModel:
    """A causal language model in float32 on the device, ready to evaluate."""
    require_kind(folder, "causal")
    model: PreTrainedModel = _loaded(AutoModelForCausalLM, folder, device)
    require_known_head(model)
    return model


def declared_start(folder: Path) -> int:
    """Id of the token that stands before a document: what a causal model's tokenizer declares, or else its
    configuration, as beginning, or else end, of sequence.

    Raises:
        ValueError: if neither declares any.
    """
    declared = declared_beginning(folder)
    return start_token(AutoConfig.from_pretrained(folder)) if declared is None else declared


def require_kind(folder: Path, expected: Kind) -> None:
    """Checks, without loading them, that the folder holds safetensors weights of the expected kind.

    Raises:
        ValueError: if it does not; nothing of a pickle is read.
    """
    kind = checkpoint_kind(folder)
    if kind != expected:
        raise ValueError(f"{folder} holds a checkpoint of kind {kind}; this needs one of kind {expected}")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
        reason = (
            f"only pickled ones ({', '.join(pickles)}), which can run code when loaded" if pickles else "none at all"
        )
        raise ValueError(f"{folder} has no safetensors weights, {reason}; save it with `save_pretrained`")
    for file in weights:
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{file} is not a safetensors file: {error}") from error


def context_and_vocabulary(folder: Path) -> tuple[int, int]:
    """Longest window in tokens and number of token ids, from the configuration alone.

    A causal language model keeps one position for the token that stands before the first.

    Raises:
        ValueError: if the configuration does not say.
    """
    config = json.loads((folder / CONFIG_FILE).read_text())
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    context = config.get("context") or (positions - 1 if positions else None)
    if context is None or "vocab_size" not in config:
        raise ValueError(f"{folder / CONFIG_FILE} names no max_position_embeddings or no vocab_size")
    return context, config["vocab_size"]


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


def save_checkpoint(
    model: PreTrainedModel, folder: Path, *, dtype: WeightType, tokenizer_folder: Path | None, card: str
) -> None:
    """Writes weights in `dtype`, configuration, the tokenizer it was trained with, if any, and its card."""
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)
    (folder / CARD_FILE).write_text(card)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer's files, so that a checkpoint or dataset is complete by itself."""
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _loaded(model_class: Any, folder: Path, device: str) -> Any:
    try:
        model, report = model_class.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except RuntimeError as error:  # shapes that do not fit
        raise ValueError(f"the weights of {folder} do not fit its {CONFIG_FILE}: {error}") from error
    if report["missing_keys"]:
        raise ValueError(f"{folder} lacks weights: {', '.join(sorted(report['missing_keys']))}")
    model.to(device).eval()
    model.requires_grad_(False)
    return model
