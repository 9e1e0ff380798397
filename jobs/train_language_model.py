"""Train a causal language model on an annotated dataset, with an objective that uses each token's entropy.

Documents are packed into windows. A separator without a label precedes each document, and every label stays at its
token. By default, the model is a plain Llama that `AutoModelForCausalLM` loads. The same command resumes an interrupted
run. With --init-from, a causal language model is trained further, with its own tokenizer.

The job runs in one process, or in the processes that `accelerate launch -m jobs.train_language_model` starts. With
--workers, it runs in processes of a Ray cluster.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.corpus import held_out_documents
from pipeline.data.packing import CutWithOverlap
from pipeline.data.tokenizer import beginning_token
from pipeline.models.checkpoint import Checkpoint
from pipeline.models.model_card import command_line, model_card, training_length
from pipeline.models.sizes import LanguageModelSizes
from pipeline.training.config import NEED_LABELS, DryRunSettings, ObjectiveSettings, TrainingConfig
from pipeline.training.data import LabelledDocuments, ModelTokens, in_windows
from pipeline.training.held_windows import HeldWindows
from pipeline.training.length import TrainingSettings

if TYPE_CHECKING:  # these import torch, which is slow and not needed for --help
    from transformers import PreTrainedModel

    from pipeline.training.cost import Cost
    from pipeline.training.epoch import Epoch
    from pipeline.training.metrics import Metrics

NOT_IN_FINGERPRINT = ("output", "workers", "address", "estimate")
LOSS_ROWS = {
    "training_loss": "objective, mean since the previous evaluation",
    "held_out_loss": "held-out cross-entropy",
    "out_of_distribution_loss": "cross-entropy on other text",
}
"""Rows of the model card for the losses of the last evaluation."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the job: labels, objective, model, training and output."""

    labels: str
    """Annotated dataset to train on: a folder, or hf://datasets/USER/NAME."""
    output: Path
    """Folder to write the model to."""
    init_from: str | None = None
    """Causal language model to start from: a folder, a GGUF file, a model on the Hub (USER/NAME or
    USER/NAME@REVISION), or `smollm2`. By default, training starts from random weights. The model keeps its tokenizer
    and its sizes. If its tokenizer is not the dataset's, the labels are transferred to its tokens, as with --tokenizer.
    --model.context is the length of the windows to train on."""
    objective: Annotated[ObjectiveSettings, cyclopts.Parameter(name="*")] = field(default_factory=ObjectiveSettings)
    shuffle_labels: bool = False
    """Shuffle the labels among all labelled tokens, as a control that keeps only the labels' distribution. With
    --stream, shuffle them among the tokens that are read at a time."""
    tokenizer: Path | None = None
    """Tokenizer folder of the model. By default, the model has the tokenizer of the annotated dataset. With another
    tokenizer, the nats of each labelled token are divided among the new tokens that cover the same bytes. Documents
    whose stored tokens differ from the tokens of their decoded text are then left out, and counted in metrics.jsonl."""
    limit: int | None = None
    """Read at most this many documents."""
    held_out: int | None = None
    """Hold out this many documents, the last ones, for evaluation only. Default: one in twenty, but at most 500."""
    out_of_distribution: tuple[str, ...] = ()
    """Files of other text to evaluate on, in addition to the held-out documents. Give them as in --input of
    pipeline.annotate."""
    stream: int | None = None
    """Read and shuffle about this many tokens at a time, to save memory. By default, all documents are read into
    memory."""
    dropout: float = 0.0
    """Dropout rate of the embeddings and of the outputs of the attention and feed-forward layers."""
    workers: int | None = None
    """Train in this many processes of a Ray cluster, each with a GPU if the cluster has any. By default, train without
    Ray: in this process, or in all processes that `accelerate launch` started."""
    address: str | None = None
    """Address of the Ray cluster to join, for --workers. By default, a job that `ray job submit` started joins the
    cluster that it runs on. Without `ray job submit`, a local cluster is started."""
    model: LanguageModelSizes = field(default_factory=LanguageModelSizes)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    estimate: Annotated[DryRunSettings, cyclopts.Parameter(name="*")] = field(default_factory=DryRunSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"--dropout must be at least 0 and below 1, not {self.dropout}")
        if self.init_from is not None:
            self._check_start()
        require_at_least_one(self, "limit", "stream", "workers")
        self.objective.require_logits(self.training)

    def _check_start(self) -> None:
        if self.tokenizer is not None:
            raise ValueError("a model keeps the tokenizer of --init-from; leave out --tokenizer")
        if self.model != LanguageModelSizes(context=self.model.context):
            raise ValueError("a model takes its sizes from --init-from; of --model, give only --model.context")


def train_language_model(config: Config) -> None:
    """Train a causal language model on an annotated dataset, with an objective that uses each token's entropy."""
    config, arguments = with_absolute_paths(config), sys.argv[1:]
    if config.workers is None or config.estimate.dry_run:
        train_here(config, arguments)
    else:
        from pipeline.engine.cluster import run_in_processes  # Ray may be missing where one process trains

        run_in_processes(partial(train_here, config, arguments), config.workers, config.address)


def with_absolute_paths(config: Config) -> Config:
    """Return the settings with absolute paths, since processes on a cluster have another working folder."""
    labels, *texts = (
        name if "://" in name else str(Path(name).resolve()) for name in (config.labels, *config.out_of_distribution)
    )
    start = config.init_from
    return replace(
        config,
        labels=labels,
        out_of_distribution=tuple(texts),
        output=config.output.resolve(),
        tokenizer=config.tokenizer.resolve() if config.tokenizer else None,
        init_from=str(Path(start).resolve()) if start and Path(start).exists() else start,
    )


def train_here(config: Config, arguments: Sequence[str]) -> None:
    """Train in this process and the other processes of its group.

    `arguments` are the arguments of the command line, for the model card.
    """
    from pipeline.training import resume
    from pipeline.training.cost import print_cost
    from pipeline.training.distributed import process_group, this_process

    with process_group():
        dataset = find_annotations(config.labels)
        if not this_process().is_main_process:  # all processes read the same documents, and one reports those left out
            logging.getLogger(LabelledDocuments.__module__).setLevel(logging.ERROR)
        start = starting_point(config)
        tokens = tokens_for(config, dataset, start)
        seen, evaluated = documents(config, dataset, tokens)
        labels_N = seen.labels()
        if config.objective.objective in NEED_LABELS and not len(labels_N):
            raise ValueError(f"{config.labels} has no labels for --objective {config.objective.objective}; annotate it")
        mean_label = float(labels_N.mean()) if len(labels_N) else 0.0
        epoch = cache(lambda: epoch_of(seen, evaluated["held_out"], config))
        training = config.training.resolved(epoch)
        if config.estimate.dry_run:
            print_cost(cost_of(seen.tokens, epoch(), mean_label, config, training, start))
            return
        resume.begin_on_main(config.output, fingerprint(config, training, dataset, start), training)
        train_on(seen, evaluated, mean_label, config, training, arguments, start)


def train_on(
    seen: LabelledDocuments,
    evaluated: Mapping[str, HeldWindows],
    mean_label: float,
    config: Config,
    training: TrainingConfig,
    arguments: Sequence[str],
    start: Checkpoint | None = None,
) -> None:
    """Train the model, and write its checkpoint and model card to the output folder.

    `mean_label` is the mean of the labels, in nats. `start` is the checkpoint to start from, or None for random
    weights.
    """
    from pipeline.training.batches import labelled_batches
    from pipeline.training.evaluation import window_loss
    from pipeline.training.job import train_and_save
    from pipeline.training.losses import ObjectiveLoss
    from pipeline.training.objectives import objective_function
    from pipeline.training.penalties import penalty_function

    model = initial_model(config, seen.tokens, start)
    batches = labelled_batches(seen, training.tokens_per_batch, training.seed)

    def evaluate(model: PreTrainedModel) -> Metrics:
        size = training.tokens_per_batch
        losses = {f"{name}_loss": window_loss(model, windows, size) for name, windows in evaluated.items()}
        return losses | ({"documents_left_out": batches.position.left_out} if seen.tokens.moved else {})

    train_and_save(
        model,
        batches,
        ObjectiveLoss(objective_function(config.objective, mean_label), penalty=penalty_function(config.objective)),
        evaluate,
        training,
        config.output,
        tokenizer=seen.tokens.folder,
        card=lambda metrics: card(model, seen, metrics, config, training, arguments),
        result="held-out cross-entropy {held_out_loss:.3f} nats per token",
    )


def epoch_of(seen: LabelledDocuments, held_out: HeldWindows, config: Config) -> Epoch:
    """Return the windows of an epoch over the documents to train on, `seen`.

    If these documents are read as a stream, the held-out windows are taken instead, as a sample of the epoch.
    """
    from pipeline.training.epoch import Epoch

    sampled = documents_read(config, seen.dataset) - seen.stop
    return Epoch.of_labelled(seen, held_out, sampled, config.training.tokens_per_batch)


def cost_of(
    tokens: ModelTokens,
    epoch: Epoch,
    mean_label: float,
    config: Config,
    training: TrainingConfig,
    start: Checkpoint | None = None,
) -> Cost:
    """Return the cost of training the model. `mean_label` is the mean of the labels, in nats."""
    from pipeline.training.cost import Cost
    from pipeline.training.losses import ObjectiveLoss
    from pipeline.training.objectives import objective_function
    from pipeline.training.penalties import penalty_function

    loss = ObjectiveLoss(objective_function(config.objective, mean_label), penalty=penalty_function(config.objective))
    compares = loss.step_objective is not None
    return Cost(initial_model(config, tokens, start), loss, epoch, training, config.estimate, compares=compares)


def fingerprint(
    config: Config, training: TrainingConfig, dataset: AnnotatedDataset, start: Checkpoint | None
) -> dict[str, Any]:
    """Return all settings that the model depends on, by name, including the provenance of the labels.

    The output folder, the number of processes, the cluster's address and the dry run are left out.
    """
    settings = {
        **asdict(config),
        "objective": config.objective.fingerprint,
        "training": training.fingerprint,
        "provenance": asdict(dataset.provenance),
        "init_from_sha256": None if start is None else start.sha256,
    }
    return {name: value for name, value in settings.items() if name not in NOT_IN_FINGERPRINT}


def documents(
    config: Config, dataset: AnnotatedDataset, tokens: ModelTokens
) -> tuple[LabelledDocuments, dict[str, HeldWindows]]:
    """Return the documents to train on, and the windows to evaluate on, by name.

    The names are `held_out` and, if other text is given, `out_of_distribution`.

    Raises:
        ValueError: if no document is left to train on, or there is nothing to evaluate on.
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
    """Return the number of documents to read: the whole dataset, or at most the first `limit` documents."""
    return min(len(dataset), config.limit or len(dataset))


def starting_point(config: Config) -> Checkpoint | None:
    """Return the checkpoint to start from, or None for random weights.

    Raises:
        ValueError: if the checkpoint cannot be found, is not a causal language model, or cannot read windows of
            `model.context` tokens.
    """
    if config.init_from is None:
        return None
    start = Checkpoint.find(config.init_from)
    start.require_kind("causal")
    if start.context is not None and start.context < config.model.context:
        raise ValueError(
            f"`model.context` is {config.model.context}, but {config.init_from} reads at most {start.context} tokens;"
            " give fewer"
        )
    return start


def tokens_for(config: Config, dataset: AnnotatedDataset, start: Checkpoint | None) -> ModelTokens:
    """Return the tokenizer and vocabulary of the model.

    Raises:
        ValueError: if `ModelTokens.of` raises a ValueError, or the checkpoint to start from has no tokenizer or too few
            token ids.
    """
    if start is None:
        return ModelTokens.of(dataset, config.tokenizer)
    if start.tokenizer_sha256 is None:
        raise ValueError(f"{config.init_from} has no tokenizer; add its tokenizer.json and tokenizer_config.json")
    if dataset.tokenizer is None:  # documents came as token ids, which must be the checkpoint's own
        tokens = ModelTokens(start.folder, dataset.vocabulary, beginning_token(start.folder), moved=False)
    else:
        same = start.tokenizer_sha256 == dataset.provenance.tokenizer_sha256
        tokens = ModelTokens.of(dataset, None if same else start.folder)
    if start.vocabulary < max(tokens.vocabulary, tokens.separator + 1):
        raise ValueError(
            f"{config.init_from} has {start.vocabulary:,} token ids, and the documents have {tokens.vocabulary:,}; give"
            " a model that knows them all"
        )
    return tokens


def initial_model(config: Config, tokens: ModelTokens, start: Checkpoint | None) -> PreTrainedModel:
    """Return the model to train: that of a checkpoint, or one of the configured sizes with random weights."""
    import torch

    from pipeline.models.loading import load_causal
    from pipeline.models.stacks import add_dropout, new_language_model, stack_config

    torch.manual_seed(config.training.seed)
    if start is None:
        sizes = stack_config(vocab_size=max(tokens.vocabulary, tokens.separator + 1), **vars(config.model))
        model = new_language_model(sizes, tokens.separator)
    else:
        model = load_causal(start.folder).requires_grad_(True)
    if config.dropout:
        add_dropout(model, config.dropout)
    return model


def card(
    model: PreTrainedModel,
    seen: LabelledDocuments,
    metrics: Metrics,
    config: Config,
    training: TrainingConfig,
    arguments: Sequence[str],
) -> str:
    """Return the model card of the trained model."""
    from pipeline.training.metrics import best_evaluation

    held_out, left_out = documents_read(config, seen.dataset) - seen.stop, int(metrics.get("documents_left_out", 0))
    origin, objective, best = seen.dataset.provenance, config.objective.objective, best_evaluation(config.output)
    return model_card(
        "Causal language model",
        f"Trained with the objective `{objective}` on per-token entropy labels (arXiv 2511.10618).",
        {
            "trained on": f"{seen.stop - left_out:,} documents with {origin.method} labels",
            **({"left out": f"{left_out:,} documents whose labels cannot move"} if left_out else {}),
            "held out": f"{held_out:,} documents after them",
            "started from": config.init_from or "random weights",
            "model behind the labels": origin.labeller,
            "checkpoint behind the labels, sha256": origin.checkpoint_sha256,
            "training": training_length(metrics),
            **training.averaged,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **{f"{row}, nats per token": metrics[name] for name, row in LOSS_ROWS.items() if name in metrics},
            **(
                {}
                if best is None
                else {f"lowest held-out cross-entropy, at step {best['step']:,}": best["held_out_loss"]}
            ),
        },
        command=command_line("jobs.train_language_model", arguments),
        tags=["causal-lm", "token-entropy"],
        usage="AutoModelForCausalLM.from_pretrained(THIS_FOLDER)",
    )


if __name__ == "__main__":
    run(train_language_model, "jobs.train_language_model")
