"""Trains the entropy estimation model on documents, in windows of every length up to the context.

Every length must be seen in training, since an exact label is the difference of the code lengths of two
prefixes (paper section 3). Held-out loss is measured on windows of the whole context. The same command goes on with
an interrupted training. Processes: one, or those of `accelerate launch -m jobs.train_estimator`.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cyclopts
import torch

from pipeline.command_line import run
from pipeline.data.corpus import Corpus, read_corpus
from pipeline.data.documents import Column
from pipeline.data.locations import find_files, pinned
from pipeline.data.tokenizer import TokenSource, token_source, tokenizer_sha256
from pipeline.models.card import command_line, model_card, training_length
from pipeline.models.checkpoint import find_checkpoint, fold_folder
from pipeline.models.estimator import EntropyEstimator, EstimatorConfig, Introduction
from pipeline.models.loading import load_estimator, save_checkpoint
from pipeline.models.quantization import Codec
from pipeline.models.stack import Kind
from pipeline.models.window_encoder import NoisePlace
from pipeline.training import resume
from pipeline.training.accounting import window_accounting
from pipeline.training.batches import Cut, endless_batches
from pipeline.training.config import TrainingConfig
from pipeline.training.log import Figures
from pipeline.training.loop import train
from pipeline.training.losses import estimator_loss
from pipeline.training.processes import this_process, together
from schemas.documents import TEXT_COLUMN, TOKENS_COLUMN


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The model."""

    context: int = 256
    """Longest window, in tokens."""
    encoder_kind: Kind = "transformer"
    """Attention, or a convolution over positions in its place (masked mixer)."""
    encoder_width: int = 64
    """Hidden size of the encoder."""
    encoder_layers: int = 3
    """Blocks of the encoder."""
    encoder_heads: int = 2
    """Heads of the encoder."""
    encoder_kernel: int = 1
    """Neighbouring hidden indices that a mixer's convolution covers."""
    bottleneck_width: int | None = 4
    """Numbers that the window's embedding has; fewer make less noisy labels. None: as many as the encoder is wide."""
    noise: float = 0.0
    """Uniform noise of up to so much in training, which makes the embedding bear rounding: half of the precision that
    it is to be stored with."""
    noise_place: NoisePlace = "before-down"
    """On the bottleneck's numbers, or on the encoder's state before it is narrowed to them."""
    introduction: Introduction = "token"
    """How the decoder gets the embedding: as one more token, beside every token, or added to every token."""
    introduced_above: int = 0
    """Decoder blocks that see tokens alone, so that exact labels compute them once a window."""
    decoder_kind: Kind = "transformer"
    """As of the encoder."""
    decoder_width: int = 192
    """Hidden size of the decoder."""
    decoder_layers: int = 4
    """Blocks of the decoder."""
    decoder_heads: int = 6
    """Heads of the decoder."""
    decoder_kernel: int = 1
    """As of the encoder."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train on, what to train, where to write."""

    input: tuple[str, ...]
    """Parquet or JSON lines files, folders, globs or URLs of these (hf://datasets/user/name, https://, s3://); with
    --tokenizer none, of a column `input_ids`."""
    tokenizer: str
    """Folder of the tokenizer, or `none` for documents tokenized already."""
    output: Path
    """Folder to write the checkpoint to."""
    vocabulary: int | None = None
    """Number of token ids, with --tokenizer none."""
    text_column: str = TEXT_COLUMN
    """Name of the column that holds the text."""
    limit: int | None = None
    """Documents to read at the most."""
    held_out: int | None = None
    """Last documents to evaluate on and never train on; one in twenty, 500 at the most, by default."""
    init_from: str | None = None
    """Estimator to start as, of the same sizes: a folder, or a name on the Hub. If its embedding enters elsewhere, its
    encoder and decoder are taken. Else it starts from scratch."""
    folds: int = 1
    """Above 1: so many estimators, each trained without a part of the documents, which it can then label unseen."""
    model: Sizes = field(default_factory=Sizes)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.folds < 1:
            raise ValueError(f"--folds must be at least 1, not {self.folds}")
        if self.init_from is not None and self.folds > 1:
            raise ValueError("--init-from with --folds would have seen every fold; leave out one of them")


@together()
def train_estimator(config: Config) -> None:
    """Train an entropy estimation model on documents."""
    process, inputs = this_process(), pinned(config.input)
    source = token_source(config.tokenizer, config.vocabulary)
    column = Column(config.text_column) if source.tokenizer else Column(TOKENS_COLUMN, tokenized=True)
    corpus = read_corpus(
        find_files(inputs),
        column=column,
        tokenizer=source.tokenizer,
        vocabulary=source.vocabulary,
        limit=config.limit,
    )
    seen, held_out = corpus.held_out(config.held_out)
    if process.is_main_process:
        resume.begin(config.output, what_decides(config, inputs, corpus, source))
    process.wait_for_everyone()
    for fold, part in enumerate(seen.each_without_a_fold(config.folds)):
        folder = fold_folder(config.output, fold, config.folds)
        if not resume.is_finished(folder):
            train_on(part, held_out, source, folder, config)
    if process.is_main_process:
        resume.finish(config.output)


def what_decides(config: Config, inputs: Sequence[str], corpus: Corpus, source: TokenSource) -> dict[str, Any]:
    """All that the models depend on: not where, nor in how many processes, they are trained."""
    settings = {**asdict(config), "input": inputs, "training": config.training.decisive}
    del settings["output"]
    tokenizer = tokenizer_sha256(source.folder) if source.folder else None
    return {**settings, "documents": len(corpus), "tokens": len(corpus.tokens_N), "tokenizer_sha256": tokenizer}


def train_on(seen: Corpus, held_out: Corpus, source: TokenSource, output: Path, config: Config) -> None:
    """Trains one estimator and writes it, with its card, to `output`."""
    torch.manual_seed(config.training.seed)
    model = EntropyEstimator(EstimatorConfig(vocab_size=source.vocabulary, **asdict(config.model)))
    if config.init_from is not None:
        model.begin_as(load_estimator(find_checkpoint(config.init_from)))
    output.mkdir(parents=True, exist_ok=True)
    varied = Cut(config.model.context, config.training.tokens_per_batch, varied=True)
    figures = train(
        model,
        endless_batches([seen], varied, config.training.seed),
        estimator_loss,
        lambda trained: held_out_figures(trained, held_out, config),
        config.training,
        output,
    )
    if this_process().is_main_process:
        text, kind = card(model, seen, held_out, figures, config.init_from), config.training.save_as
        save_checkpoint(model, output, dtype=kind, tokenizer_folder=source.folder, card=text)
        resume.finish(output)
        print(f"{output}: held-out loss {figures['held_out_loss']:.3f} nats a token")


def held_out_figures(model: EntropyEstimator, held_out: Corpus, config: Config) -> Figures:
    """Loss in nats a token, the same with the embedding's cost spread over its window, and that in bits a byte."""
    cut = Cut(config.model.context, config.training.tokens_per_batch)
    account = window_accounting(model, Codec("float32"), held_out, cut)
    figures = {"held_out_loss": account.loss, "normalized_loss": account.normalized_loss}
    return figures | ({} if account.bits_per_byte is None else {"bits_per_byte": account.bits_per_byte})


def card(model: EntropyEstimator, seen: Corpus, held_out: Corpus, figures: Figures, start: str | None) -> str:
    """The checkpoint's model card."""
    return model_card(
        "Entropy estimation model",
        "An encoder-augmented causal decoder. The difference of the code lengths it gives to two prefixes is the "
        "entropy of the token between them (arXiv 2511.10618).",
        {
            "trained on": f"{len(seen):,} documents, {len(seen.tokens_N):,} tokens",
            "started from": start or "scratch",
            "training": training_length(figures),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "held out": f"the last {len(held_out):,} documents, {len(held_out.tokens_N):,} tokens, never trained on",
            "held-out loss, nats a token": figures["held_out_loss"],
            "with the embedding's cost (float32)": figures["normalized_loss"],
            "bits a byte, that cost included": figures.get("bits_per_byte", "unknown: documents came as tokens"),
        },
        command=command_line("jobs.train_estimator", sys.argv[1:]),
        tags=["entropy-estimation"],
        usage="python -m pipeline.annotate --method exact --estimator THIS_FOLDER --input FILES --output DIR",
    )


if __name__ == "__main__":
    run(train_estimator, "jobs.train_estimator")
