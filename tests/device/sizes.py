"""Real and tiny sizes of models and documents, and models with random weights."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.data.windows import WindowBatch, window_batches
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.models.second_order import SecondOrderModel
from tests.tiny_models import ModelT, frozen

# 33 quantiles of the number of SmolLM2's tokens in a document: 4,000 FineWeb documents of 2,557 to 23,080 characters.
FINEWEB_LENGTHS = (
    *(576, 671, 714, 747, 786, 816, 856, 896, 942, 990, 1030, 1072, 1109, 1157, 1207, 1255, 1312, 1367, 1425, 1500),
    *(1566, 1656, 1747, 1854, 1969, 2094, 2262, 2482, 2706, 2975, 3263, 3707, 8452),
)


@dataclass(frozen=True)
class Shape:
    """Shape of a language model of Llama blocks."""

    name: str
    width: int
    layers: int
    heads: int
    groups: int
    """Number of heads of keys and values."""
    inner: int
    """Width within the feed-forward blocks."""
    vocabulary: int = 49152

    def config(self, context: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.groups,
            intermediate_size=self.inner,
            max_position_embeddings=context + 1,
            bos_token_id=0,
            tie_word_embeddings=True,
            use_cache=False,
        )


@dataclass(frozen=True)
class Sizes:
    """Sizes of the models, the documents and the measurements of a run."""

    models: tuple[Shape, ...] = (
        Shape("SmolLM2-135M", 576, 30, 9, 3, 1536),
        Shape("SmolLM2-360M", 960, 32, 15, 5, 2560),
        Shape("SmolLM2-1.7B", 2048, 24, 32, 32, 8192),
    )
    context: int = 2047
    documents: int = 330
    """Number of documents: some 500,000 tokens, as many as a worker labels at a time."""
    shorter: int = 1
    """Factor by which documents are shorter than those of FineWeb."""
    vocabularies: tuple[int, ...] = (49152, 131072)
    estimator_context: int = 1024
    encoder_width: int = 256
    decoder_width: int = 512
    layers: int = 16
    heads: int = 4
    estimator_vocabulary: int = 8192
    exact_windows: int = 4
    published_positions: int = 8
    matrix: int = 8192
    budgets: tuple[int, ...] = tuple(2**power for power in range(12, 18))
    chunks: tuple[int, ...] = tuple(2**power for power in range(20, 30, 2))
    peer_rows: int = 4
    host_documents: int = 3000
    repeats: int = 5

    def shape_of_vocabulary(self, vocabulary: int) -> Shape:
        """Return the shape of the smallest model, with its vocabulary replaced by one of this size."""
        return replace(self.models[0], vocabulary=vocabulary)


TINY = Sizes(
    models=(Shape("tiny", 16, 2, 2, 1, 32, vocabulary=96), Shape("small", 32, 2, 2, 2, 64, vocabulary=96)),
    context=63,
    documents=12,
    shorter=32,
    vocabularies=(96, 192),
    estimator_context=32,
    encoder_width=16,
    decoder_width=32,
    layers=4,
    heads=2,
    estimator_vocabulary=96,
    exact_windows=2,
    published_positions=4,
    matrix=128,
    budgets=(64, 256),
    chunks=(2**10, 2**14),
    peer_rows=2,
    host_documents=16,
    repeats=2,
)


def language_model(shape: Shape, context: int, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """Return a causal language model whose weights are drawn on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(shape.config(context))
    return in_precision(frozen(model), device, dtype)


def second_order_model(shape: Shape, context: int, device: str, dtype: torch.dtype) -> SecondOrderModel:
    """Return a second-order model in the residual form, which starts from a language model of this shape."""
    with torch.device(device):  # a CPU takes a minute to draw the weights of the largest
        model = SecondOrderModel.from_language_model(language_model(shape, context, device, dtype), form="residual")
    return in_precision(frozen(model), device, dtype)


def estimator(sizes: Sizes, device: str, dtype: torch.dtype, **variant: Any) -> EntropyEstimator:
    """Return an entropy estimation model with random weights, by default of the paper's size."""
    torch.manual_seed(0)
    config = EstimatorConfig(
        vocab_size=sizes.estimator_vocabulary,
        context=sizes.estimator_context,
        encoder_width=sizes.encoder_width,
        encoder_layers=sizes.layers,
        encoder_heads=sizes.heads,
        decoder_width=sizes.decoder_width,
        decoder_layers=sizes.layers,
        decoder_heads=sizes.heads,
        **variant,
    )
    return in_precision(frozen(EntropyEstimator(config)), device, dtype)


def in_precision(model: ModelT, device: str, dtype: torch.dtype) -> ModelT:
    """Move the model to the device and to this precision, and return it."""
    model.to(device, dtype)  # type: ignore[arg-type]
    return model


def documents(sizes: Sizes, vocabulary: int) -> list[np.ndarray]:
    """Return documents of random tokens. Their lengths are drawn from FineWeb's and divided by `sizes.shorter`."""
    random = np.random.default_rng(0)
    places = random.random(sizes.documents) * (len(FINEWEB_LENGTHS) - 1)
    lengths = np.interp(places, np.arange(len(FINEWEB_LENGTHS)), FINEWEB_LENGTHS) // sizes.shorter
    return [random.integers(vocabulary, size=max(1, int(length)), dtype=np.int32) for length in lengths]


def batches(read: list[np.ndarray], window: int, budget: int) -> list[WindowBatch]:
    """Return all windows of the documents, overlapping by half, in batches of `budget` tokens."""
    everywhere = [np.ones(len(ids), dtype=bool) for ids in read]
    return window_batches(read, everywhere, window=window, overlap=window // 2, budget=budget)
