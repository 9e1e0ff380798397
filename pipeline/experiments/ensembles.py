"""Ensembles of causal language models on a source of known entropy: the error of labels that several models make.

The models differ only in their seeds, which determine the initial weights and the order of the documents. Each row of
the results is about ensembles of one size: the errors of their labels, and the rank correlation between these errors
and the deviation of the models' surprisals.

Shapes: M documents, T tokens per document, N tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Tensor

from pipeline.data.corpus import Corpus
from pipeline.experiments.contest import drawn, train_language_model
from pipeline.experiments.results import markdown_table, write_csv, write_report
from pipeline.experiments.sources import SOURCES, ContestSettings
from pipeline.labels.ensemble import deviation, member_columns
from pipeline.labels.mixture import Teacher, token_labels
from schemas.annotations import ENTROPY


@dataclass(frozen=True, kw_only=True)
class EnsembleAccuracy:
    """Accuracy of ensembles of one size on a source, as means over several ensembles.

    The trained models are divided into these ensembles, so that no two ensembles share a model.
    """

    source: str
    models: int
    ensembles: int
    """Number of ensembles of this size."""
    mean_absolute_error: float
    """Mean of |label - true surprisal|, in nats."""
    bias: float
    """Mean of label - true surprisal, in nats."""
    spearman: float | None
    """Spearman's rank correlation, over tokens, between the deviation of the models' surprisals and the error
    |label - true surprisal|. None for one model."""
    spearman_of_documents: float | None
    """Spearman's rank correlation over documents; None for one model. It compares two means over a document's tokens:
    the mean deviation of the models' surprisals, and the mean |label - true surprisal|."""


def compare_ensembles(
    name: str, settings: ContestSettings, sizes: Sequence[int], folder: Path
) -> Iterator[EnsembleAccuracy]:
    """Train models on the source called `name`, and yield the accuracy of ensembles of each size.

    As many models are trained as the largest ensemble has. The first result is the accuracy of single models. Finished
    models in `folder` are loaded instead of trained.
    """
    source = SOURCES[name](np.random.default_rng(settings.seed))
    seen = drawn(source, settings.steps * settings.batch, settings, stream=2)
    corpus = Corpus.of(list(seen.tokens_MT.astype(np.int32)))
    teachers: list[Teacher] = []
    for member in range(max(sizes)):
        own = replace(settings, seed=settings.seed + member)
        torch.manual_seed(own.seed)
        place = folder / f"member-{member}"
        model = train_language_model(corpus, source.vocabulary, own, place, keep_weights=True)
        teachers.append(Teacher(model.eval(), source.vocabulary))
    fresh = drawn(source, settings.fresh_documents, settings, stream=1)
    ids_MT, truth_MT = torch.from_numpy(fresh.tokens_MT), torch.from_numpy(fresh.surprisal_MT)
    for size in sorted({1, *sizes}):
        groups = [teachers[first : first + size] for first in range(0, len(teachers) - size + 1, size)]
        yield mean_of([measure_ensemble(name, group, ids_MT, truth_MT) for group in groups])


def measure_ensemble(name: str, teachers: Sequence[Teacher], ids_MT: Tensor, truth_MT: Tensor) -> EnsembleAccuracy:
    """Return the accuracy of the labels of one ensemble, compared with the true surprisals."""
    own = member_columns(len(teachers))
    labels = token_labels(teachers, ids_MT, dict.fromkeys((ENTROPY, *own), ()))
    error_MT = labels[ENTROPY].double() - truth_MT
    spearman = of_documents = None
    if len(teachers) > 1:
        deviation_MT = torch.from_numpy(deviation([labels[column].numpy() for column in own]))
        spearman = rank_correlation(deviation_MT.flatten(), error_MT.abs().flatten())
        of_documents = rank_correlation(deviation_MT.mean(dim=1), error_MT.abs().mean(dim=1))
    return EnsembleAccuracy(
        source=name,
        models=len(teachers),
        ensembles=1,
        mean_absolute_error=error_MT.abs().mean().item(),
        bias=error_MT.mean().item(),
        spearman=spearman,
        spearman_of_documents=of_documents,
    )


def mean_of(measured: Sequence[EnsembleAccuracy]) -> EnsembleAccuracy:
    """Return the means of the accuracies of several ensembles of one size on one source."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if known else None

    return replace(
        measured[0],
        ensembles=len(measured),
        mean_absolute_error=fmean(each.mean_absolute_error for each in measured),
        bias=fmean(each.bias for each in measured),
        spearman=mean([each.spearman for each in measured]),
        spearman_of_documents=mean([each.spearman_of_documents for each in measured]),
    )


def rank_correlation(x_N: Tensor, y_N: Tensor) -> float:
    """Return Spearman's rank correlation: the correlation of the ranks. Equal values share their mean rank."""
    return float(torch.corrcoef(torch.stack([_ranks(x_N), _ranks(y_N)]))[0, 1])


def _ranks(values_N: Tensor) -> Tensor:
    _, place_N, counts = torch.unique(values_N, return_inverse=True, return_counts=True)
    mean_ranks: Tensor = counts.cumsum(0) - (counts - 1) / 2
    return mean_ranks.double()[place_N]


def write_results(folder: Path, measured: Sequence[EnsembleAccuracy], made_by: str) -> None:
    """Write `results.csv` and `results.md` to a folder, and print `results.md`."""
    write_csv(folder / "results.csv", [asdict(each) for each in measured])
    write_report(folder, f"{markdown(measured)}\n{verdict(measured)}", made_by)


def markdown(measured: Sequence[EnsembleAccuracy]) -> str:
    """Return a Markdown table with a row per number of models and a column per source.

    A cell has the mean absolute error in nats and, in brackets, the rank correlations over tokens and over documents.
    """
    sources = list(dict.fromkeys(each.source for each in measured))
    by_place = {(each.models, each.source): each for each in measured}
    rows = [
        [str(models), *(_shown(by_place[models, source]) for source in sources)]
        for models in sorted({each.models for each in measured})
    ]
    return markdown_table(["models", *sources], rows)


def verdict(measured: Sequence[EnsembleAccuracy]) -> str:
    """Return a Markdown list with a line for each size of ensemble above one model.

    A line counts the sources on which labels of an ensemble are nearer to the truth than labels of a single model. The
    line also counts the sources with a `spearman` above 0.5.
    """
    alone = {each.source: each.mean_absolute_error for each in measured if each.models == 1}
    lines: list[str] = []
    for models in sorted({each.models for each in measured} - {1}):
        group = [each for each in measured if each.models == models]
        nearer = sum(each.mean_absolute_error < alone[each.source] for each in group)
        telling = sum(each.spearman is not None and each.spearman > 0.5 for each in group)
        lines.append(
            f"- {models} models are nearer to the truth than one on {nearer} of {len(group)} sources, and the rank "
            f"correlation over tokens is above 0.5 on {telling}."
        )
    return "\n".join(lines)


def _shown(each: EnsembleAccuracy) -> str:
    if each.spearman is None or each.spearman_of_documents is None:
        return f"{each.mean_absolute_error:.4f}"
    return f"{each.mean_absolute_error:.4f} ({each.spearman:.2f}, {each.spearman_of_documents:.2f})"
