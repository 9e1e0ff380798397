"""Floating-point operations (FLOP) of training, by part of the model: encoder, decoder, product with the vocabulary.

A product of matrices [n, k] and [k, m] takes 2nkm FLOP. Every weight matrix is used once at each position. Causal
attention takes two products across positions: one with the keys and one with the values, both without later positions.
A mixer's convolution computes its masked half too. The backward pass takes twice as many FLOP as the forward pass, and
computes the product with the vocabulary again. In a frozen language model, only the forward pass is counted. With LoRA,
gradients of states are counted too, but not those of frozen weights. All experts of a mixture are counted. Not counted:
norms, activations, softmax, the optimizer, recomputation in attention kernels, and layers that run once per window.

W windows, V vocabulary, D width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.models.autoencoder import Autoencoder
from pipeline.models.causal_lm import decoder, output_head
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.mixer import CausalConvolution, MixerConfig
from pipeline.models.pretrained_estimator import PretrainedEstimator
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.sizes import Tuning

FORWARD_AND_BACKWARD = 3
PASSES: dict[Tuning, int] = {"frozen": 1, "lora": 2, "whole": FORWARD_AND_BACKWARD}
"""Cost of the products with a pretrained language model's weights, by the tuning of the language model. The unit is the
cost of one forward pass."""
PREDICTIVE_PRODUCTS: dict[Tuning, int] = {"frozen": 1, "lora": 3, "whole": 4}
"""Products with the vocabulary in a step of a residual second-order model, by the tuning of its language model.

The forward pass takes one product, for the losses and the entropies of predictions. A frozen language model needs only
this one. Otherwise, the backward pass computes it again, and takes one product for the gradient of the states. If the
head is trained, it takes one more for the gradient of the head. The loss against a teacher's predictions needs no more.
"""
VOCABULARY, ACROSS_POSITIONS = "vocabulary", "of which across positions"


class Part(NamedTuple):
    """Part of a model: a stack of layers, together with linear layers outside the stack.

    The FLOP of the linear layers are counted for as many positions as those of the stack.
    """

    name: str
    stack: PreTrainedModel
    linear: tuple[nn.Module, ...] = ()
    start: int = 0
    """Number of positions in addition to one position per token of the window, for example for a start token."""
    passes: int = FORWARD_AND_BACKWARD
    """Cost of all products with the weights, forward and backward. The unit is the cost of these products in a single
    forward pass."""


def training_flop(
    model: PreTrainedModel, lengths_W: np.ndarray, *, predicts: bool = True, more_forwards: int = 0
) -> dict[str, float]:
    """Return the FLOP of each part of a model, by the part's name, for training once on every window.

    The product with the vocabulary has its own entry, VOCABULARY. The entry ACROSS_POSITIONS has the FLOP of attention
    and of convolutions across positions, summed over the parts. The entries of the parts include these FLOP, too.

    Args:
        lengths_W: number of tokens in each window.
        predicts: compute the language-model loss, which needs the product with the vocabulary.
        more_forwards: number of forward passes without gradients before each training step.
    """
    flop = dict[str, float]()
    for part in model_parts(model):
        passes = part.passes + more_forwards
        # Attention has no weights of its own: its backward pass is complete, even if weights around it are frozen.
        passes_across = (FORWARD_AND_BACKWARD if part.passes > 1 else 1) + more_forwards
        positions_W = lengths_W.astype(np.float64) + part.start
        weights = sum(map(matrix_weights, (part.stack, *part.linear)))
        mixing = passes_across * float(mixing_flop(part.stack, positions_W).sum())
        linear = passes * 2 * weights * float(positions_W.sum())
        flop[part.name] = flop.get(part.name, 0.0) + linear + mixing
        flop[ACROSS_POSITIONS] = flop.get(ACROSS_POSITIONS, 0.0) + mixing
    attention = flop.pop(ACROSS_POSITIONS)
    products = vocabulary_products(model, predicts)
    head = 2 * head_weight(model).numel() * float(lengths_W.sum())
    return {**flop, VOCABULARY: (products + more_forwards) * head if products else 0.0, ACROSS_POSITIONS: attention}


def model_parts(model: PreTrainedModel) -> Iterator[Part]:
    """Yield the parts of a model. The product with the vocabulary is not part of any of them."""
    if isinstance(model, EntropyEstimator):
        yield Part("encoder", model.encoder, (model.down,))
        if model.below is not None:
            yield Part("decoder", model.below)
        before_start = model.config.introduction == "token" and model.start is not None
        yield Part("decoder", model.decoder, (model.output,), start=int(before_start))
    elif isinstance(model, PretrainedEstimator):
        passes = PASSES[model.config.tuning]
        encoder = model.separate_encoder or model.language_model
        yield Part("encoder", decoder(encoder), start=1, passes=passes)
        if not model.shares_states:
            entered = passes if model.adds_logits else max(2, passes)  # gradients pass through to the embedding
            yield Part("decoder", decoder(model.language_model), passes=entered)
    elif isinstance(model, Autoencoder):
        yield Part("encoder", model.encoder, (model.down,))
        yield Part("decoder", model.decoder, (model.introduce,))
    elif isinstance(model, SecondOrderModel):
        yield Part("transformer", model.transformer, (model.seeing,), start=1, passes=PASSES[model.config.tuning])
        if model.expecting_transformer is not None:
            yield Part("transformer", model.expecting_transformer, start=1)
    else:
        yield Part("layers", decoder(model))


def matrix_weights(module: nn.Module) -> int:
    """Return the number of weights in the matrices that multiply the state of every position."""
    own = {id(parameter): parameter for layer in module.modules() for parameter in _matrices(layer)}
    return sum(parameter.numel() for parameter in own.values())


def _matrices(layer: nn.Module) -> Iterator[Tensor]:
    """Yield the weight matrices of a layer, without its submodules. Embeddings and mixer convolutions yield none."""
    if not isinstance(layer, (nn.Embedding, CausalConvolution)):
        yield from (parameter for parameter in layer.parameters(recurse=False) if parameter.ndim >= 2)


def mixing_flop(stack: PreTrainedModel, positions_W: np.ndarray) -> np.ndarray:
    """Return the forward FLOP [W] of causal attention, or of a mixer's convolution, in all layers of a stack."""
    config = stack.config.get_text_config()
    flop_W: np.ndarray
    if isinstance(config, MixerConfig):
        flop_W = 2 * config.num_hidden_layers * config.kernel * config.hidden_size * positions_W**2
        return flop_W
    heads = getattr(config, "num_attention_heads", 0)
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // max(1, heads))
    flop_W = 2 * config.num_hidden_layers * width * positions_W * (positions_W + 1)
    return flop_W


def head_weight(model: PreTrainedModel) -> Tensor:
    """Return the weight [V, D] of the product with the vocabulary."""
    if isinstance(model, EntropyEstimator):
        return model.head_VD
    if isinstance(model, Autoencoder):
        return model.head.weight
    if isinstance(model, SecondOrderModel):
        return model.language_head.weight_VD
    if isinstance(model, PretrainedEstimator):
        return model.output_head.weight_VD
    return output_head(model).weight_VD


def vocabulary_products(model: PreTrainedModel, predicts: bool) -> int:
    """Return the cost of all products with the vocabulary in a training step.

    The unit is the cost of one multiplication of all states by the head [V, D].
    """
    if isinstance(model, SecondOrderModel) and model.config.form == "residual":
        return PREDICTIVE_PRODUCTS[model.config.tuning]
    if isinstance(model, PretrainedEstimator):  # the head itself is trained only with the whole language model
        return FORWARD_AND_BACKWARD + int(model.config.tuning == "whole")
    return FORWARD_AND_BACKWARD + 1 if predicts else 0


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Return the number of a model's parameters in token embeddings, and the number of its other parameters."""
    embeddings = [layer.weight for layer in model.modules() if isinstance(layer, nn.Embedding)]
    in_embeddings = sum(weight.numel() for weight in {id(weight): weight for weight in embeddings}.values())
    return in_embeddings, sum(parameter.numel() for parameter in model.parameters()) - in_embeddings
