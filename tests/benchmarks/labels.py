"""Speed of the label methods.

One estimator labels by the paper's procedure, by the exact method at all positions, and by the exact method at a sample
of positions. A second-order model that is made from this estimator labels in one pass. A second estimator of the same
sizes adds its embedding to the logits, and labels by the exact method.

A causal language model writes surprisals alone, and surprisals with further columns. An estimator around this language
model labels by the exact method. The times of the further columns and of this estimator are compared with the time of
the surprisals alone.

B windows, T tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline.data.windows import sample_positions
from pipeline.engine.plan import fast_dtype
from pipeline.labels import causal, exact
from pipeline.models.causal_lm import BlockedAttention
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.models.pretrained_estimator import PretrainedEstimator, PretrainedEstimatorConfig
from pipeline.models.second_order import SecondOrderModel
from pipeline.models.stacks import llama_config, new_language_model
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, RANK, LabelColumn, Shape
from tests.benchmarks.figure import Figure, median_seconds
from tests.builders import PROVENANCE
from tests.published import published_entropies
from tests.tiny_models import frozen, random_tokens

SHARE = 0.05


@dataclass(frozen=True)
class Size:
    """Sizes of the models, and the number of windows or positions that each method labels.

    Times are compared per window. The paper's procedure labels only evenly spread positions, because every position
    costs two passes over the full length. The procedure is measured twice: with one position at a time, as in the
    paper, and with eight positions at a time. On a CPU, eight was the fastest of 1, 4, 8 and 32.

    A sample of positions is timed on many windows, because the number of sampled positions varies between windows. In
    64 windows of 256 tokens, the sample consists of 102 +- 10 runs of 8 neighbouring positions.
    """

    context: int = 256
    encoder_width: int = 128
    decoder_width: int = 256
    layers: int = 6
    heads: int = 4
    vocabulary: int = 8192
    exact_windows: int = 4
    sampled_windows: int = 64
    second_order_windows: int = 32
    published_positions: int = 64
    causal_layers: int = 30
    causal_width: int = 576
    causal_vocabulary: int = 49152
    repeats: int = 3


QUICK = Size(
    context=32,
    encoder_width=16,
    decoder_width=32,
    layers=2,
    heads=2,
    vocabulary=101,
    exact_windows=2,
    sampled_windows=8,
    published_positions=4,
    causal_layers=2,
    causal_width=16,
    causal_vocabulary=500,
    repeats=1,
)


def figures(size: Size, device: torch.device) -> Iterator[Figure]:
    """Yield all figures. The estimator computes in float32 on a CPU and in bfloat16 on a GPU."""
    estimator = _estimator(size, device)
    adding = _estimator(size, device, introduction="projection", introduced_above=size.layers)
    second_order = frozen(SecondOrderModel.from_estimator(estimator, label_mean=0.0, label_deviation=1.0))
    second_order.to(device, estimator.dtype)  # type: ignore[arg-type]
    windows = max(size.exact_windows, size.sampled_windows, size.second_order_windows)
    ids_BT = random_tokens(windows, size.context, vocabulary=size.vocabulary).to(device)
    positions = list(range(0, size.context, size.context // size.published_positions))
    sample_BT = _sample(size).to(device)
    timed = {
        "exact": lambda: exact.token_entropies(estimator, ids_BT[: size.exact_windows]),
        "added logits": lambda: exact.token_entropies(adding, ids_BT[: size.exact_windows]),
        "published": lambda: published_entropies(estimator, ids_BT[0], positions, batch=1),
        "published, batched": lambda: published_entropies(estimator, ids_BT[0], positions, batch=8),
        "sample": lambda: exact.token_entropies(estimator, ids_BT[: len(sample_BT)], positions_BT=sample_BT),
        "second-order": lambda: _second_order(second_order, ids_BT[: size.second_order_windows]),
    }
    if device.type == "cuda":
        median_seconds(timed, 1)  # the first call loads and chooses kernels
    seconds = median_seconds(timed, size.repeats)
    exact_window = seconds["exact"] / size.exact_windows
    yield from _against_published(seconds, size, len(positions))
    yield _difference(estimator, ids_BT[0], positions)
    share = sample_BT.float().mean().item()
    yield Figure(
        f"exact: {SHARE:.0%} of the positions, times the speed of all (from a sample that came out as {share:.1%})",
        exact_window * len(sample_BT) / seconds["sample"] * share / SHARE,
        at_least=15,
    )
    second_window = seconds["second-order"] / size.second_order_windows
    yield Figure(
        f"second-order: times the tokens/s of exact ({size.context / second_window:,.0f} tokens/s, "
        f"{size.context / exact_window:,.0f})",
        exact_window / second_window,
        at_least=100,
    )
    yield from _of_columns(size, device)
    if device.type == "cuda":
        yield _share_of_matrix_rate(second_order, size, second_window)


def _of_columns(size: Size, device: torch.device) -> Iterator[Figure]:
    """Yield the times of a causal model's label columns and of exact labels, as multiples of the time of surprisals.

    The label columns are computed together with the surprisals. The exact labels are those of an estimator around the
    model. The model has SmolLM2-135M's sizes, random weights, and the precision that `--dtype auto` selects.
    """
    width, vocabulary = size.causal_width, size.causal_vocabulary
    config = llama_config(
        vocab_size=vocabulary,
        width=width,
        layers=size.causal_layers,
        heads=max(1, width // 64),
        context=size.context,
    )
    model = frozen(new_language_model(config, start=0))
    model.to(device, getattr(torch, fast_dtype("cuda" if device.type == "cuda" else "cpu")))  # type: ignore[arg-type]
    ids_BT = random_tokens(4, size.context - 1, vocabulary=vocabulary).to(device)
    alone = replace(PROVENANCE, method="causal", label_columns=(ENTROPY,))
    two: tuple[LabelColumn, ...] = (ENTROPY, EXPECTED_ENTROPY)
    runs = {
        "the surprisal alone": alone,
        "expected_entropy": replace(alone, label_columns=two),
        "expected_entropy and rank": replace(alone, label_columns=(*two, RANK)),
        "the 8 most probable ids": replace(alone, top_k=8),
        "the 50 most probable ids": replace(alone, top_k=50),
        "50 sampled ids": replace(alone, sampled_ids=50),
    }
    timed = {name: partial(_causal, model, ids_BT, run.label_shapes) for name, run in runs.items()}
    timed["exact labels"] = partial(_exact_around, model, ids_BT)
    median_seconds(timed, 1)
    seconds = median_seconds(timed, 3 * size.repeats)
    least = seconds.pop("the surprisal alone")
    yield Figure(
        "exact: time of an estimator around a language model, times that of the language model's surprisals",
        seconds.pop("exact labels") / least,
        at_most=1.5,
    )
    for name, time in seconds.items():
        bound = 1.15 if name == "expected_entropy" else None
        yield Figure(f"causal: time with {name}, times that of the surprisal alone", time / least, at_most=bound)


def _causal(model: PreTrainedModel, ids_BT: Tensor, columns: Mapping[str, Shape]) -> None:
    with BlockedAttention() if ids_BT.device.type == "cpu" else nullcontext():
        causal.token_labels(model, ids_BT, 0, columns)


def _exact_around(model: PreTrainedModel, ids_BT: Tensor) -> None:
    """Compute exact labels with an estimator around the model. The estimator adds its embedding at the logits."""
    config = PretrainedEstimatorConfig(vocab_size=model.config.vocab_size, context=ids_BT.shape[1])
    estimator = frozen(PretrainedEstimator(config, model))
    estimator.to(ids_BT.device, model.dtype)  # type: ignore[arg-type]
    torch.nn.init.normal_(estimator.introduce.weight, std=0.02)
    with BlockedAttention() if ids_BT.device.type == "cpu" else nullcontext():
        exact.token_entropies(estimator, ids_BT)


def _against_published(seconds: Mapping[str, float], size: Size, positions: int) -> Iterator[Figure]:
    exact_window = seconds["exact"] / size.exact_windows
    for name, at_least in (("published", 6), ("published, batched", None)):
        window = seconds[name] * size.context / positions
        yield Figure(
            f"exact: times the speed of the procedure {name} ({exact_window:.3g} s a window, {window:.3g} s)",
            window / exact_window,
            at_least=at_least,
        )
    added_window = seconds["added logits"] / size.exact_windows
    yield Figure(
        f"exact: with added logits, times the speed of the procedure published ({added_window:.3g} s a window)",
        seconds["published"] * size.context / positions / added_window,
        at_least=40,
    )


def _estimator(size: Size, device: torch.device, **variant: Any) -> EntropyEstimator:
    torch.manual_seed(0)
    config = EstimatorConfig(
        **variant,
        vocab_size=size.vocabulary,
        context=size.context,
        encoder_width=size.encoder_width,
        encoder_layers=size.layers,
        encoder_heads=size.heads,
        decoder_width=size.decoder_width,
        decoder_layers=size.layers,
        decoder_heads=size.heads,
        initializer_range=0.1,  # labels from -17 to 25 nats, so that a difference would show
    )
    estimator = frozen(EntropyEstimator(config))
    estimator.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)  # type: ignore[arg-type]
    return estimator


def _sample(size: Size) -> Tensor:
    random = np.random.default_rng(0)
    rows = [sample_positions(size.context, SHARE, random) for _ in range(size.sampled_windows)]
    return torch.from_numpy(np.stack(rows))


@torch.no_grad()
def _second_order(model: SecondOrderModel, input_ids_BT: Tensor) -> Tensor:
    return model.entropies(input_ids_BT).entropy_BT


def _difference(estimator: EntropyEstimator, window_T: Tensor, positions: list[int]) -> Figure:
    exact_T = exact.token_entropies(estimator, window_T.unsqueeze(0))[0]
    difference = (exact_T[positions] - published_entropies(estimator, window_T, positions)).abs().max().item()
    rounded = estimator.dtype == torch.bfloat16
    return Figure(
        "exact: largest difference from the published labels, nats", difference, at_most=None if rounded else 1e-3
    )


def _share_of_matrix_rate(model: SecondOrderModel, size: Size, seconds: float) -> Figure:
    """Return the FLOP per second of linear layers and causal attention, as a share of the matrix rate.

    The matrix rate is that of a product of two 8,192 x 8,192 matrices.
    """
    weights = sum(
        module.weight.numel() for module in model.transformer.modules() if isinstance(module, torch.nn.Linear)
    )
    attention = size.layers * size.context * size.decoder_width  # two products over half of the positions
    rate = 2 * size.context * (weights + attention) / seconds
    square = torch.randn(8192, 8192, device=model.device, dtype=model.dtype)
    product = median_seconds({"product": lambda: square @ square}, 20)["product"]
    return Figure("second-order: share of the device's matrix rate", rate / (2 * 8192**3 / product))
