"""Training and evaluation of the models in a figure of the paper: text, compute, losses, and rounding of layers.

The text comes from the input files or, without files, from the built-in sample. For each figure, a tokenizer is trained
on the training documents.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus, held_out_documents, require_tokens
from pipeline.data.documents import Column, iterate_rows
from pipeline.data.files import File
from pipeline.data.sample import sample_documents
from pipeline.data.skipped import LONGEST_DOCUMENT
from pipeline.data.tokenizer import encode, id_count, train_byte_pairs
from pipeline.experiments.figures import FigureSizes, FigureTrial, Row
from pipeline.experiments.trial import train_once
from pipeline.models.autoencoder import Autoencoder, AutoencoderConfig
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
from pipeline.models.quantization import KINDS, Codec, CodecKind
from pipeline.models.stacks import input_embeddings, new_language_model, stack_config
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training.batches import Batch, Windowing
from pipeline.training.config import TrainingConfig
from pipeline.training.evaluation import Accounting, causal_accounting, window_accounting, window_embeddings
from pipeline.training.losses import document_loss, estimator_loss
from pipeline.training.metrics import Metrics
from schemas.rows import TEXT_COLUMN


@dataclass(frozen=True)
class Text:
    """Training documents and held-out documents. Token 0 starts every window and occurs in no document."""

    seen: Corpus
    held_out: Corpus
    vocabulary: int


def prepare(
    files: Sequence[File], *, vocabulary: int, documents: int, held_out: int, longest: int = LONGEST_DOCUMENT
) -> Text:
    """Tokenize the first `documents` documents, and split them into training and held-out documents.

    The documents are read from the files or, without files, from the built-in sample. The last `held_out` documents are
    held out, but at most a tenth of all documents. The tokenizer is trained on the training documents only.

    Raises:
        ValueError: if nothing is left to train or to evaluate on.
    """
    texts = _texts(files, documents, longest)
    stop = len(texts) - held_out_documents(len(texts), min(held_out, max(1, len(texts) // 10)))
    tokenizer = train_byte_pairs(texts[:stop], vocabulary)
    corpus = Corpus.of(encode(tokenizer, texts), text_bytes=[len(text.encode()) for text in texts])
    return Text(corpus.documents(0, stop), require_tokens(corpus.documents(stop, len(texts))), id_count(tokenizer))


def _texts(files: Sequence[File], documents: int, longest: int) -> list[str]:
    if not files:
        return [str(text) for text in sample_documents().column(TEXT_COLUMN).to_pylist()[:documents]]
    tables = iterate_rows(list(files), Column(TEXT_COLUMN, longest=longest), documents)
    return [text for rows in tables for text in rows.column(TEXT_COLUMN).to_pylist() if text]


START, CALIBRATING_DOCUMENTS = 0, 50


def new_model(trial: FigureTrial, sizes: FigureSizes, vocabulary: int) -> PreTrainedModel:
    """Return the trial's model with random weights."""
    if trial.model == "causal":
        stack = stack_config(
            trial.variant.get("kind", "transformer"),
            vocab_size=vocabulary,
            width=sizes.decoder_width,
            layers=sizes.decoder_layers,
            heads=sizes.decoder_heads,
            context=sizes.context,
        )
        return new_language_model(stack, START)
    settings = {"vocab_size": vocabulary, **asdict(sizes), **trial.variant}
    if trial.model == "estimator":
        return EntropyEstimator(EstimatorConfig(**settings))
    return Autoencoder(AutoencoderConfig(**settings))


def trained_model(
    trial: FigureTrial, text: Text, sizes: FigureSizes, config: TrainingConfig, folder: Path
) -> PreTrainedModel:
    """Train the trial's model and return it. Evaluations and weights are written to a subfolder of `folder`.

    `config.steps` is the number of steps of a causal transformer. Other models are trained for the number of steps that
    costs the same compute. A trial with `paced_by` is an exception: it takes the number of steps of the
    trial in `paced_by`.
    """
    torch.manual_seed(config.seed)
    model = new_model(trial, sizes, text.vocabulary)
    reference = new_model(FigureTrial("", "causal"), sizes, text.vocabulary)
    paced = new_model(trial.paced_by, sizes, text.vocabulary) if trial.paced_by else model
    steps = max(1, round(config.steps * multiplying(reference) / multiplying(paced)))
    every = max(1, round(config.evaluate_every * steps / config.steps))
    windowing = Windowing(sizes.context, config.tokens_per_batch)
    evaluate = partial(held_out_figures, text=text, windowing=windowing)
    config = replace(config, steps=steps, evaluate_every=every)
    output = folder / trial.name
    return train_once(model, text.seen, windowing, loss_of(trial), evaluate, config, output, keep_weights=True)


def multiplying(model: PreTrainedModel) -> int:
    """Return the number of parameters used in multiplications: all except embedding tables that are only looked up."""
    looked_up = 0
    if isinstance(model, WindowEncoder):
        looked_up = input_embeddings(model.encoder).weight.numel()
    return sum(parameter.numel() for parameter in model.parameters()) - looked_up


def loss_of(trial: FigureTrial) -> Callable[[Any, Batch], Tensor]:
    """Return the function that computes the training loss of the trial's model, in nats per token."""
    return partial(document_loss, start=START) if trial.model == "causal" else estimator_loss


def held_out_figures(model: nn.Module, text: Text, windowing: Windowing) -> Metrics:
    """Return three held-out metrics by name.

    `held_out_loss` is in nats per token, without the size of the embeddings. `normalized_loss` is in nats per token
    too, but includes the bits of the int8 embeddings. `bits_per_byte` also includes these bits.
    """
    exact, stored = accountings(model, text, windowing)
    assert stored.bits_per_byte is not None
    return {
        "held_out_loss": exact.loss,
        "normalized_loss": stored.normalized_loss,
        "bits_per_byte": stored.bits_per_byte,
    }


def accountings(model: nn.Module, text: Text, windowing: Windowing) -> tuple[Accounting, Accounting]:
    """Return two accountings of the held-out text: with window embeddings stored in float32, and in int8.

    A causal model has no window embeddings, so its two accountings are the same.
    """
    if not isinstance(model, WindowEncoder):
        assert isinstance(model, PreTrainedModel)
        causal = causal_accounting(model, START, text.held_out, windowing)
        return causal, causal
    exact = window_accounting(model, Codec("float32"), text.held_out, windowing)
    codec = Codec.calibrated("int8", calibrating_embeddings(model, text, windowing))
    return exact, window_accounting(model, codec, text.held_out, windowing)


def calibrating_embeddings(model: WindowEncoder, text: Text, windowing: Windowing) -> Tensor:
    """Return the embeddings [N, E] of N windows of the training text, for calibrating a codec."""
    return window_embeddings(model, text.seen.documents(0, min(CALIBRATING_DOCUMENTS, len(text.seen))), windowing)


SCANNED: tuple[CodecKind, ...] = ("int8", "float8_e4m3fn", "float8_e5m2")
SCANNED_DOCUMENTS = 10


def rows_by_layer(model: WindowEncoder, text: Text, windowing: Windowing) -> Iterator[Row]:
    """Yield a row per rounding, with the resulting change of the held-out loss in nats per token.

    In the first rows, the embedding is rounded, once to each number format. In each of the following rows, either the
    weights or the activations of a single layer are rounded.
    """
    held_out = text.held_out.documents(0, min(SCANNED_DOCUMENTS, len(text.held_out)))
    values_NE, exact = calibrating_embeddings(model, text, windowing), Codec("float32")
    before = window_accounting(model, exact, held_out, windowing).loss
    for kind in KINDS[1:]:
        change = window_accounting(model, Codec.calibrated(kind, values_NE), held_out, windowing).loss - before
        yield {"layer": "bottleneck", "what": "embedding", "kind": kind, "loss_change": change}
    scan = sensitivities(model, lambda each: window_accounting(each, exact, held_out, windowing).loss, kinds=SCANNED)
    yield from (asdict(layer) for layer in scan)


What = Literal["weights", "activations"]
ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Change of the loss if the weights or the activations of a single layer are rounded."""

    layer: str
    """Name of the layer in the model's `named_modules()`."""
    what: What
    kind: CodecKind
    loss_change: float
    """Loss with rounding minus loss without rounding."""


@torch.no_grad()
def sensitivities(
    model: ModelT,
    loss: Callable[[ModelT], float],
    *,
    kinds: Sequence[CodecKind] = ("int8",),
    whats: Sequence[What] = ("weights", "activations"),
) -> Iterator[Sensitivity]:
    """Round the weights or the activations of one layer at a time, and yield the change of the loss for each rounding.

    The model is restored after each rounding. int8 has one scale per weight tensor, and one scale per call for
    activations. A matrix shared by two layers is rounded in both layers at once, and yielded for the first layer only.
    If the loss uses a layer's weights without calling the layer, nothing is yielded for the layer's activations.
    """
    exact, seen = loss(model), set[int]()
    for name, layer in model.named_modules():
        matrices = [matrix for matrix in layer.parameters(recurse=False) if matrix.ndim > 1]
        shared = {id(matrix) for matrix in matrices} <= seen
        seen.update(map(id, matrices))
        for what, kind in product(whats, kinds) if matrices else ():
            if what == "weights" and shared:
                continue
            with _rounded(layer, matrices, what, kind) as calls:
                change = loss(model) - exact
            if what == "weights" or calls:
                yield Sensitivity(layer=name, what=what, kind=kind, loss_change=change)


def rounded(values: Tensor, kind: CodecKind) -> Tensor:
    """Encode and decode a tensor of any shape with one codec, which is calibrated on all values of the tensor."""
    return Codec.calibrated(kind, values.reshape(-1, 1)).round_trip(values)


@contextmanager
def _rounded(layer: nn.Module, matrices: Sequence[nn.Parameter], what: What, kind: CodecKind) -> Iterator[list[None]]:
    """Context manager that rounds a layer's `matrices` or its output, as `what` says.

    It yields a list, to which every rounding of the output appends an entry.
    """
    calls: list[None] = []

    def round_output(_: nn.Module, __: object, output: Tensor) -> Tensor:
        calls.append(None)
        return rounded(output, kind)

    kept = [matrix.clone() for matrix in matrices]
    hook = layer.register_forward_hook(round_output) if what == "activations" else None
    try:
        for matrix in matrices if what == "weights" else ():
            matrix.copy_(rounded(matrix, kind))
        yield calls
    finally:
        for matrix, values in zip(matrices, kept, strict=True):
            matrix.copy_(values)
        if hook is not None:
            hook.remove()
