"""Measure how many bits per byte models and classical compressors need for text.

The size of a text is the code length of its tokens. For an estimator or autoencoder, the size of the stored embeddings
is added, and each storage format of the embeddings is measured. Prints a table that says which results are comparable.
With --output, the table is also written as results.csv and results.md.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.data.corpus import Corpus, held_out_documents, require_tokens
from pipeline.data.documents import Column, iterate_rows
from pipeline.data.files import pinned
from pipeline.data.inputs import Inputs
from pipeline.data.sample import sample_documents
from pipeline.data.tokenizer import TOKENIZER_FILE, encode, id_count, load_tokenizer
from pipeline.experiments.compression import Compression, classical, markdown
from pipeline.experiments.results import write_csv, write_report
from pipeline.models.checkpoint import SHIPPED, Checkpoint, require_new_folder
from pipeline.models.checkpoint_files import CONFIG_FILE
from pipeline.models.model_card import command_line
from schemas.rows import TEXT_COLUMN


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config(Inputs):
    """Settings of the measurement: models, text and output."""

    models: tuple[str, ...] = ()
    """Models to measure: estimators, autoencoders or causal language models. Give folders or names on the Hub, each
    with a tokenizer. By default, the shipped estimator is measured."""
    input: tuple[str, ...] = ()
    """Documents, as in --input of pipeline.annotate; built-in English text by default. No model should have been
    trained on the held-out documents."""
    text_column: str = TEXT_COLUMN
    """Name of the column that holds the text."""
    limit: int | None = None
    """Read at most this many documents."""
    held_out: int | None = None
    """Number of documents to measure on, taken from the end. By default, this is half of all documents. The documents
    before them calibrate the range of int8 embeddings."""
    window: int | None = None
    """Largest number of tokens that a model reads at a time. By default, the context of the model."""
    tokens_per_batch: int = 8192
    """Largest number of tokens in a batch, including padding. A window longer than this is a batch by itself."""
    output: Path | None = None
    """Folder to write the table to. By default, the table is only printed."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "window", "tokens_per_batch", "limit", "longest_document")


DEFAULTS = Config()


@dataclass(frozen=True)
class Texts:
    """Documents for calibration, and held-out documents to measure on."""

    seen: Sequence[str]
    held_out: Sequence[str]


def measure_compression(config: Config = DEFAULTS) -> None:
    """Measure how many bits per byte models and classical compressors need for the same held-out text."""
    if config.output is not None:
        require_new_folder(config.output)
    models = {name: require_compressor(Checkpoint.find(name)) for name in config.models}
    texts = read_texts(config)
    results = list(classical(texts.held_out))
    for name, checkpoint in (models or {"shipped estimator": Checkpoint(SHIPPED / "estimator")}).items():
        results += by_model(name, checkpoint, texts, config)
    if config.output is not None:
        config.output.mkdir(parents=True, exist_ok=True)
        write_csv(config.output / "results.csv", [asdict(result) for result in results])
    made_by = command_line("jobs.measure_compression", sys.argv[1:])
    write_report(config.output, markdown(results, texts.held_out), made_by)


def require_compressor(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint if its model can compute the code length of a text.

    Raises:
        ValueError: if the model predicts no tokens, or the checkpoint has no tokenizer.
    """
    folder = checkpoint.folder
    if checkpoint.kind == "second-order":
        raise ValueError(
            f"{folder} holds a second-order model, which predicts no tokens; name another model with --models"
        )
    if not (folder / TOKENIZER_FILE).is_file():
        raise ValueError(f"{folder} has no {TOKENIZER_FILE}, without which no text can be measured; name another model")
    return checkpoint


def read_texts(config: Config) -> Texts:
    """Read the documents, and divide them into calibration and held-out documents.

    A row without text becomes an empty document.
    """
    files = config.find_any(pinned(config.input))
    if config.input:
        files.tell()
        batches = iterate_rows(files.files, Column(config.text_column, longest=config.longest), config.limit)
        rows = [text for batch in batches for text in batch.column(0).to_pylist()]
    else:
        rows = sample_documents().column(TEXT_COLUMN).to_pylist()[: config.limit]
    texts = [text or "" for text in rows]
    held_out = held_out_documents(len(texts), len(texts) // 2 if config.held_out is None else config.held_out)
    return Texts(texts[:-held_out], texts[-held_out:])


def by_model(name: str, checkpoint: Checkpoint, texts: Texts, config: Config) -> Iterator[Compression]:
    """Measure one model on the held-out text, and yield its results.

    A causal language model has one result. Other models have one result for each storage format of their embeddings.
    """
    # imported here because torch takes seconds, and --help does not need it
    import torch

    from pipeline.models.loading import declared_start, load_autoencoder, load_causal, load_estimator
    from pipeline.models.quantization import KINDS, Codec
    from pipeline.training.batches import Windowing
    from pipeline.training.evaluation import causal_accounting, embedding_worth, window_accounting, window_embeddings

    folder, kind = checkpoint.folder, checkpoint.kind
    seen, held_out = (tokenized(part, folder, checkpoint.vocabulary) for part in (texts.seen, texts.held_out))
    windows = [window for window in (checkpoint.context, config.window) if window is not None]
    if not windows:
        raise ValueError(f"{folder / CONFIG_FILE} names no context; give a window with --window")
    window, device = min(windows), "cuda" if torch.cuda.is_available() else "cpu"
    windowing = Windowing(window, config.tokens_per_batch)
    if kind == "causal":
        account = causal_accounting(load_causal(folder, device), declared_start(folder), held_out, windowing)
        yield Compression.of(account, compressor=name, window=window)
        return
    model = load_estimator(folder, device) if kind == "estimator" else load_autoencoder(folder, device)
    seen_NE, worth = window_embeddings(model, seen, windowing), embedding_worth(model, held_out, windowing)
    for stored in KINDS:
        account = window_accounting(model, Codec.calibrated(stored, seen_NE), held_out, windowing)
        result = Compression.of(account, compressor=name, embedding=stored, window=window)
        yield replace(result, worth=worth.mean, worth_error=worth.error)


def tokenized(texts: Sequence[str], folder: Path, vocabulary: int) -> Corpus:
    """Tokenize documents with the tokenizer of a checkpoint's folder.

    Raises:
        ValueError: if the tokenizer has more ids than the model, or all documents are empty.
    """
    tokenizer = load_tokenizer(folder)
    if (ids := id_count(tokenizer)) > vocabulary:
        known = f"{ids} ids, but its model has {vocabulary}"
        raise ValueError(f"the tokenizer of {folder} has {known}; put the model's own tokenizer there")
    return require_tokens(Corpus.of(encode(tokenizer, texts), text_bytes=[len(text.encode()) for text in texts]))


if __name__ == "__main__":
    run(measure_compression, "jobs.measure_compression", resumes=False)
