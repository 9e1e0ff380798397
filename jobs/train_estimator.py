"""Train an entropy estimation model (estimator) on documents, in windows of every length up to the context.

Training must cover every length, since an exact label is the difference between the code lengths of two prefixes (paper
section 3). Held-out loss is measured on windows of the whole context.

An estimator is trained from scratch, or around a pretrained causal language model that --init-from names. An estimator
around a language model begins with the losses of the language model. Its checkpoint holds only the weights that were
trained, and names the language model.

The same command resumes an interrupted run. The job runs in one process, or in the processes that
`accelerate launch -m jobs.train_estimator` starts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.model_card import command_line, model_card
from pipeline.models.sizes import BackboneSettings, BottleneckSizes, EstimatorSizes
from pipeline.training.config import DryRunSettings, TrainingConfig
from pipeline.training.data import Documents, DocumentSettings
from pipeline.training.length import TrainingSettings

if TYPE_CHECKING:  # these import torch, which is slow and not needed for --help
    from pipeline.models.estimator import Estimator


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the job: documents, model, training and output."""

    documents: Annotated[DocumentSettings, cyclopts.Parameter(name="*")]
    output: Path
    """Folder to write the checkpoint to."""
    init_from: str | None = None
    """Model to start from: a causal language model, around which the estimator is built, or an estimator with the sizes
    of the model to train. Give a folder, a GGUF file, or a name on the Hub. By default, train from scratch. An
    estimator's embedding may enter the decoder in another form, or above another layer, than in the model to train.
    Only the weights of the encoder and the decoder are then copied."""
    folds: int = 1
    """Number of cross-validation folds; one estimator is trained for each fold. With several folds, each estimator is
    trained without the documents of its fold, so that it can label these documents without having seen them."""
    encoder: str | None = None
    """Causal language model to use as the encoder. Its tokenizer must be that of --init-from. By default, the language
    model of --init-from is both encoder and decoder, with the same weights."""
    start_token: str | None = None
    """Text of the token that the language models read before every window. By default, this is the
    beginning-of-sequence token that --init-from declares, or else the end-of-sequence token."""
    kept_states: int = 2**20
    """Number of tokens for which the states of a frozen language model are kept in memory, so that later epochs need
    not compute them again. SmolLM2-135M takes 2.3 KB per token."""
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    model: EstimatorSizes = field(default_factory=EstimatorSizes)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    estimate: Annotated[DryRunSettings, cyclopts.Parameter(name="*")] = field(default_factory=DryRunSettings)

    def __post_init__(self) -> None:
        require_at_least_one(self, "folds", "kept_states")
        if self.init_from is not None and self.folds > 1:
            raise ValueError("the model of --init-from has seen every fold of --folds; leave out one of the two flags")

    @property
    def starting_point(self) -> Checkpoint | None:
        """Checkpoint that --init-from names, or None to train from scratch.

        Raises:
            ValueError: if the checkpoint is missing, or is neither an estimator nor a causal language model; if
                settings for a language model are given, but --init-from names no language model; or if sizes are given
                that a language model determines itself.
        """
        found = None if self.init_from is None else Checkpoint.find(self.init_from)
        if found is not None and found.kind == "causal":
            found.require_kind("causal")
            own = asdict(EstimatorSizes())
            given = [name for name, value in asdict(self.model).items() if value != own[name]]
            if odd := [name for name in given if name not in asdict(BottleneckSizes())]:
                raise ValueError(f"a language model brings its sizes; leave out --model.{odd[0].replace('_', '-')}")
            return found
        only = ("encoder", "start_token", "backbone")
        defaults = {each.name: each.default for each in fields(self)} | {"backbone": BackboneSettings()}
        if odd := [name for name in only if getattr(self, name) != defaults[name]]:
            flag = odd[0].replace("_", "-")
            raise ValueError(f"--{flag} needs a causal language model; name one with --init-from, or leave it out")
        return found

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All settings that the trained models depend on, by name, except those of the documents and of training."""
        names = ("init_from", "folds", "encoder", "start_token")
        own = {name: getattr(self, name) for name in names}
        parts = {"backbone": asdict(self.backbone), "model": asdict(self.model)}
        return {**own, **parts}


def train_estimator(config: Config) -> None:
    """Train an entropy estimation model on documents and write its checkpoint."""
    # imported here because torch takes seconds, and --help does not need it
    from pipeline.training import resume
    from pipeline.training.cost import print_cost
    from pipeline.training.distributed import process_group
    from pipeline.training.job import cost_on_windows, epoch_on_windows, train_folds

    start = config.starting_point
    with process_group():
        documents = read_documents(config.documents, start)
        sizes = config.model.context, config.training.tokens_per_batch
        epoch = cache(lambda: epoch_on_windows(documents, *sizes, varied=True, folds=config.folds))
        training = config.training.resolved(epoch)
        if config.estimate.dry_run:
            model = new_model(documents, start, config)
            print_cost(cost_on_windows(model, epoch(), training, config.estimate, models=config.folds))
            return
        decisive = {**documents.decisive, **config.fingerprint, "training": training.fingerprint}
        resume.begin_on_main(config.output, decisive, training)

        def train_fold(fold: int, part: Documents, folder: Path) -> None:
            train_on(part, start, folder, config, training)

        train_folds(documents.leave_one_fold_out(config.folds), config.folds, config.output, training, train_fold)


def read_documents(settings: DocumentSettings, start: Checkpoint | None) -> Documents:
    """Read the documents, by default with the tokenizer of the language model to start from.

    Raises:
        ValueError: if the settings name another tokenizer than the language model's, or if the documents have token ids
            that the language model lacks.
        ValueError, OSError: as `DocumentSettings.read` does.
    """
    if start is None or start.kind != "causal":
        return settings.read()
    documents = replace(settings, tokenizer=settings.tokenizer or str(start.folder)).read()
    same = documents.decisive["tokenizer_sha256"] in (None, start.tokenizer_sha256)
    if not same or documents.source.vocabulary > start.vocabulary:
        raise ValueError("the language model of --init-from has another tokenizer than --tokenizer; leave that out")
    return documents


def train_on(
    documents: Documents, start: Checkpoint | None, output: Path, config: Config, training: TrainingConfig
) -> None:
    """Train one estimator, and write its checkpoint and model card to `output`."""
    from pipeline.training.job import train_on_windows

    model = new_model(documents, start, config)
    keeps_states = model.keep_states(config.kept_states)
    facts = {"started from": config.init_from or "scratch", **model.facts}
    train_on_windows(
        model,
        documents,
        training,
        output,
        lambda trained: card({**trained, **facts}),
        varied=True,
        recut=not keeps_states,
    )


def new_model(documents: Documents, start: Checkpoint | None, config: Config) -> Estimator:
    """Return the estimator to train.

    If `start` is a language model, the estimator is built around this model. Otherwise, it has the requested sizes.
    """
    import torch

    torch.manual_seed(config.training.seed)
    if start is not None and start.kind == "causal":
        return around_language_model(start, config)
    return own_estimator(documents.source.vocabulary, start, config)


def own_estimator(vocabulary: int, start: Checkpoint | None, config: Config) -> Estimator:
    """Return an estimator of the requested sizes, with random weights or those of the estimator to start from."""
    from pipeline.models.estimator import EntropyEstimator, EstimatorConfig
    from pipeline.models.loading import load_own_estimator

    model = EntropyEstimator(EstimatorConfig(vocab_size=vocabulary, **asdict(config.model)))
    if start is not None:
        model.begin_as(load_own_estimator(start.folder))
    return model


def around_language_model(start: Checkpoint, config: Config) -> Estimator:
    """Return an estimator whose decoder and encoder are causal language models.

    Before training, the estimator's losses are exactly those of the decoder's language model.

    Raises:
        ValueError: if the windows are longer than those of a language model, the encoder has another tokenizer, or
            peft is missing for LoRA.
    """
    from pipeline.data.tokenizer import named_token
    from pipeline.models.backbone import Backbone, record
    from pipeline.models.loading import declared_start, load_causal
    from pipeline.models.pretrained_estimator import PretrainedEstimator, PretrainedEstimatorConfig

    assert config.init_from is not None
    encoder = None if config.encoder is None else Checkpoint.find(config.encoder)
    for each in filter(None, (start, encoder)):
        require_reads(each, start, config.model.context)
    held, named = config.backbone.hold, config.start_token
    settings = PretrainedEstimatorConfig(
        vocab_size=start.vocabulary,
        start_token=declared_start(start.folder) if named is None else named_token(start.folder, named),
        decoder=record(Backbone.named(config.init_from, held=held)),
        encoder=None if config.encoder is None else record(Backbone.named(config.encoder, held=held)),
        **{name: getattr(config.model, name) for name in asdict(BottleneckSizes())},
        **asdict(config.backbone),
    )
    return PretrainedEstimator(
        settings, load_causal(start.folder), None if encoder is None else load_causal(encoder.folder)
    )


def require_reads(model: Checkpoint, start: Checkpoint, context: int) -> None:
    """Raise unless a language model has the tokenizer of `start` and reads windows of `context` tokens."""
    if model.tokenizer_sha256 != start.tokenizer_sha256 or model.vocabulary != start.vocabulary:
        raise ValueError("--encoder has another tokenizer than --init-from; name a language model with the same one")
    if model.context is not None and context > model.context:
        raise ValueError(f"{model.folder} reads at most {model.context} tokens; give at most that to --model.context")


def card(facts: Mapping[str, object]) -> str:
    """Return the checkpoint's model card."""
    return model_card(
        "Entropy estimation model",
        "A causal decoder with an encoder. The difference between its code lengths of two prefixes is the entropy of "
        "the token between them (arXiv 2511.10618).",
        facts,
        command=command_line("jobs.train_estimator", sys.argv[1:]),
        tags=["entropy-estimation"],
        usage="python -m pipeline.annotate --method exact --estimator THIS_FOLDER --input FILES --output DIR",
    )


if __name__ == "__main__":
    run(train_estimator, "jobs.train_estimator")
