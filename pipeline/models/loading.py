"""Models from their checkpoint folders, and back into one."""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pipeline.data.tokenizer import declared_beginning
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.card import CARD_FILE
from pipeline.models.checkpoint import CONFIG_FILE, copy_tokenizer, require_kind
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.language_model import require_known_head, start_token
from pipeline.models.second_order import SecondOrderModel

WeightType = Literal["float32", "bfloat16"]


def load_estimator(folder: Path, device: str = "cpu") -> EntropyEstimator:
    """An entropy estimation model in float32 on the device, ready to evaluate."""
    require_kind(folder, "estimator")
    estimator: EntropyEstimator = _loaded(EntropyEstimator, folder, device)
    return estimator


def load_autoencoder(folder: Path, device: str = "cpu") -> Autoencoder:
    """An autoencoder in float32 on the device, ready to evaluate."""
    require_kind(folder, "autoencoder")
    autoencoder: Autoencoder = _loaded(Autoencoder, folder, device)
    return autoencoder


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


def save_checkpoint(
    model: PreTrainedModel, folder: Path, *, dtype: WeightType, tokenizer_folder: Path | None, card: str
) -> None:
    """Writes weights in `dtype`, configuration, the tokenizer it was trained with, if any, and its card."""
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)
    (folder / CARD_FILE).write_text(card)


def _loaded(model_class: Any, folder: Path, device: str) -> Any:
    try:
        model, report = model_class.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except RuntimeError as error:  # shapes that do not fit
        raise ValueError(f"the weights of {folder} do not fit its {CONFIG_FILE}; fetch or save both again") from error
    if missing := sorted(report["missing_keys"]):
        listed = f"{missing[0]} and {len(missing) - 1} others" if len(missing) > 1 else missing[0]
        raise ValueError(f"{folder} lacks weights: {listed}; fetch or save it again")
    model.to(device).eval()
    model.requires_grad_(False)
    return model
