"""Models from their checkpoint folders, and back into one."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pipeline.data.tokenizer import declared_beginning
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.card import CARD_FILE
from pipeline.models.checkpoint import CONFIG_FILE, Kind, copy_tokenizer, require_kind
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.language_model import start_token
from pipeline.models.probe import require_causal
from pipeline.models.second_order import SecondOrderModel

WeightType = Literal["float32", "bfloat16"]

CLASSES: dict[Kind, Any] = {
    "estimator": EntropyEstimator,
    "autoencoder": Autoencoder,
    "second-order": SecondOrderModel,
    "causal": AutoModelForCausalLM,
}


def load_estimator(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> EntropyEstimator:
    """An entropy estimation model in `dtype` on the device, ready to evaluate."""
    estimator: EntropyEstimator = _loaded(folder, "estimator", device, dtype)
    return estimator


def load_autoencoder(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> Autoencoder:
    """An autoencoder in `dtype` on the device, ready to evaluate."""
    autoencoder: Autoencoder = _loaded(folder, "autoencoder", device, dtype)
    return autoencoder


def load_second_order(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> SecondOrderModel:
    """A second-order model in `dtype` on the device, ready to evaluate."""
    model: SecondOrderModel = _loaded(folder, "second-order", device, dtype)
    return model


def load_causal(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> PreTrainedModel:
    """A causal language model in `dtype` on the device, ready to evaluate."""
    model: PreTrainedModel = _loaded(folder, "causal", device, dtype)
    require_causal(model)
    return model


def declared_start(folder: Path) -> int:
    """Id of the token that stands before a document: what a causal model's tokenizer declares, or else its
    configuration, as beginning, or else end, of sequence.

    Raises:
        ValueError: if neither declares any.
    """
    declared = declared_beginning(folder)
    return start_token(AutoConfig.from_pretrained(folder, trust_remote_code=False)) if declared is None else declared


def save_checkpoint(
    model: PreTrainedModel, folder: Path, *, dtype: WeightType, tokenizer_folder: Path | None, card: str
) -> None:
    """Writes weights in `dtype`, configuration, the tokenizer it was trained with, if any, and its card."""
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def require_complete(folder: Path, kind: Kind) -> None:
    """Checks that a checkpoint has all its weights, in their shapes, and needs no code of its own; reads no weight.

    Raises:
        ValueError: if that is not so.
    """
    require_kind(folder, kind)
    _read(folder, kind, device_map="meta")


def _loaded(folder: Path, kind: Kind, device: str, dtype: WeightType) -> Any:
    require_kind(folder, kind)
    # Not by `.to(dtype)`, which would round the frequencies of rotary positions too.
    model = _read(folder, kind, dtype=getattr(torch, dtype))
    model.to(device).eval()
    model.requires_grad_(False)
    return model


def _read(folder: Path, kind: Kind, **settings: Any) -> Any:
    try:
        model, report = CLASSES[kind].from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **settings
        )
    except RuntimeError as error:  # shapes that do not fit
        raise ValueError(f"the weights of {folder} do not fit its {CONFIG_FILE}; fetch or save both again") from error
    except Exception as error:  # a class or a package that is not here, settings that do not fit together
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it needs code of its own, which is never run"
        raise ValueError(f"{folder} cannot be loaded: {reason}; name another checkpoint") from error
    if missing := sorted(report["missing_keys"]):
        listed = f"{missing[0]} and {len(missing) - 1} others" if len(missing) > 1 else missing[0]
        raise ValueError(f"{folder} lacks weights: {listed}; fetch or save it again")
    return model
