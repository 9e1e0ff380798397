"""The task for lm-eval: lm-eval finds the same bits per byte of a trained model as jobs.measure_compression."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.models.checkpoint import SHIPPED, copy_tokenizer
from tests.annotated import write_annotated
from tests.builders import sample_texts
from tests.checkers import ROOT
from tests.conftest import RunCommand

pytest.importorskip("lm_eval", reason="`make peers` was not run")

TASK = ROOT / "jobs" / "lm_eval" / "bits_per_byte.yaml"
TOKENIZER = SHIPPED / "tokenizer"
CONTEXT = 64
TEXTS = [*sample_texts(8, 120), "Ein naïver Satz, 東京.", "a", *sample_texts(12, 100)[8:]]
HELD_OUT = 6


@pytest.fixture
def model(tmp_path: Path, run_command: RunCommand) -> Path:
    """Folder of a language model that was trained on labels of all documents except those held out."""
    tokens = [ids.tolist() for ids in encode(load_tokenizer(TOKENIZER), TEXTS[:-HELD_OUT])]
    labels = write_annotated(tmp_path / "labels", tokens, [[1.0] * len(ids) for ids in tokens], vocabulary=8192)
    copy_tokenizer(TOKENIZER, labels / "tokenizer" / "exact")
    sizes = ("--model.context", CONTEXT, "--model.width", 16, "--model.layers", 1, "--model.heads", 2)
    training = ("--training.steps", 30, "--training.tokens-per-batch", 260, "--training.learning-rate", 0.01)
    data = ("--labels", labels, "--output", tmp_path / "model")
    assert run_command("jobs.train_language_model", *data, *sizes, *training) == 0
    return tmp_path / "model"


def add_start_token(folder: Path) -> None:
    """Change a tokenizer such that it begins every text with the start token, as Llama's does."""
    file = folder / "tokenizer.json"
    start = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["bos_token"]
    start_id = load_tokenizer(folder).token_to_id(start)
    template: dict[str, Any] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {start: {"id": start, "ids": [start_id], "tokens": [start]}},
    }
    content = json.loads(file.read_text(encoding="utf-8")) | {"post_processor": template}
    file.write_text(json.dumps(content), encoding="utf-8")


def ours(model: Path, run_command: RunCommand) -> float:
    """Return the bits per byte that jobs.measure_compression finds for the held-out documents."""
    documents, output = model.parent / "documents.jsonl", model.parent / "measured"
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    held_out = ("--input", documents, "--held-out", HELD_OUT)
    assert run_command("jobs.measure_compression", "--models", model, *held_out, "--output", output) == 0
    with (output / "results.csv").open(encoding="utf-8") as file:
        (found,) = (row for row in csv.DictReader(file) if row["compressor"] == str(model))
    return float(found["bits_per_byte"])


def theirs(model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the metrics that lm-eval computes for the held-out documents, by the metric's name."""
    from lm_eval import simple_evaluate

    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS[-HELD_OUT:]]
    (model.parent / "held-out.jsonl").write_text("".join(lines), encoding="utf-8")
    monkeypatch.chdir(model.parent)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(model.parent / "cache"))
    arguments = f"pretrained={model},dtype=float32,add_bos_token=False"
    found = simple_evaluate(model="hf", model_args=arguments, tasks=[str(TASK)], device="cpu", bootstrap_iters=0)
    return {name.partition(",")[0]: value for name, value in found["results"]["bits_per_byte"].items()}


@pytest.mark.parametrize("adds_start", [False, True])
def test_lm_eval_finds_the_same_bits_per_byte(
    model: Path, adds_start: bool, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    if adds_start:
        add_start_token(model)
    longest = max(len(ids) for ids in encode(load_tokenizer(model), TEXTS[-HELD_OUT:]))
    assert longest <= CONTEXT
    bits, found = ours(model, run_command), theirs(model, monkeypatch)
    assert found["bits_per_byte"] == pytest.approx(bits, abs=1e-4)
    assert found["byte_perplexity"] == pytest.approx(2**bits, rel=1e-3)
    words = sum(len(text.split()) for text in TEXTS[-HELD_OUT:])
    size = sum(len(text.encode()) for text in TEXTS[-HELD_OUT:])
    assert found["word_perplexity"] == pytest.approx(2 ** (bits * size / words), rel=1e-2)
