"""Computed FLOP of training, compared with the FLOP that torch counts in a step."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.backbone import Backbone
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.stacks import llama_config, new_language_model, stack_config
from pipeline.training.batches import Batch
from pipeline.training.config import ObjectiveSettings
from pipeline.training.distillation import StoredTargets
from pipeline.training.flop import ACROSS_POSITIONS, training_flop
from pipeline.training.losses import ObjectiveLoss, estimator_loss, second_order_loss
from pipeline.training.objectives import objective_function
from pipeline.training.penalties import penalty_function

Shape = tuple[int, ...]
CONTEXT, VOCABULARY_SIZE, ROWS = 64, 300, 3
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY_SIZE,
    "context": CONTEXT,
    "encoder_width": 64,
    "encoder_layers": 2,
    "decoder_width": 96,
    "decoder_layers": 3,
    "decoder_heads": 4,
    "bottleneck_width": 8,
}
STACK: dict[str, Any] = {"vocab_size": VOCABULARY_SIZE, "width": 96, "layers": 2, "heads": 4, "context": CONTEXT}
# torch counts the gradient of a convolution's weight once for each pair of heads.
ONE_HEAD = {"encoder_heads": 1, "decoder_heads": 1}
CROSS_ENTROPY = objective_function(ObjectiveSettings(objective="cross-entropy"), 0.0)


def estimator(**variant: Any) -> EntropyEstimator:
    return EntropyEstimator(EstimatorConfig(**{**SIZES, **variant}))


def autoencoder(**variant: Any) -> Autoencoder:
    return Autoencoder(AutoencoderConfig(**{**SIZES, **variant}))


def second_order(form: str, transformers: int = 1) -> SecondOrderModel:
    return SecondOrderModel.from_scratch(llama_config(**STACK), context=CONTEXT, form=form, transformers=transformers)


def around_language_model(tuning: str) -> SecondOrderModel:
    model = new_language_model(llama_config(**{**STACK, "layers": 12, "context": CONTEXT + 1}), 0)
    return SecondOrderModel.around_language_model(
        model, Backbone("name", "0" * 64), start=0, context=CONTEXT, tuning=tuning, lora_rank=1
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(n_embd=96, n_layer=2, n_head=4, n_positions=CONTEXT + 1, vocab_size=VOCABULARY_SIZE, attn_pdrop=0.0)
    )


def in_place_product(total: Shape, left: Shape, right: Shape, **_: object) -> int:
    """Return the FLOP of the operation `addmm_`, which torch's counter leaves out.

    The operation accumulates the gradient of the product with the vocabulary.
    """
    return 2 * left[0] * left[1] * right[1]


def counted(model: PreTrainedModel, loss: Callable[..., torch.Tensor], extra: int) -> tuple[float, float]:
    """Return the FLOP that torch counts in a forward and a backward pass, in two parts.

    The first part is the FLOP of products across positions: the half of attention's FLOP that is not masked, or the
    FLOP of a mixer's convolutions. The second part is the FLOP of all operations except attention and convolutions.
    `extra` is the number of tokens in each row beyond CONTEXT.
    """
    ids_BT = torch.randint(VOCABULARY_SIZE, (ROWS, CONTEXT + extra))
    positions_BT = torch.arange(ids_BT.numel()).view(ids_BT.shape)
    batch = Batch(ids_BT, torch.full((ROWS,), CONTEXT + extra), torch.rand(ids_BT.shape), positions_BT=positions_BT)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        loss(model.train(), batch).backward()
    flop = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    attention = flop.get("aten.bmm", 0)
    convolutions = sum(count for name, count in flop.items() if "convolution" in name)
    return attention / 2 + convolutions, sum(flop.values()) - attention - convolutions


IN_PLACE = {torch.ops.aten.addmm_: in_place_product}
LANGUAGE_MODEL = ObjectiveLoss(CROSS_ENTROPY)
TOKENS = ROWS * CONTEXT
TEACHER = StoredTargets(
    np.tile(np.arange(3, dtype=np.uint16), (TOKENS, 1)),
    np.full((TOKENS, 3), 2000, np.uint16),
    np.full(TOKENS, 600, np.uint16),
    np.full(TOKENS, True),
)
PENALISED = ObjectiveLoss(CROSS_ENTROPY, penalty=penalty_function(ObjectiveSettings(z_loss=0.1)))
MODELS: dict[str, tuple[Callable[[], PreTrainedModel], Callable[..., torch.Tensor]]] = {
    "token": (estimator, estimator_loss),
    "embedding": (partial(estimator, introduction="embedding"), estimator_loss),
    "projection": (partial(estimator, introduction="projection"), estimator_loss),
    "late token": (partial(estimator, introduced_above=1), estimator_loss),
    "added to the logits": (partial(estimator, introduction="projection", introduced_above=3), estimator_loss),
    "without a bottleneck": (partial(estimator, bottleneck_width=None), estimator_loss),
    "mixers": (
        partial(estimator, encoder_kind="mixer", decoder_kind="mixer", decoder_kernel=3, **ONE_HEAD),
        estimator_loss,
    ),
    "unrolled": (autoencoder, estimator_loss),
    "repeated": (partial(autoencoder, given="repeated", decoder_kind="mixer", **ONE_HEAD), estimator_loss),
    "direct": (partial(second_order, "direct"), partial(second_order_loss, causal_weight=0.0)),
    "direct and causal": (partial(second_order, "direct"), partial(second_order_loss, causal_weight=1.0)),
    "residual, two transformers": (partial(second_order, "residual", 2), partial(second_order_loss, causal_weight=1.0)),
    "direct, distilled": (
        partial(second_order, "direct"),
        partial(second_order_loss, causal_weight=1.0, teacher=TEACHER),
    ),
    "residual, distilled": (
        partial(second_order, "residual"),
        partial(second_order_loss, causal_weight=1.0, teacher=TEACHER),
    ),
    "residual, frozen": (partial(around_language_model, "frozen"), second_order_loss),
    "residual, LoRA": (partial(around_language_model, "lora"), second_order_loss),
    "Llama": (lambda: new_language_model(llama_config(**STACK), 0), LANGUAGE_MODEL),
    "Llama with a penalty": (lambda: new_language_model(llama_config(**STACK), 0), PENALISED),
    "mixer": (lambda: new_language_model(stack_config("mixer", kernel=2, **{**STACK, "heads": 1}), 0), LANGUAGE_MODEL),
    "GPT-2": (gpt2, LANGUAGE_MODEL),
}


@pytest.mark.parametrize("name", MODELS)
def test_flop_are_those_that_torch_counts(name: str) -> None:
    new, loss = MODELS[name]
    torch.manual_seed(0)
    model = new()
    mixing, others = counted(model, loss, extra=int(loss in (LANGUAGE_MODEL, PENALISED)))
    flop = training_flop(model, np.full(ROWS, CONTEXT), predicts=name != "direct")
    assert flop[ACROSS_POSITIONS] == pytest.approx(mixing, rel=0.03)
    total = sum(count for part, count in flop.items() if part != ACROSS_POSITIONS)
    # With LoRA, no gradient goes to the inputs of the first layer's projections: a fiftieth of these layers' total.
    assert total - flop[ACROSS_POSITIONS] == pytest.approx(others, rel=0.02 if "LoRA" in name else 0.001)
