"""Train the second-order model, which estimates two entropies of each token, on an annotated dataset.

The model has two outputs, which learn by mean squared error. The seeing output reads the token before it estimates the
token's label in the column `entropy`. The expecting output reads only earlier tokens. If the labels have the column
`expected_entropy`, the expecting output learns this column. Otherwise it learns `entropy` too. The best it can then
learn is the label's mean over all possible tokens, which is the expected entropy. Tokens without a label add no error.
The labels may come from any method, or from a stronger language model.

By default, documents are cut into the same windows as in annotation. If training starts from a causal language model,
the model reads a start token before each window. By default, this is the start token that annotation used.

The same command resumes an interrupted run. The job runs in one process, or in the processes that
`accelerate launch -m jobs.train_second_order` starts.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
import numpy as np

from pipeline.checks import require_at_least_one
from pipeline.cli import run
from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.corpus import Corpus
from pipeline.messages import say
from pipeline.models.checkpoint import Checkpoint, checkpoint_sha256
from pipeline.models.model_card import command_line, model_card, training_length
from pipeline.models.sizes import Form, SecondOrderSizes, TransformerSizes, TuningSettings
from pipeline.training.config import DryRunSettings, TrainingConfig
from pipeline.training.label_windows import LabelWindows, label_windows
from pipeline.training.length import TrainingSettings

if TYPE_CHECKING:  # these import torch, which is slow and not needed for --help
    from pipeline.models.second_order import SecondOrderModel
    from pipeline.training.batches import Windowing
    from pipeline.training.cost import Cost
    from pipeline.training.distillation import StoredTargets
    from pipeline.training.epoch import Epoch
    from pipeline.training.metrics import Metrics


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the job: labels, model to start from, training and output."""

    labels: str
    """Annotated dataset with the column `entropy` to learn: a folder, or hf://datasets/USER/NAME."""
    output: Path
    """Folder to write the checkpoint to."""
    init_from: str | None = None
    """Model to start from, which also sets the sizes: a causal language model; an estimator, of which only the decoder
    is used; or a second-order model, which is trained further. Give a folder or a name on the Hub. With several
    --folds, the folder must hold one checkpoint for each fold. By default, train from scratch."""
    overlap: int | None = None
    """Number of tokens that a window shares with the next window of the same document. By default, training has the
    overlap of annotation. If annotation used another window length, or another tokenizer than the dataset's, the
    default is half a window."""
    start_token: str | None = None
    """Text of the token to read before every window, if --init-from is a causal language model. The default is the
    token that the annotation of the dataset read before every window. In two cases, the default is instead the
    beginning or end of sequence that the tokenizer of --init-from declares: if annotation read no token before windows,
    or if its tokenizer was not the dataset's tokenizer."""
    form: Form = "residual"
    """Form of the two outputs. residual: each output is a correction of a value that the model computes as a language
    model: it is multiplied by a gain, and a shift is added. For the seeing output (which has read the token), this
    value is the token's surprisal. For the expecting output (which reads only the tokens before), it is the entropy of
    the prediction. direct: each output is the estimate itself, which needs no projection to the vocabulary."""
    transformers: Literal[1, 2] = 1
    """Number of transformers: 1, which both outputs share, or 2, one for each output."""
    causal_weight: float = 1.0
    """Weight of the model's own language-model loss, which is added to the squared error. 0 leaves this loss out."""
    distil: bool = False
    """Let the model learn, as a language model, the predictions in the labels' columns top_ids, top_logprobs and
    rest_logprob. It then learns all tokens that a stronger model expected, not only the actual token. Annotate with
    --top-k to get these columns."""
    folds: int = 1
    """Number of cross-validation folds; one model is trained for each fold. With several folds, each model is trained
    without the documents of its fold, so that it can label these documents without having seen them."""
    backbone: TuningSettings = field(default_factory=lambda: TuningSettings(tuning="whole"))
    limit: int | None = None
    """Read at most this many documents."""
    held_out: int | None = None
    """Number of documents at the end to hold out for evaluation only. The default is one in twenty, but at most 500."""
    model: SecondOrderSizes = field(default_factory=SecondOrderSizes)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    estimate: Annotated[DryRunSettings, cyclopts.Parameter(name="*")] = field(default_factory=DryRunSettings)

    def __post_init__(self) -> None:
        require_at_least_one(self, "folds", "limit")
        if self.causal_weight < 0:
            raise ValueError(f"--causal-weight must be 0 or more, not {self.causal_weight}")
        if self.distil and (self.causal_weight == 0 or self.folds > 1):
            raise ValueError("--distil needs a --causal-weight above 0 and a single fold; leave out --folds")
        if self.model.context is not None and self.model.context < 1:
            raise ValueError(f"--model.context must be at least 1, not {self.model.context}")
        if self.backbone.tuning != "whole" and (self.form, self.transformers) != ("residual", 1):
            raise ValueError("--backbone.tuning frozen and lora need --form residual and --transformers 1")
        if self.init_from is not None and self.model.from_scratch:
            flags = " ".join(f"--model.{name}" for name in self.model.from_scratch)
            raise ValueError(f"a model takes its sizes from --init-from; leave out {flags}")

    @property
    def predicts(self) -> bool:
        """True if training computes the model's own language-model loss."""
        return self.form == "residual" or self.causal_weight > 0


@dataclass(frozen=True)
class Prepared:
    """Settings, the labels and checkpoints that the settings name, and the windows to train on."""

    config: Config
    dataset: AnnotatedDataset
    starts: tuple[Checkpoint | None, ...]
    """One element per fold: the checkpoint that the fold's model starts from, or None for random weights."""
    windows: LabelWindows

    @classmethod
    def of(cls, config: Config) -> Prepared:
        """Find the labels and checkpoints that the settings name, and choose the windows.

        Raises:
            ValueError: as `find_annotations`, `starting_points` and `label_windows` do.
        """
        dataset = find_annotations(config.labels)
        starts = starting_points(config, dataset)
        requested = (config.model.context, config.overlap, config.start_token)
        return cls(config, dataset, starts, label_windows(dataset.provenance, starts, *requested))

    @property
    def windowing(self) -> Windowing:
        """Rules for cutting documents into windows, for training and evaluation; by default as in annotation."""
        from pipeline.training.batches import Windowing

        tokens = self.config.training.tokens_per_batch
        return Windowing(self.windows.window, tokens, overlap=self.windows.overlap, labelled_only=True)

    def fingerprint(self, training: TrainingConfig) -> dict[str, Any]:
        """Return the facts that the trained models depend on, by name.

        The output folder and the number of processes are left out.
        """
        settings = {
            **asdict(self.config),
            "training": training.fingerprint,
            "provenance": asdict(self.dataset.provenance),
            "windows": asdict(self.windows),
            "init_from_sha256": checkpoint_sha256(*filter(None, self.starts)),
        }
        del settings["output"], settings["estimate"]
        if not self.config.distil:  # saved states of older versions lack this setting
            del settings["distil"]
        if self.config.form == "residual":  # and their outputs lack a gain
            settings["gain"] = True
        return settings


def train_second_order(config: Config) -> None:
    """Train a second-order model on the labels of an annotated dataset and write its checkpoint."""
    from pipeline.training import resume
    from pipeline.training.cost import print_cost
    from pipeline.training.distributed import process_group, this_process
    from pipeline.training.epoch import Epoch
    from pipeline.training.job import train_folds

    with process_group():
        plan = Prepared.of(config)
        seen, held_out = read_documents(plan)
        epoch = cache(lambda: Epoch.of_corpus(seen, plan.windowing).of_fold(config.folds))
        training, teacher = config.training.resolved(epoch), targets_of(plan)
        if config.estimate.dry_run:
            print_cost(cost_of(seen, epoch(), plan, training, teacher))
            return
        resume.begin_on_main(config.output, plan.fingerprint(training), training)
        if this_process().is_main_process:
            say(f"windows of {plan.windows}", file=sys.stderr)

        def train_fold(fold: int, part: Corpus, folder: Path) -> None:
            train_on(part, held_out, plan.starts[fold], folder, plan, training, teacher)

        train_folds(seen.leave_one_fold_out(config.folds), config.folds, config.output, training, train_fold)


def read_documents(plan: Prepared) -> tuple[Corpus, Corpus]:
    """Return the documents to train on, and the held-out documents to evaluate on.

    Raises:
        ValueError: if the training documents or the held-out documents have fewer than two labels.
    """
    seen, held_out = plan.dataset.corpus(stop=plan.config.limit, expected=True).held_out(plan.config.held_out)
    for part in (seen, held_out):
        if len(part.given_labels) < 2:
            raise ValueError(
                f"{plan.config.labels} has too few labels to train and evaluate on; annotate more documents, or a "
                "larger --share of their tokens"
            )
    return seen, held_out


def targets_of(plan: Prepared) -> StoredTargets | None:
    """Return the predictions to distil, or None without `--distil`.

    Raises:
        ValueError: if the labels have no predictions.
    """
    if not plan.config.distil:
        return None
    from pipeline.training.distillation import StoredTargets

    return StoredTargets.of(plan.dataset, plan.config.limit)


def train_on(
    seen: Corpus,
    held_out: Corpus,
    start: Checkpoint | None,
    output: Path,
    plan: Prepared,
    training: TrainingConfig,
    teacher: StoredTargets | None,
) -> None:
    """Train one second-order model, and write its checkpoint and model card to `output`."""
    from pipeline.training.batches import endless_batches
    from pipeline.training.evaluation import held_out_batches, second_order_metrics
    from pipeline.training.job import train_and_save
    from pipeline.training.losses import second_order_loss

    config = plan.config
    model = initial_model(plan, start, seen.given_labels)
    train_and_save(
        model,
        endless_batches([seen], plan.windowing, training.seed),
        lambda trained, batch: second_order_loss(trained, batch, config.causal_weight, teacher),
        lambda trained: second_order_metrics(trained, held_out_batches(held_out, plan.windowing, trained.device)),
        training,
        output,
        tokenizer=plan.dataset.tokenizer,
        card=lambda metrics: card(model, plan, seen, held_out, metrics, training),
        result="held-out R² {r2_seeing:.3f} seeing, {r2_expecting:.3f} expecting",
    )


def cost_of(
    seen: Corpus, epoch: Epoch, plan: Prepared, training: TrainingConfig, teacher: StoredTargets | None
) -> Cost:
    """Return the cost of training on these documents, with all folds."""
    from pipeline.training.cost import Cost
    from pipeline.training.losses import second_order_loss

    config = plan.config
    return Cost(
        initial_model(plan, plan.starts[0], seen.given_labels),
        partial(second_order_loss, causal_weight=config.causal_weight, teacher=teacher),
        epoch,
        training,
        config.estimate,
        models=config.folds,
        predicts=config.predicts,
    )


def starting_points(config: Config, dataset: AnnotatedDataset) -> tuple[Checkpoint | None, ...]:
    """Return one element per fold: the checkpoint that the fold's model starts from, or None for random weights.

    With several folds, each checkpoint must have been trained without the documents of its fold. This is not checked.

    Raises:
        ValueError: if --backbone settings are given without a causal language model; if the number of checkpoints
            differs from the number of folds; if the kind of a checkpoint is not listed at `Config.init_from`; if a
            second-order model has other outputs than the settings name; or if a checkpoint does not read the tokens of
            the labels.
    """
    whole = config.backbone == TuningSettings(tuning="whole")
    if not whole and (config.init_from is None or Checkpoint.find(config.init_from).folds[0].kind != "causal"):
        raise ValueError("--backbone settings need a causal language model; name one with --init-from")
    if config.init_from is None:
        return (None,) * config.folds
    members = Checkpoint.find(config.init_from).folds
    if len(members) != config.folds:
        raise ValueError(f"{config.init_from} has {len(members)} folds, and --folds is {config.folds}; make them equal")
    for member in members:
        if member.kind == "second-order":
            require_same_form(member, config)
        elif member.kind != "estimator":
            member.require_kind("causal")
        require_same_tokens(member, dataset)
    return members


def initial_model(plan: Prepared, start: Checkpoint | None, labels: np.ndarray) -> SecondOrderModel:
    """Return a second-order model with the weights of a checkpoint, or with random weights if `start` is None.

    The model's outputs are scaled to the mean and the standard deviation of the labels.
    """
    import torch

    from pipeline.models.loading import load_causal, load_own_estimator, load_second_order
    from pipeline.models.second_order import SecondOrderModel
    from pipeline.models.stacks import llama_config

    windows: dict[str, Any] = {
        "context": plan.windows.window,
        "label_mean": float(labels.mean()),
        "label_deviation": max(float(labels.std()), 1e-3),
    }
    residual = plan.config.form == "residual"
    settings = {**windows, "form": plan.config.form, "gain": residual, "transformers": plan.config.transformers}
    torch.manual_seed(plan.config.training.seed)
    if start is None:
        sizes = TransformerSizes(context=plan.windows.window, **plan.config.model.from_scratch)
        stack = llama_config(vocab_size=plan.dataset.vocabulary, **vars(sizes))
        model = SecondOrderModel.from_scratch(stack, **settings)
    elif start.kind == "estimator":
        model = SecondOrderModel.from_estimator(load_own_estimator(start.folder), **settings)
    elif start.kind == "second-order":
        model = load_second_order(start.folder)
        model.continue_on(**windows)
    elif plan.config.backbone.tuning == "whole":
        model = SecondOrderModel.from_language_model(load_causal(start.folder), start=plan.windows.start, **settings)
    else:
        model = around_language_model(plan, start, settings)
    if not plan.config.predicts and plan.config.backbone.tuning == "whole":
        model.freeze_head()  # nothing reads these weights, and several processes would wait for gradients
    return model


def around_language_model(plan: Prepared, start: Checkpoint, settings: dict[str, Any]) -> SecondOrderModel:
    """Return a second-order model around a language model that is frozen, or adapted by LoRA.

    `settings` are the fields of the second-order model's configuration that do not concern the language model.
    """
    from pipeline.models.backbone import Backbone
    from pipeline.models.loading import load_causal
    from pipeline.models.second_order import SecondOrderModel

    tuning, named = plan.config.backbone, plan.config.init_from
    assert named is not None
    backbone = Backbone.named(named if len(plan.starts) == 1 else str(start.folder), held=tuning.hold)
    return SecondOrderModel.around_language_model(
        load_causal(start.folder),
        backbone,
        start=plan.windows.start,
        tuning=tuning.tuning,
        lora_rank=tuning.lora_rank,
        **settings,
    )


def require_same_form(start: Checkpoint, config: Config) -> None:
    """Raise if a second-order model to start from does not have the outputs that the settings name.

    Raises:
        ValueError: if the model's form or number of transformers differs from the settings.
    """
    its = {name: start.config.get(name, default) for name, default in (("form", "direct"), ("transformers", 1))}
    if its != {"form": config.form, "transformers": config.transformers}:
        raise ValueError(
            f"{start.folder} keeps its outputs; give --form {its['form']} --transformers {its['transformers']}"
        )


def require_same_tokens(start: Checkpoint, dataset: AnnotatedDataset) -> None:
    """Raise if a checkpoint's token ids do not have the same meaning as those of an annotated dataset.

    Raises:
        ValueError: if the tokenizers differ, or the checkpoint's vocabulary is smaller than the dataset's.
    """
    same = start.tokenizer_sha256 == dataset.provenance.tokenizer_sha256
    if not same or start.vocabulary < dataset.vocabulary:
        raise ValueError(
            f"{start.folder} has another tokenizer than the labels; annotate with --tokenizer {start.folder}"
        )


def card(
    model: SecondOrderModel,
    plan: Prepared,
    seen: Corpus,
    held_out: Corpus,
    metrics: Metrics,
    training: TrainingConfig,
) -> str:
    """Return the checkpoint's model card."""
    config, origin = plan.config, plan.dataset.provenance
    return model_card(
        "Second-order entropy model",
        "Estimates every token's entropy in one causal pass, after seeing the token and before (arXiv 2511.10618).",
        {
            "trained on": f"{len(seen.given_labels):,} {origin.method} labels in {len(seen):,} documents",
            "labels made by": f"python -m pipeline.annotate --method {origin.method} --share {origin.share} "
            f"--window {origin.window} --overlap {origin.overlap}",
            "model behind the labels": origin.labeller,
            "checkpoint behind the labels, sha256": origin.checkpoint_sha256,
            "windows": str(plan.windows),
            "training": training_length(metrics),
            **training.averaged,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "form": f"{config.form}, {config.transformers} transformer(s), causal weight {config.causal_weight}",
            **({"learned as a language model": "the labeller's predictions"} if config.distil else {}),
            "started from": config.init_from or "random weights",
            "language model in it": _backbone(model),
            "held out": f"{len(held_out.given_labels):,} labels in the last {len(held_out):,} documents",
            "held-out R² against labels, seeing": metrics["r2_seeing"],
            "held-out R² against labels, expecting": metrics["r2_expecting"],
            "the expecting output learned": "entropy" if seen.expected_N is None else "expected_entropy",
        },
        command=command_line("jobs.train_second_order", sys.argv[1:]),
        tags=["entropy-estimation"],
        usage="python -m pipeline.annotate --method second-order --estimator THIS_FOLDER --input FILES --output DIR",
    )


def _backbone(model: SecondOrderModel) -> str:
    from pipeline.models.backbone import Backbone, tuned

    settings = model.config
    if settings.backbone is None:
        return "none: the checkpoint holds all weights"
    tuning, backbone = tuned(settings.tuning, settings.lora_rank), Backbone.from_values(settings.backbone)
    return f"{backbone.name}, sha256 {backbone.sha256}, {tuning}"


if __name__ == "__main__":
    run(train_second_order, "jobs.train_second_order")
