"""Training of autoencoders by jobs.train_autoencoder on text, in every form.

A trained autoencoder is also measured as a compressor.
"""

from pathlib import Path

import pytest
import torch

from pipeline.data.corpus import read_corpus
from pipeline.data.documents import Column
from pipeline.data.files import find_files
from pipeline.data.tokenizer import load_tokenizer
from pipeline.models.checkpoint import SHIPPED
from pipeline.models.loading import load_autoencoder
from tests.builders import sample_texts, write_documents
from tests.conftest import RunCommand
from tests.jobs.test_train_language_model import curve

JOB = "jobs.train_autoencoder"
STEPS = ("--training.steps", 4, "--training.evaluate-every", 2, "--training.tokens-per-batch", 128)
SIZES = (
    *("--model.context", 16, "--model.encoder-width", 16, "--model.encoder-layers", 1),
    *("--model.decoder-width", 24, "--model.decoder-layers", 1, "--model.decoder-heads", 2),
)


@pytest.fixture
def command(tmp_path: Path) -> tuple[object, ...]:
    """Return a command that trains on twelve short texts. Only --output is missing."""
    documents = write_documents(tmp_path / "texts.parquet", sample_texts(12, 300))
    text = ("--input", documents, "--tokenizer", SHIPPED / "tokenizer", "--held-out", 2)
    return (JOB, *text, *SIZES, *STEPS)


@pytest.mark.parametrize(
    ("flags", "given", "width"),
    [
        ((), "unrolled", None),
        (("--model.bottleneck-width", 3, "--model.noise", 0.1), "unrolled", 3),
        (("--model.given", "repeated", "--model.decoder-kind", "mixer"), "repeated", None),
    ],
    ids=["plain", "compressive", "repeated"],
)
def test_each_form_is_trained_and_loads(
    run_command: RunCommand,
    command: tuple[object, ...],
    tmp_path: Path,
    flags: tuple[object, ...],
    given: str,
    width: int | None,
) -> None:
    output = tmp_path / "autoencoder"
    assert run_command(*command, *flags, "--output", output) == 0
    config = load_autoencoder(output).config
    assert (config.given, config.bottleneck_width, config.vocab_size) == (given, width, 8192)
    assert [record["step"] for record in curve(output)] == [2, 4]
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "| trained on | 10 documents, " in card and "| held out | the last 2 documents, " in card
    assert "python -m jobs.train_autoencoder --input" in card
    assert not list(output.glob("unfinished*"))


def test_the_held_out_loss_is_of_the_saved_weights_over_whole_windows(
    run_command: RunCommand, command: tuple[object, ...], tmp_path: Path
) -> None:
    output = tmp_path / "autoencoder"
    assert run_command(*command, "--output", output) == 0
    model, tokenizer = load_autoencoder(output), load_tokenizer(output)
    files = find_files([str(tmp_path / "texts.parquet")])
    corpus = read_corpus(files, column=Column(), tokenizer=tokenizer, vocabulary=8192)
    losses = []
    for ids in corpus.by_document(corpus.tokens_N)[-2:]:
        for start in range(0, len(ids), 16):
            window_BT = torch.from_numpy(ids[start : start + 16]).long().unsqueeze(0)
            losses.append(model.token_losses(window_BT).flatten())
    last = curve(output)[-1]
    assert last["held_out_loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-4)


def test_a_trained_autoencoder_is_measured_as_a_compressor(
    run_command: RunCommand, command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "autoencoder"
    assert run_command(*command, "--output", output) == 0
    documents = ("--input", tmp_path / "texts.parquet", "--held-out", 2)
    assert run_command("jobs.measure_compression", *documents, "--models", output) == 0
    assert str(output) in capsys.readouterr().out


def test_mistakes_are_one_line(
    run_command: RunCommand, command: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags, message in (
        (("--limit", 2), "cannot hold out 2 of 2 documents"),
        (("--vocabulary", 5), "--vocabulary 5 differs from the 8192"),
        (("--model.given", "once"), "repeated"),
    ):
        assert run_command(*command, *flags, "--output", tmp_path / "out") == 1
        error = capsys.readouterr().err.strip()
        assert message in error and "\n" not in error
        assert not (tmp_path / "out").exists()
