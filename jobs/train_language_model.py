"""Trains a causal language model to approach each token's entropy and, by its objective, not to go below it.

Documents are packed into windows with a separator before each, which has no label; a token's label stays at its token.
The model is an ordinary Llama that `AutoModelForCausalLM` loads. The same command resumes an interrupted training.

Processes: one; or those of `accelerate launch -m jobs.train_language_model`; or, with --workers, of a Ray cluster.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.corpus import held_out_documents
from pipeline.data.packing import CutWithOverlap, PackedWindow
from pipeline.models.model_card import command_line, model_card, training_length
from pipeline.models.sizes import StackKind, TransformerSizes
from pipeline.training.config import NEED_LABELS, ObjectiveSettings, TrainingConfig
from pipeline.training.data import LabelledDocuments, ModelTokens, in_windows

if TYPE_CHECKING:  # imports torch, which takes seconds that --help does not need
    from transformers import PreTrainedModel

    from pipeline.training.metrics import Metrics


@dataclass(frozen=True, kw_only=True)
class Sizes(TransformerSizes):
    """The model."""

    heads: int = 6
    """Attention heads, or of a mixer's convolution."""
    kind: StackKind = "transformer"
    """Attention, or a convolution over positions in its place (masked mixer)."""
    kernel: int = 1
    """Neighbouring hidden indices that a mixer's convolution covers."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train on, towards what, where to write."""

    labels: str
    """Annotated dataset to train on: a folder, or hf://datasets/USER/NAME."""
    output: Path
    """Folder to write the model to."""
    objective: Annotated[ObjectiveSettings, cyclopts.Parameter(name="*")] = field(default_factory=ObjectiveSettings)
    shuffle_labels: bool = False
    """Give every label to a token of chance: a control, which has the labels' distribution and nothing else of them."""
    tokenizer: Path | None = None
    """Tokenizer folder of the model; the labels' own by default. Labels move to its tokens through their bytes.
    Documents whose tokens are not those of their text are left out, and counted in metrics.jsonl."""
    limit: int | None = None
    """Documents to read at the most."""
    held_out: int | None = None
    """Last documents to evaluate on and never train on; one in twenty, 500 at the most, by default."""
    out_of_distribution: tuple[str, ...] = ()
    """Files of other text to evaluate on too, as --input of pipeline.annotate takes them."""
    stream: int | None = None
    """Tokens to hold in memory, and to shuffle, at a time; all of them by default."""
    dropout: float = 0.0
    """Share of the embeddings, and of what each block adds, that is dropped in training."""
    workers: int | None = None
    """Processes of a Ray cluster, each with a GPU where the cluster has any; this process alone by default."""
    address: str | None = None
    """With --workers, Ray cluster to join; inside `ray job submit` that job's cluster, else a local one, by default."""
    model: Sizes = field(default_factory=Sizes)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be at least 0 and below 1, not {self.dropout}")
        require_at_least_one(self, "limit", "stream", "workers")


def train_language_model(config: Config) -> None:
    """Train a causal language model on an annotated dataset with an entropy-floored loss."""
    config, arguments = with_absolute_paths(config), sys.argv[1:]
    if config.workers is None:
        train_here(config, arguments)
    else:
        from pipeline.engine.cluster import run_in_processes  # Ray may be missing where one process trains

        run_in_processes(partial(train_here, config, arguments), config.workers, config.address)


def with_absolute_paths(config: Config) -> Config:
    """The same with absolute paths: a process elsewhere has another working folder."""
    labels, *texts = (
        name if "://" in name else str(Path(name).resolve()) for name in (config.labels, *config.out_of_distribution)
    )
    tokenizer = config.tokenizer.resolve() if config.tokenizer else None
    return replace(
        config, labels=labels, out_of_distribution=tuple(texts), output=config.output.resolve(), tokenizer=tokenizer
    )


def train_here(config: Config, arguments: Sequence[str]) -> None:
    """The training, in this process and those that were started with it; `arguments` are the command's."""
    from pipeline.training import resume
    from pipeline.training.distributed import process_group, this_process

    with process_group():
        dataset = find_annotations(config.labels)
        if not this_process().is_main_process:  # all read the same, and one says what is left out
            logging.getLogger(LabelledDocuments.__module__).setLevel(logging.ERROR)
        tokens = ModelTokens.of(dataset, config.tokenizer)
        seen, evaluated = documents(config, dataset, tokens)
        labels_N = seen.labels()
        if config.objective.objective in NEED_LABELS and not len(labels_N):
            raise ValueError(f"{config.labels} has no labels for --objective {config.objective.objective}; annotate it")
        resume.begin_on_main(config.output, fingerprint(config, dataset))
        train_on(seen, evaluated, float(labels_N.mean()) if len(labels_N) else 0.0, config, arguments)


def train_on(
    seen: LabelledDocuments,
    evaluated: Mapping[str, PackedWindow],
    mean_label: float,
    config: Config,
    arguments: Sequence[str],
) -> None:
    """Trains the model and writes it, with its card; `mean_label` is that of the labels, in nats."""
    import torch

    from pipeline.training.batches import labelled_batches
    from pipeline.training.evaluation import window_loss
    from pipeline.training.job import train_and_save
    from pipeline.training.losses import ObjectiveLoss
    from pipeline.training.objectives import objective_function

    training, tokens = config.training, seen.tokens
    torch.manual_seed(training.seed)
    model, batches = new_model(config, tokens), labelled_batches(seen, training.tokens_per_batch, training.seed)

    def evaluate(model: PreTrainedModel) -> Metrics:
        size = training.tokens_per_batch
        losses = {f"{name}_loss": window_loss(model, windows, size) for name, windows in evaluated.items()}
        return losses | ({"documents_left_out": batches.position.left_out} if tokens.moved else {})

    train_and_save(
        model,
        batches,
        ObjectiveLoss(objective_function(config.objective, mean_label)),
        evaluate,
        training,
        config.output,
        tokenizer=tokens.folder,
        card=lambda metrics: card(model, seen, metrics, config, arguments),
        result="held-out cross-entropy {held_out_loss:.3f} nats a token",
    )


def fingerprint(config: Config, dataset: AnnotatedDataset) -> dict[str, Any]:
    """All that the model depends on: not where, nor in how many processes, it is trained."""
    settings = {**asdict(config), "training": config.training.fingerprint, "provenance": asdict(dataset.provenance)}
    return {name: value for name, value in settings.items() if name not in ("output", "workers", "address")}


def documents(
    config: Config, dataset: AnnotatedDataset, tokens: ModelTokens
) -> tuple[LabelledDocuments, dict[str, PackedWindow]]:
    """Documents to train on and, by name, windows to evaluate on.

    Raises:
        ValueError: if there is nothing to evaluate on.
    """
    stop = documents_read(config, dataset)
    start = stop - held_out_documents(stop, config.held_out)
    shuffled = config.training.seed if config.shuffle_labels else None
    packing = CutWithOverlap(length=config.model.context + 1, separator=tokens.separator)
    seen = LabelledDocuments(dataset, tokens, packing, 0, start, at_a_time=config.stream, shuffled=shuffled)
    evaluated = {"held_out": LabelledDocuments(dataset, tokens, packing, start, stop).held_out()}
    if config.out_of_distribution:
        evaluated["out_of_distribution"] = in_windows(tokens.read(config.out_of_distribution), packing)
    return seen, evaluated


def documents_read(config: Config, dataset: AnnotatedDataset) -> int:
    """How many there are, or are to be read: the first ones."""
    return min(len(dataset), config.limit or len(dataset))


def new_model(config: Config, tokens: ModelTokens) -> PreTrainedModel:
    """Fresh, of random weights."""
    from pipeline.models.stacks import add_dropout, new_language_model, stack_config

    sizes = stack_config(vocab_size=max(tokens.vocabulary, tokens.separator + 1), **vars(config.model))
    model = new_language_model(sizes, tokens.separator)
    if config.dropout:
        add_dropout(model, config.dropout)
    return model


def card(
    model: PreTrainedModel, seen: LabelledDocuments, metrics: Metrics, config: Config, arguments: Sequence[str]
) -> str:
    """The model's card."""
    held_out, left_out = documents_read(config, seen.dataset) - seen.stop, int(metrics.get("documents_left_out", 0))
    origin, objective = seen.dataset.provenance, config.objective.objective
    return model_card(
        "Causal language model",
        f"A Llama trained with the objective `{objective}` on per-token entropy labels (arXiv 2511.10618).",
        {
            "trained on": f"{seen.stop - left_out:,} documents with {origin.method} labels",
            **({"left out": f"{left_out:,} documents, whose labels do not move"} if left_out else {}),
            "held out": f"{held_out:,} documents after them",
            "model behind the labels": origin.labelled_by,
            "checkpoint behind the labels, sha256": origin.checkpoint_sha256,
            "training": training_length(metrics),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **{f"{name.replace('_', ' ')}, nats a token": metrics[name] for name in metrics if name.endswith("_loss")},
        },
        command=command_line("jobs.train_language_model", arguments),
        tags=["causal-lm", "token-entropy"],
        usage="AutoModelForCausalLM.from_pretrained(THIS_FOLDER)",
    )


if __name__ == "__main__":
    run(train_language_model, "jobs.train_language_model")
