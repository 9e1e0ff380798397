"""Losses by layer: each rounded alone, and the embedding stored in each codec."""

from collections.abc import Iterator
from dataclasses import asdict

from pipeline.models.quantization import KINDS, Codec, Kind
from pipeline.models.sensitivity import sensitivities
from pipeline.models.window_encoder import WindowEncoder
from pipeline.reproduction.figures import Row
from pipeline.reproduction.text import Text
from pipeline.reproduction.trial import calibrating_embeddings
from pipeline.training.batches import Cut
from pipeline.training.evaluation import window_accounting

SCANNED: tuple[Kind, ...] = ("int8", "float8_e4m3fn", "float8_e5m2")
SCANNED_DOCUMENTS = 10


def rows_by_layer(model: WindowEncoder, text: Text, cut: Cut) -> Iterator[Row]:
    """Changes of held-out loss in nats a token, from what it is in float32."""
    held_out = text.held_out.documents(0, min(SCANNED_DOCUMENTS, len(text.held_out)))
    values_NE, exact = calibrating_embeddings(model, text, cut), Codec("float32")
    before = window_accounting(model, exact, held_out, cut).loss
    for kind in KINDS[1:]:
        change = window_accounting(model, Codec.calibrated(kind, values_NE), held_out, cut).loss - before
        yield {"layer": "bottleneck", "what": "embedding", "kind": kind, "loss_change": change}
    scan = sensitivities(model, lambda each: window_accounting(each, exact, held_out, cut).loss, kinds=SCANNED)
    yield from (asdict(layer) for layer in scan)
