"""The five jobs one after another on fifty documents with tiny models, as a user chains them."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.data.annotated import find_annotations
from pipeline.models.checkpoint import SHIPPED
from pipeline.models.loading import load_estimator, load_second_order
from tests.conftest import RunCommand

ANNOTATE = ("pipeline.annotate", "--workers", 0)
TRAINING = {"steps": 12, "evaluate-every": 6, "tokens-per-batch": 1024, "learning-rate": 0.003}
ESTIMATOR = {
    "context": 48,
    "encoder-width": 16,
    "encoder-layers": 1,
    "decoder-width": 32,
    "decoder-layers": 2,
    "decoder-heads": 2,
}
LANGUAGE_MODEL = {"context": 48, "width": 32, "layers": 2, "heads": 2}
MIXER_ESTIMATOR = ESTIMATOR | {
    "encoder-kind": "mixer",
    "decoder-kind": "mixer",
    "decoder-kernel": 3,
    "introduction": "embedding",
    "introduced-above": 1,
    "bottleneck-width": None,
    "noise": 0.1,
}
OBJECTIVES = ("flood", "floor", "weight", "mask", "adaflood", "probability", "iflood", "loss-share", "cross-entropy")


def config(file: Path, **values: object) -> Path:
    file.write_text(yaml.safe_dump({"training": TRAINING, **values}), encoding="utf-8")
    return file


def test_the_whole_path(run_command: RunCommand, documents: Path, tmp_path: Path) -> None:
    tokenizer, estimator, second_order = (tmp_path / name for name in ("tokenizer", "estimator", "second-order"))
    exact, labels = tmp_path / "exact", tmp_path / "labels"
    fifty = ("--input", documents, "--limit", 50)
    small, large = config(tmp_path / "small.yaml", model=ESTIMATOR), config(tmp_path / "lm.yaml", model=LANGUAGE_MODEL)

    assert run_command("jobs.train_tokenizer", *fifty, "--vocabulary", 500, "--output", tokenizer) == 0
    train_estimator = ("jobs.train_estimator", "--config", small, *fifty, "--tokenizer", tokenizer)
    assert run_command(*train_estimator, "--output", estimator) == 0
    label_exactly = (*ANNOTATE, *fifty, "--method", "exact", "--estimator", estimator, "--share", 0.05)
    assert run_command(*label_exactly, "--output", exact) == 0
    train_second_order = ("jobs.train_second_order", "--config", config(tmp_path / "so.yaml"), "--labels", exact)
    assert run_command(*train_second_order, "--init-from", estimator, "--output", second_order) == 0
    assert run_command(*ANNOTATE, *fifty, "--estimator", second_order, "--output", labels) == 0
    for objective in OBJECTIVES:
        train_model = ("jobs.train_language_model", "--config", large, "--labels", labels, "--objective", objective)
        assert run_command(*train_model, "--output", tmp_path / objective) == 0

    other = ("--tokenizer", SHIPPED / "tokenizer", "--output", tmp_path / "moved")
    assert run_command("jobs.train_language_model", "--config", large, "--labels", labels, *other) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "moved").config.vocab_size == 8192

    check_labels(exact, labels)
    check_checkpoints(estimator, second_order)
    check_language_models(tmp_path)


def check_labels(exact: Path, labels: Path) -> None:
    sampled, complete = find_annotations(str(exact)).corpus(), find_annotations(str(labels)).corpus()
    assert len(sampled) == len(complete) == 50
    assert 0.03 < len(sampled.given_labels) / len(sampled.tokens_N) < 0.07
    assert len(complete.given_labels) == len(complete.tokens_N)


def check_checkpoints(estimator: Path, second_order: Path) -> None:
    assert load_estimator(estimator).config.bottleneck_width == 4
    assert load_second_order(second_order).transformer.config.hidden_size == 32
    for folder in (estimator, second_order):
        assert len((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 2
        assert "python -m jobs.train_" in (folder / "README.md").read_text(encoding="utf-8")


def check_language_models(folder: Path) -> None:
    outputs = []
    for objective in OBJECTIVES:
        model = AutoModelForCausalLM.from_pretrained(folder / objective, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(folder / objective)
        outputs.append(model(**tokenizer("The import statement", return_tensors="pt")).logits)
        figures = [
            json.loads(line) for line in (folder / objective / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert figures[-1]["held_out_loss"] < 6.5
    differing = [not torch.equal(outputs[0], other) for other in outputs[1:]]
    assert all(differing), "two objectives trained the same model"


@pytest.mark.parametrize(
    ("estimator_sizes", "model_sizes"),
    [(ESTIMATOR, LANGUAGE_MODEL), (MIXER_ESTIMATOR, LANGUAGE_MODEL | {"kind": "mixer"})],
    ids=["transformers", "mixers"],
)
def test_tokenized_documents_go_the_whole_path(
    run_command: RunCommand, tmp_path: Path, estimator_sizes: dict[str, Any], model_sizes: dict[str, Any]
) -> None:
    ids = [[(start * step) % 31 for step in range(120)] for start in range(1, 31)]
    file = tmp_path / "tokens.parquet"
    pq.write_table(pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32()))}), file)
    tokenized = ("--input", file, "--tokenizer", "none", "--vocabulary", 31)
    small = config(tmp_path / "small.yaml", model=estimator_sizes)
    large = config(tmp_path / "lm.yaml", model=model_sizes)
    estimator, labels, model = tmp_path / "estimator", tmp_path / "labels", tmp_path / "model"
    assert run_command("jobs.train_estimator", "--config", small, *tokenized, "--output", estimator) == 0
    exactly = ("--method", "exact", "--estimator", estimator)
    assert run_command(*ANNOTATE, *tokenized, *exactly, "--output", labels) == 0
    assert run_command("jobs.train_language_model", "--config", large, "--labels", labels, "--output", model) == 0
    assert AutoModelForCausalLM.from_pretrained(model).config.vocab_size == 32  # one more, the separator
    causally = ("--method", "causal", "--estimator", model, "--limit", 3, "--output", tmp_path / "causal")
    assert run_command(*ANNOTATE, *tokenized, *causally) == 0
    assert len(find_annotations(str(tmp_path / "causal")).corpus().given_labels) == 3 * 120


def test_cross_fitting_and_every_start_of_a_second_order_model(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [[(start * step) % 31 for step in range(60)] for start in range(1, 31)]
    file = tmp_path / "tokens.parquet"
    pq.write_table(pa.table({"input_ids": pa.array(ids, pa.list_(pa.int32()))}), file)
    tokenized = ("--input", file, "--tokenizer", "none", "--vocabulary", 31)
    small, large = config(tmp_path / "small.yaml", model=ESTIMATOR), config(tmp_path / "lm.yaml", model=LANGUAGE_MODEL)
    folds, labels, model = tmp_path / "folds", tmp_path / "labels", tmp_path / "model"
    train_folds = ("jobs.train_estimator", "--config", small, *tokenized, "--folds", 2)
    assert run_command(*train_folds, "--output", folds) == 0
    exactly = ("--method", "exact", "--estimator", folds, "--output", labels)
    assert run_command(*ANNOTATE, *tokenized, *exactly) == 0
    assert find_annotations(str(labels)).provenance.folds == 2
    train = ("jobs.train_second_order", "--config", config(tmp_path / "so.yaml"), "--labels", labels)
    assert run_command(*train, "--init-from", folds, "--folds", 2, "--output", tmp_path / "so-folds") == 0
    second = ("--estimator", tmp_path / "so-folds", "--output", tmp_path / "second")
    assert run_command(*ANNOTATE, *tokenized, *second) == 0
    assert find_annotations(str(tmp_path / "second")).provenance.source_seen_by_estimator == "no"

    train_model = ("jobs.train_language_model", "--config", large, "--labels", labels, "--objective", "cross-entropy")
    assert run_command(*train_model, "--output", model) == 0
    residual = ("--init-from", model, "--form", "residual", "--causal-weight", 1, "--transformers", 2)
    assert run_command(*train, *residual, "--output", tmp_path / "so-residual") == 0
    loaded = load_second_order(tmp_path / "so-residual")
    assert (loaded.config.form, loaded.config.transformers, loaded.config.vocab_size) == ("residual", 2, 32)
    capsys.readouterr()
    assert run_command(*train_model, "--tokenizer", SHIPPED / "tokenizer", "--output", tmp_path / "out") == 1
    assert "--tokenizer needs labels of text" in capsys.readouterr().err
    assert run_command(*train, "--init-from", folds, "--output", tmp_path / "out") == 1
    assert "has 2 folds, and --folds is 1; make them equal" in capsys.readouterr().err
    assert run_command(*train, "--init-from", SHIPPED / "estimator", "--output", tmp_path / "out") == 1
    assert "has another tokenizer than the labels" in capsys.readouterr().err


def test_mistakes_are_one_line(run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tokens.parquet"
    pq.write_table(pa.table({"input_ids": [[1, 2, 99]]}), file)
    tokenized = ("--input", file, "--tokenizer", "none")
    output = ("--output", tmp_path / "out")
    mistakes = {
        "needs --vocabulary": ("jobs.train_estimator", *tokenized, *output),
        "do not fit a vocabulary of 31": ("jobs.train_estimator", *tokenized, "--vocabulary", 31, *output),
        "cannot hold out 1 of 1": ("jobs.train_estimator", *tokenized, "--vocabulary", 100, *output),
        "has no column `text`": ("jobs.train_tokenizer", "--input", file, *output),
        "must be above 256": ("jobs.train_tokenizer", "--input", file, "--vocabulary", 9, *output),
        "is not an annotated dataset": ("jobs.train_second_order", "--labels", tmp_path, *output),
        "was not written by pipeline.annotate": ("jobs.train_language_model", "--labels", tmp_path / "set", *output),
        "above 0": ("jobs.train_language_model", "--labels", tmp_path, "--training.steps", 0, *output),
    }
    (tmp_path / "set" / "data" / "exact").mkdir(parents=True)
    pq.write_table(pa.table({"input_ids": [[1]]}), tmp_path / "set" / "data" / "exact" / "train-00000-of-00001.parquet")
    for message, arguments in mistakes.items():
        assert run_command(*arguments) == 1, message
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error, error
        assert not (tmp_path / "out").exists(), message
