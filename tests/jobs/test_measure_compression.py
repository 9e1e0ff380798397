"""Compression measurement: every kind of model alongside gzip, zstd and xz, on the same documents."""

import csv
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from transformers import PreTrainedModel

from pipeline.data.corpus import Corpus
from pipeline.data.tokenizer import encode, load_tokenizer
from pipeline.models.checkpoint import SHIPPED
from pipeline.models.loading import save_checkpoint
from pipeline.models.quantization import KINDS, Codec
from pipeline.training.batches import Windowing
from pipeline.training.evaluation import causal_accounting, window_accounting, window_embeddings
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.tiny_models import tiny_autoencoder, tiny_estimator, tiny_language_model

JOB = "jobs.measure_compression"
TEXTS = [*sample_texts(4, 400), "Ein naïver Satz.", "", *sample_texts(8, 300)[4:]]
HELD_OUT = 6
VOCABULARY = 8192


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    return write_documents(tmp_path / "documents.parquet", TEXTS)


def saved(model: PreTrainedModel, folder: Path, tokenizer: Path | None = SHIPPED / "tokenizer") -> Path:
    save_checkpoint(model, folder, dtype="float32", tokenizer_folder=tokenizer, card="")
    return folder


def corpus(texts: list[str]) -> Corpus:
    tokenizer = load_tokenizer(SHIPPED / "tokenizer")
    return Corpus.of(encode(tokenizer, texts), text_bytes=[len(text.encode()) for text in texts])


def figures(output: Path) -> dict[tuple[str, str, str], float]:
    rows = csv.DictReader((output / "results.csv").open(encoding="utf-8"))
    return {(row["compressor"], row["embedding"], row["sees"]): float(row["bits_per_byte"]) for row in rows}


def test_every_model_is_measured_in_every_way(
    run_command: RunCommand, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    estimator, autoencoder = tiny_estimator(vocabulary=VOCABULARY), tiny_autoencoder(vocabulary=VOCABULARY)
    causal = tiny_language_model(vocabulary=VOCABULARY)
    folders = [saved(model, tmp_path / type(model).__name__) for model in (estimator, autoencoder, causal)]
    output = tmp_path / "out"
    arguments = ("--input", documents, "--held-out", HELD_OUT, "--window", 20, "--output", output)
    assert run_command(JOB, "--models", folders[0], "--models", folders[1], "--models", folders[2], *arguments) == 0

    found, held_out = figures(output), corpus(TEXTS[-HELD_OUT:])
    assert len(found) == 6 + 2 * len(KINDS) + 1
    for model, folder, window in ((estimator, folders[0], 20), (autoencoder, folders[1], 12)):
        cut = Windowing(window, 8192)
        seen_NE = window_embeddings(model, corpus(TEXTS[:-HELD_OUT]), cut)
        for kind in KINDS:
            account = window_accounting(model, Codec.calibrated(kind, seen_NE), held_out, cut)
            assert found[str(folder), kind, f"{window} tokens"] == pytest.approx(account.bits_per_byte, rel=1e-5)
    account = causal_accounting(causal, 0, held_out, Windowing(20, 8192))  # the tokenizer's own beginning
    assert found[str(folders[2]), "", "20 tokens"] == pytest.approx(account.bits_per_byte, rel=1e-5)
    report = (output / "results.md").read_text(encoding="utf-8")
    assert report in capsys.readouterr().out and "on the last 6 documents" in report
    assert f"Made by `python -m {JOB}" in report


def test_the_shipped_estimator_is_measured_alongside_classical_compressors(
    run_command: RunCommand, documents: Path, tmp_path: Path
) -> None:
    assert run_command(JOB, "--input", documents, "--output", tmp_path / "out") == 0
    found, texts = figures(tmp_path / "out"), [text.encode() for text in TEXTS[len(TEXTS) // 2 :]]
    whole = b"".join(texts)
    by_hand: dict[str, Callable[[bytes], int]] = {
        "gzip -9": lambda data: len(gzip.compress(data, 9)),
        "zstd -19": lambda data: len(pa.Codec("zstd", compression_level=19).compress(data, asbytes=True)),
        "xz -9e": lambda data: len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    for name, size in by_hand.items():
        assert found[name, "", "the whole text"] == pytest.approx(8 * size(whole) / len(whole))
        assert found[name, "", "a document"] == pytest.approx(8 * sum(map(size, texts)) / len(whole))
    bits = [found["shipped estimator", kind, "256 tokens"] for kind in KINDS]
    assert bits[0] > bits[1] > max(bits[2:]) and min(bits) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--window", 0), "must be at least 1"),
        (("--held-out", 10), "cannot hold out 10 of 10 documents"),
        (("--models", SHIPPED / "second-order"), "holds a second-order model, which predicts no tokens"),
        (("--models", SHIPPED / "tokenizer"), "is not a checkpoint"),
    ],
)
def test_mistakes_are_one_line(
    run_command: RunCommand,
    documents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    message: str,
) -> None:
    assert run_command(JOB, "--input", documents, "--output", tmp_path / "out", *arguments) == 1
    error = capsys.readouterr().err.strip()
    assert message in error and "\n" not in error
    assert not (tmp_path / "out").exists()


def test_a_model_must_have_a_tokenizer_that_fits(
    run_command: RunCommand, documents: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, tokenizer, message in (
        ("bare", None, "without which no text can be measured"),
        ("small", SHIPPED / "tokenizer", "has 8192 ids, but its model has 97"),
    ):
        folder = saved(tiny_estimator(), tmp_path / name, tokenizer)
        assert run_command(JOB, "--input", documents, "--models", folder) == 1
        assert message in capsys.readouterr().err


def test_text_that_is_empty_is_refused(
    run_command: RunCommand, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = write_documents(tmp_path / "empty.parquet", ["text", "", None])
    assert run_command(JOB, "--input", documents, "--held-out", 2) == 1
    assert "the last 2 documents are empty" in capsys.readouterr().err
