"""Tiny models, and tokens for them, made in a moment."""

import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.models.second_order import SecondOrderConfig, SecondOrderModel
from pipeline.models.sizes import Form
from pipeline.models.stacks import llama_config, new_language_model
from tests.builders import VOCABULARY

ModelT = TypeVar("ModelT", bound=PreTrainedModel)


def frozen(model: ModelT) -> ModelT:
    model.eval()  # type: ignore[no-untyped-call]
    model.requires_grad_(False)
    return model


def tiny_estimator(*, context: int = 32, vocabulary: int = VOCABULARY, **variant: Any) -> EntropyEstimator:
    """Return an estimator with weights ten times the usual size, so that every part of it affects its losses."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "context": context,
        "encoder_width": 16,
        "encoder_layers": 2,
        "encoder_heads": 2,
        "decoder_width": 24,
        "decoder_layers": 2,
        "decoder_heads": 2,
        "bottleneck_width": 3,
        "initializer_range": 0.2,
    }
    config = EstimatorConfig(**{**sizes, **variant})
    return frozen(EntropyEstimator(config))


def tiny_autoencoder(*, context: int = 12, vocabulary: int = VOCABULARY, **variant: Any) -> Autoencoder:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "context": context,
        "encoder_width": 16,
        "encoder_layers": 1,
        "decoder_width": 24,
        "decoder_layers": 2,
        "decoder_heads": 2,
        "initializer_range": 0.2,
    }
    return frozen(Autoencoder(AutoencoderConfig(**{**sizes, **variant})))


def tiny_second_order(*, context: int = 32, vocabulary: int = VOCABULARY, form: Form = "direct") -> SecondOrderModel:
    torch.manual_seed(0)
    stack = llama_config(vocab_size=vocabulary, width=24, layers=2, heads=2, context=context, initializer_range=0.2)
    config = SecondOrderConfig(
        vocab_size=vocabulary,
        context=context,
        transformer=stack.to_dict(),
        form=form,
        label_mean=3.0,
        label_deviation=2.0,
        initializer_range=0.2,
    )
    return frozen(SecondOrderModel(config))


def tiny_language_model(*, context: int = 32, vocabulary: int = VOCABULARY) -> PreTrainedModel:
    """Return a language model that reads token 5 before a document."""
    torch.manual_seed(0)
    config = llama_config(vocab_size=vocabulary, width=24, layers=2, heads=2, context=context, initializer_range=0.2)
    return frozen(new_language_model(config, start=5))


def chain_language_model(table: np.ndarray, *, context: int = 32) -> PreTrainedModel:
    """Return a language model whose predictions are those of a Markov chain.

    Row s of `table` is the distribution of the symbol that follows symbol s. Before a document, the model reads a start
    token, whose id is the number of symbols. The distribution that follows the start token is row 0. The number of
    symbols must be odd: the model's width is larger by one, and rotary positions need an even width.
    """
    symbols = len(table)
    config = llama_config(vocab_size=symbols + 1, width=symbols + 1, layers=1, heads=1, context=context)
    config.tie_word_embeddings = False
    model = new_language_model(config, start=symbols)
    head = torch.full((symbols + 1, symbols + 1), -30.0)
    head[:symbols] = torch.from_numpy(np.log(table[[*range(symbols), 0]])).T
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.data.zero_()  # the layer adds nothing
    model.get_input_embeddings().weight.data = torch.eye(symbols + 1)
    model.get_output_embeddings().weight.data = head / math.sqrt(symbols + 1)  # the norm makes the states this long
    return frozen(model)


def random_tokens(rows: int, tokens: int, *, vocabulary: int = VOCABULARY, seed: int = 0) -> Tensor:
    return torch.randint(vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))
