"""All trainings of a figure get the same compute, and a finished training is loaded instead of repeated."""

import json
from pathlib import Path

import pytest
import torch

from pipeline.experiments.figure_trial import Text, multiplying, new_model, prepare, rows_by_layer, trained_model
from pipeline.experiments.figures import FigureSizes, FigureTrial
from pipeline.models.window_encoder import WindowEncoder
from pipeline.training.batches import Windowing
from pipeline.training.config import TrainingConfig

SIZES = FigureSizes(
    context=16, encoder_width=16, encoder_layers=1, encoder_heads=2, decoder_width=32, decoder_layers=1, decoder_heads=2
)
CONFIG = TrainingConfig(steps=20, evaluate_every=10, tokens_per_batch=256, learning_rate=3e-3)
CAUSAL = FigureTrial("causal", "causal")
ESTIMATOR = FigureTrial("estimator", "estimator", {"bottleneck_width": 3})
TRIALS = (
    CAUSAL,
    FigureTrial("mixer", "causal", {"kind": "mixer"}),
    ESTIMATOR,
    FigureTrial("autoencoder", "autoencoder", {"given": "repeated", "bottleneck_width": 4}),
    FigureTrial("paced", "causal", paced_by=ESTIMATOR),
)


@pytest.fixture(scope="module")
def text() -> Text:
    return prepare([], vocabulary=300, documents=12, held_out=1)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_a_trial_takes_the_compute_of_the_causal_transformer_and_is_trained_once(
    trial: FigureTrial, text: Text, tmp_path: Path
) -> None:
    model = trained_model(trial, text, SIZES, CONFIG, tmp_path)
    lines = [
        json.loads(line) for line in (tmp_path / trial.name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    reference, paced = (new_model(each, SIZES, text.vocabulary) for each in (CAUSAL, trial.paced_by or trial))
    assert lines[-1]["step"] == round(CONFIG.steps * multiplying(reference) / multiplying(paced))
    assert len(lines) >= 2 and lines[-1]["held_out_loss"] < lines[0]["held_out_loss"] + 0.1
    embedding_counts = isinstance(model, WindowEncoder)
    assert (lines[-1]["normalized_loss"] > lines[-1]["held_out_loss"]) == embedding_counts
    written = (tmp_path / trial.name / "model.safetensors").stat().st_mtime_ns
    again = trained_model(trial, text, SIZES, CONFIG, tmp_path)
    assert (tmp_path / trial.name / "model.safetensors").stat().st_mtime_ns == written
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_layer_is_rounded_in_every_way_and_coarser_types_cost_more(text: Text) -> None:
    torch.manual_seed(0)
    model = new_model(
        FigureTrial("", "autoencoder", {"given": "repeated", "bottleneck_width": 4}), SIZES, text.vocabulary
    )
    assert isinstance(model, WindowEncoder)
    rows = list(rows_by_layer(model.eval(), text, Windowing(SIZES.context, 256)))  # type: ignore[no-untyped-call]
    assert {row["what"] for row in rows} == {"embedding", "weights", "activations"}
    assert {row["kind"] for row in rows if row["what"] == "embedding"} == {
        *("float16", "int8", "float8_e4m3fn", "float8_e5m2")
    }
    moved = {
        kind: sum(abs(float(row["loss_change"])) for row in rows if row["what"] == "weights" and row["kind"] == kind)
        for kind in ("int8", "float8_e5m2")
    }
    assert 0 < moved["int8"] < moved["float8_e5m2"]
