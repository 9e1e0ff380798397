"""Trains a causal language model to approach each token's entropy and, by its objective, not to go below it.

Documents are packed with a separator before each, which has no label; a token's label stays at its token. The
model is an ordinary Llama that `AutoModelForCausalLM` loads.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import cyclopts
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from pipeline.command_line import run
from pipeline.data.annotations import AnnotatedDataset, read_annotations
from pipeline.data.corpus import Corpus
from pipeline.data.tokenizer import beginning_token, load_tokenizer
from pipeline.labels.retokenize import retokenized
from pipeline.models.card import command_line, model_card, training_length
from pipeline.models.checkpoint import require_new_folder
from pipeline.models.language_model import new_language_model, next_token_losses
from pipeline.models.loading import save_checkpoint
from pipeline.models.transformer import llama_config
from pipeline.training.batches import Batch, Cut, endless_batches
from pipeline.training.evaluation import held_out_batches, mean_of
from pipeline.training.loop import Figures, TrainingConfig, train
from pipeline.training.objectives import Objective, objective_function


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The model."""

    context: int = 256
    """Longest window, in tokens."""
    width: int = 192
    """Hidden size."""
    layers: int = 4
    """Blocks."""
    heads: int = 6
    """Attention heads."""


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """What to train on, towards what, where to write."""

    labels: Path
    """Annotated dataset to train on."""
    output: Path
    """Folder to write the model to."""
    objective: Objective = "flood"
    """flood: |l - e|. floor: max(l - e, 0). weight: (1 - ê) l, ê scaled to 0..1 in each window. mask: l where e is
    below the threshold. cross-entropy: l, the control. l is a token's loss, e its entropy."""
    threshold: float | None = None
    """For mask, in nats; the labels' mean by default."""
    tokenizer: Path | None = None
    """Tokenizer folder of the model; the labels' own by default. Labels move to its tokens through their bytes."""
    limit: int | None = None
    """Documents to read at the most."""
    held_out: int | None = None
    """Last documents to evaluate on and never train on; one in twenty, 500 at the most, by default."""
    model: Sizes = field(default_factory=Sizes)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def train_language_model(config: Config) -> None:
    """Train a causal language model on an annotated dataset with an entropy-floored loss."""
    require_new_folder(config.output)
    dataset = in_tokens_of(config.tokenizer, read_annotations(config.labels, config.limit))
    seen, held_out = dataset.corpus.held_out(config.held_out)
    if config.objective != "cross-entropy" and not len(seen.given_labels):
        raise ValueError(f"{config.labels} has no labels for --objective {config.objective}; annotate it first")
    torch.manual_seed(config.training.seed)
    model, separator = initial_model(config.model, dataset)
    threshold = config.threshold if config.threshold is not None else mean_label(seen)
    objective = objective_function(config.objective, threshold=threshold)
    cut = Cut(config.model.context + 1, config.training.tokens_per_batch, overlap=1)
    config.output.mkdir(parents=True, exist_ok=True)
    figures = train(
        model,
        endless_batches(seen.packed(separator), cut, config.training.seed),
        lambda trained, batch: objective_loss(trained, batch, objective),
        lambda trained: held_out_figures(trained, held_out_batches(held_out.packed(separator), cut, trained.device)),
        config.training,
        config.output,
    )
    save_checkpoint(
        model,
        config.output,
        dtype=config.training.save_as,
        tokenizer_folder=dataset.tokenizer,
        card=card(model, dataset, figures, config),
    )
    print(f"{config.output}: held-out cross-entropy {figures['held_out_loss']:.3f} nats a token")


def in_tokens_of(tokenizer: Path | None, dataset: AnnotatedDataset) -> AnnotatedDataset:
    """The dataset in the tokens of the tokenizer in that folder; as it is where none is named.

    Raises:
        ValueError: if the dataset's source came tokenized, so that it has no text.
    """
    if tokenizer is None:
        return dataset
    if dataset.tokenizer is None:
        raise ValueError("--tokenizer needs labels of text; these documents came as tokens")
    other = load_tokenizer(tokenizer)
    corpus = retokenized(dataset.corpus, load_tokenizer(dataset.tokenizer), other)
    return AnnotatedDataset(corpus, replace(dataset.provenance, vocabulary=other.get_vocab_size()), tokenizer)


def initial_model(sizes: Sizes, dataset: AnnotatedDataset) -> tuple[LlamaForCausalLM, int]:
    """A fresh Llama and the separator: the tokenizer's, or one id more where the source came tokenized."""
    vocabulary = dataset.provenance.vocabulary
    separator = vocabulary if dataset.tokenizer is None else beginning_token(dataset.tokenizer)
    config = llama_config(vocab_size=max(vocabulary, separator + 1), **vars(sizes))
    return new_language_model(config, separator), separator


def mean_label(corpus: Corpus) -> float:
    """Mean of the labels there are, in nats; 0 where there are none."""
    return float(corpus.given_labels.mean()) if len(corpus.given_labels) else 0.0


def token_losses(model: LlamaForCausalLM, batch: Batch) -> Tensor:
    """Losses [B, T - 1] of each window's tokens from the second on; the first is the last of the window before."""
    return next_token_losses(model, batch.input_ids_BT[:, :-1], batch.input_ids_BT[:, 1:])


def objective_loss(model: LlamaForCausalLM, batch: Batch, objective: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The objective's mean over real tokens."""
    assert batch.labels_BT is not None
    values_BT = objective(token_losses(model, batch), batch.labels_BT[:, 1:])
    return values_BT[batch.real_BT[:, 1:]].mean()


def held_out_figures(model: LlamaForCausalLM, batches: Iterator[Batch]) -> Figures:
    """Plain cross-entropy in nats a token, whatever the objective."""
    return {"held_out_loss": mean_of(token_losses(model, batch)[batch.real_BT[:, 1:]] for batch in batches)}


def card(model: LlamaForCausalLM, dataset: AnnotatedDataset, figures: Figures, config: Config) -> str:
    """The model's card."""
    origin = dataset.provenance
    return model_card(
        "Causal language model",
        f"A Llama trained with the objective `{config.objective}` on per-token entropy labels (arXiv 2511.10618).",
        {
            "trained on": f"{len(dataset.corpus):,} documents with {origin.method} labels, the last of them held out",
            "checkpoint behind the labels, sha256": origin.checkpoint_sha256,
            "training": training_length(figures),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "held-out cross-entropy, nats a token": figures["held_out_loss"],
        },
        command=command_line("jobs.train_language_model", sys.argv[1:]),
        tags=["causal-lm", "token-entropy"],
        usage="AutoModelForCausalLM.from_pretrained(THIS_FOLDER)",
    )


if __name__ == "__main__":
    run(train_language_model, "jobs.train_language_model")
