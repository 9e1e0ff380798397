"""Loading of checkpoints into memory in the requested precision, with checks before a model labels.

All weights must be finite. A probe of one or two forward passes over at most 16 tokens must give finite labels. For a
causal language model, the probe also checks that this project computes the model's losses correctly. There are no
padding tokens in the probe, because their embeddings may be zeros, which would hide a wrong scale.

T tokens, V vocabulary, D width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from pipeline.data.tokenizer import declared_beginning
from pipeline.models.autoencoder import Autoencoder
from pipeline.models.backbone import Backbone, Role, load_weights, trained_weights
from pipeline.models.causal_lm import longest_window, next_token_hidden, output_head, start_token
from pipeline.models.checkpoint import Checkpoint, CheckpointKind, UnfitModelError, copy_tokenizer
from pipeline.models.checkpoint_files import CONFIG_FILE, weights_size
from pipeline.models.estimator import EntropyEstimator, Estimator
from pipeline.models.model_card import CARD_FILE
from pipeline.models.pretrained_estimator import PretrainedEstimator, PretrainedEstimatorConfig
from pipeline.models.second_order import SecondOrderConfig, SecondOrderModel

WeightType = Literal["float32", "bfloat16"]
ModelT = TypeVar("ModelT", bound=PreTrainedModel)

CLASSES: dict[CheckpointKind, Any] = {
    "estimator": EntropyEstimator,
    "autoencoder": Autoencoder,
    "second-order": SecondOrderModel,
    "causal": AutoModelForCausalLM,
}
MODULES_A_TENSOR, MOST_MODULES = 16, 10**4
"""Limit on a model's modules: 16 per tensor of the weights, or 10,000 if that is more."""


def load_estimator(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> Estimator:
    """Load an entropy estimation model to the device in `dtype`, in evaluation mode.

    The estimator may have been trained around language models that its checkpoint only names. These language models are
    then loaded too, and models on the Hub are fetched first.
    """
    estimator: Estimator
    if is_pretrained_estimator(folder):
        estimator = load_pretrained_estimator(folder, device, dtype)
    else:
        estimator = _loaded(folder, "estimator", device, dtype)
    require_labels(estimator, folder, estimator.token_losses)
    return estimator


def load_own_estimator(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> EntropyEstimator:
    """Load an estimator as `load_estimator` does, but refuse an estimator that was trained around language models.

    Raises:
        ValueError: if the estimator was trained around language models.
    """
    estimator = load_estimator(folder, device, dtype)
    if not isinstance(estimator, EntropyEstimator):
        raise ValueError(f"{folder} holds an estimator around a language model; name the language model itself")
    return estimator


def is_pretrained_estimator(folder: Path) -> bool:
    """True if a checkpoint holds an estimator that was trained around language models."""
    return bool(Checkpoint(folder).config.get("model_type") == PretrainedEstimatorConfig.model_type)


def load_second_order_around_language_model(
    folder: Path, device: str = "cpu", dtype: WeightType = "float32"
) -> SecondOrderModel:
    """Load a second-order model and the language model around which it was trained, in evaluation mode."""
    Checkpoint(folder).require_kind("second-order")
    with _in_one_line(folder):
        config = SecondOrderConfig.from_pretrained(folder)
    checkpoints = backbone_checkpoints(folder, {"decoder": Backbone.from_values(config.backbone)})
    model = SecondOrderModel.with_language_model(load_causal(checkpoints["decoder"].folder, device, dtype), config)
    return _with_own_weights(model, trained_weights(model), folder, device, dtype)


def _with_own_weights(
    model: ModelT, weights: dict[str, Tensor], folder: Path, device: str, dtype: WeightType
) -> ModelT:
    """Load the weights that a checkpoint stores, freeze the model, and return it in evaluation mode.

    `weights` maps the names of the weights stored in `folder` to tensors of the model. Each of these tensors gets its
    stored value, moves to the device and is converted to `dtype`.
    """
    load_weights(weights, folder)
    for weight in weights.values():
        weight.data = weight.data.to(device, getattr(torch, dtype))
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    require_finite(model, folder)
    return model


def load_pretrained_estimator(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> PretrainedEstimator:
    """Load an estimator and the language models around which it was trained, in evaluation mode."""
    Checkpoint(folder).require_kind("estimator")
    with _in_one_line(folder):
        config = PretrainedEstimatorConfig.from_pretrained(folder)
    checkpoints = backbone_checkpoints(folder, config.backbones())
    models = {role: load_causal(each.folder, device, dtype) for role, each in checkpoints.items()}
    estimator = PretrainedEstimator(config, models["decoder"], models.get("encoder"))
    return _with_own_weights(estimator, estimator.own_weights(), folder, device, dtype)


def named_backbones(folder: Path, kind: CheckpointKind) -> dict[Role, Backbone]:
    """Return the records of the language models that a checkpoint builds on, by role; empty for most checkpoints."""
    if kind == "estimator" and is_pretrained_estimator(folder):
        with _in_one_line(folder):
            return PretrainedEstimatorConfig.from_pretrained(folder).backbones()
    record = Checkpoint(folder).config.get("backbone") if kind == "second-order" else None
    return {"decoder": Backbone.from_values(record)} if record else {}


def backbone_checkpoints(folder: Path, backbones: dict[Role, Backbone]) -> dict[Role, Checkpoint]:
    """Return the checkpoints of the language models that a checkpoint builds on.

    Raises:
        ValueError: if there is no decoder, or a language model cannot be found or has changed.
    """
    if "decoder" not in backbones:
        raise ValueError(f"{folder / CONFIG_FILE} names no language model as its decoder; fetch or save it again")
    return {role: backbone.checkpoint(folder, role) for role, backbone in backbones.items()}


def load_autoencoder(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> Autoencoder:
    """Load an autoencoder to the device in `dtype`, in evaluation mode."""
    autoencoder: Autoencoder = _loaded(folder, "autoencoder", device, dtype)
    require_labels(autoencoder, folder, autoencoder.token_losses)
    return autoencoder


def load_second_order(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> SecondOrderModel:
    """Load a second-order model to the device in `dtype`, in evaluation mode."""
    model: SecondOrderModel
    if Checkpoint(folder).config.get("backbone"):
        model = load_second_order_around_language_model(folder, device, dtype)
    else:
        model = _loaded(folder, "second-order", device, dtype)
    require_labels(model, folder, lambda ids_1T: torch.stack(model.entropies(ids_1T)))
    return model


def load_causal(folder: Path, device: str = "cpu", dtype: WeightType = "float32") -> PreTrainedModel:
    """Load a causal language model to the device in `dtype`, in evaluation mode."""
    model: PreTrainedModel = _loaded(folder, "causal", device, dtype)
    try:
        require_causal(model)
    except UnfitModelError as error:
        raise UnfitModelError(f"{folder}: {error}") from error
    return model


def declared_start(folder: Path) -> int:
    """Return the id of the token to put before a document, as a causal model's checkpoint declares it.

    The tokenizer's settings have priority over the configuration. In each of the two, the beginning-of-sequence token
    has priority over the end-of-sequence token.

    Raises:
        ValueError: if neither the settings nor the configuration declare a token, or if the declared id is outside the
            model's vocabulary.
    """
    declared, checkpoint = declared_beginning(folder), Checkpoint(folder)
    vocabulary = checkpoint.vocabulary
    if declared is None:
        checkpoint.require_kind("causal")
        with _in_one_line(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        declared = start_token(config)
    if not 0 <= declared < vocabulary:
        raise ValueError(
            f"{folder} declares token {declared} to stand before a document, but has only {vocabulary} ids; name one "
            "of these with `start_token`"
        )
    return declared


def save_checkpoint(
    model: PreTrainedModel, folder: Path, *, dtype: WeightType, tokenizer_folder: Path | None, card: str
) -> None:
    """Write a checkpoint: weights in `dtype`, configuration, model card, and a copy of the tokenizer, if any."""
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    if tokenizer_folder is not None:
        copy_tokenizer(tokenizer_folder, folder)
    (folder / CARD_FILE).write_text(card, encoding="utf-8")


def require_complete(folder: Path, kind: CheckpointKind) -> None:
    """Raise unless a checkpoint has all weights in the right shapes and needs no custom code. No weights are read.

    Raises:
        ValueError: if a weight is missing or has another shape, or if the model needs custom code.
    """
    Checkpoint(folder).require_kind(kind)
    if backbones := named_backbones(folder, kind):
        for checkpoint in backbone_checkpoints(folder, backbones).values():
            require_complete(checkpoint.folder, "causal")
        return
    _read(folder, kind, device_map="meta")


def _loaded(folder: Path, kind: CheckpointKind, device: str, dtype: WeightType) -> Any:
    Checkpoint(folder).require_kind(kind)
    # The dtype is not set by `.to(dtype)`, which would also round the frequencies of rotary positions.
    model = _read(folder, kind, dtype=getattr(torch, dtype))
    model.to(device).eval()
    model.requires_grad_(False)
    require_finite(model, folder)
    return model


def _read(folder: Path, kind: CheckpointKind, **settings: Any) -> Any:
    # Without this configuration for generation, transformers would read one from another file. Nothing is generated.
    settings |= {"use_safetensors": True, "trust_remote_code": False, "generation_config": GenerationConfig()}
    with _in_one_line(folder), _bounded(folder):
        model, report = CLASSES[kind].from_pretrained(folder, output_loading_info=True, **settings)
    if missing := sorted(report["missing_keys"]):
        listed = f"{missing[0]} and {len(missing) - 1} others" if len(missing) > 1 else missing[0]
        raise ValueError(f"{folder} lacks weights: {listed}; fetch or save it again")
    return model


@contextmanager
def _in_one_line(folder: Path) -> Iterator[None]:
    """Context manager that replaces any error of transformers by a one-line ValueError that names the checkpoint."""
    try:
        yield
    except RuntimeError as error:  # shapes that do not fit
        raise ValueError(f"the weights of {folder} do not fit its {CONFIG_FILE}; fetch or save both again") from error
    except Exception as error:  # a missing class or package, settings that contradict each other
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason:
            reason = "it needs code of its own, which is never run"
        raise ValueError(f"{folder} cannot be loaded: {reason}; name another checkpoint") from error


@contextmanager
def _bounded(folder: Path) -> Iterator[None]:
    """Context manager inside which building a model fails if it has far more modules than its weights need.

    A configuration can ask for any number of modules. Architectures differ in the names of the settings for this
    number, so the modules are counted while the model is built.
    """
    tensors, most = weights_size(folder).tensors, MOST_MODULES
    most = max(most, MODULES_A_TENSOR * tensors)
    built = 0

    def count(module: nn.Module, name: str, submodule: nn.Module | None) -> None:
        nonlocal built
        built += 1
        if built > most:
            raise ValueError(f"its {CONFIG_FILE} describes more than {most:,} modules, for {tensors:,} weights")

    hook = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


TOKENS = 16
# Allowed rounding error, as a share of the logits' range. Two ways to compute the same logits differ by the rounding
# error of one product.
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2**-8, torch.bfloat16: 2**-6}


@torch.no_grad()
def require_finite(model: PreTrainedModel, folder: Path) -> None:
    """Raise if a weight is infinite or not a number, since no label would be finite either.

    Raises:
        UnfitModelError: naming the first tensor with a weight that is not finite.
    """
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.itemsize > 1 and weight.numel():
            low, high = weight.aminmax()  # needs no memory for a mask; both are NaN if any weight is NaN
            if not (low.isfinite() and high.isfinite()):
                raise UnfitModelError(f"{folder} has weights that are not finite: {name}; fetch or save it again")


@torch.no_grad()
def require_labels(model: PreTrainedModel, folder: Path, labels: Callable[[Tensor], Tensor]) -> None:
    """Raise if labels of a probe of at most 16 tokens are not finite, which can happen even with finite weights.

    Raises:
        UnfitModelError: if a label is not finite, or the model cannot read the tokens.
    """
    config, tokens = model.config, min(TOKENS, model.config.context)
    ids_1T = torch.tensor([[index * config.vocab_size // tokens for index in range(tokens)]], device=model.device)
    try:
        finite = bool(labels(ids_1T).isfinite().all())
    except Exception as error:  # settings that the weights do not contradict can fail in many ways
        reason = " ".join(str(error).split())
        raise UnfitModelError(f"{folder} cannot read {tokens} tokens: {reason}; name another checkpoint") from error
    if not finite:
        raise UnfitModelError(f"{folder} gives labels that are not finite; its weights or its config.json are broken")


@torch.no_grad()
def require_causal(model: PreTrainedModel) -> None:
    """Raise if a causal language model's losses would be silently wrong.

    Raises:
        UnfitModelError: if the logits are not finite, depend on later tokens, or differ from the logits that
            `OutputHead` computes from the last hidden states.
    """
    name, ids_1T = type(model).__name__, _probe(model)
    logits_TV = _logits(model, ids_1T)
    if not logits_TV.isfinite().all():
        raise UnfitModelError(f"{name} gives logits that are not finite; its weights are broken or were not trained")
    allowed = TOLERANCES[model.dtype] * float(logits_TV.max() - logits_TV.min())
    changed_1T = torch.cat([ids_1T[:, :-1], ids_1T[:, :1]], dim=1)
    if _difference(_logits(model, changed_1T)[:-1], logits_TV[:-1]) > allowed:
        raise UnfitModelError(
            f"{name} is not causal: its logits depend on tokens that come later, so its losses are not surprisals; "
            f"check is_causal and is_decoder in its config.json, or use another model"
        )
    hidden_TD, head = next_token_hidden(model, ids_1T)[0], output_head(model)
    fits = hidden_TD.shape[-1] == head.weight_VD.shape[-1]
    if not fits or _difference(head.logits(hidden_TD), logits_TV) > allowed:
        raise UnfitModelError(f"the head of {name} is of a kind that this project does not know; use another model")


def _probe(model: PreTrainedModel) -> Tensor:
    """Return ids [1, T], evenly spaced over the vocabulary. T is 16, or the context if the context is shorter."""
    config, vocabulary = model.config.get_text_config(), len(output_head(model).weight_VD)
    tokens = min(TOKENS, longest_window(model.config) or TOKENS)
    known = [token for token in range(vocabulary) if token != getattr(config, "pad_token_id", None)] or [0]
    return torch.tensor([[known[index * len(known) // tokens] for index in range(tokens)]], device=model.device)


def _logits(model: PreTrainedModel, ids_1T: Tensor) -> Tensor:
    try:
        logits_TV: Tensor = model(input_ids=ids_1T, use_cache=False).logits[0].float()
    except Exception as error:  # causes differ between classes: a setting, a position, a missing argument
        reason = " ".join(str(error).split())
        raise UnfitModelError(
            f"{type(model).__name__} cannot read {ids_1T.shape[1]} tokens: {reason}; use another model"
        ) from error
    return logits_TV


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")
