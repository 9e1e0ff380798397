"""Comparison of estimators whose window embedding enters the decoder at different depths.

Estimators with different entry points and embedding widths are trained on the same documents, from a source of known
entropy. Their held-out losses, label errors and labelling times are compared. Labels are made by the exact method.

Shapes: M documents, T tokens per document.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median

import numpy as np
import torch
from torch import Tensor

from pipeline.data.corpus import Corpus
from pipeline.experiments.contest import drawn, train_estimator, train_language_model
from pipeline.experiments.results import markdown_table, write_csv, write_report
from pipeline.experiments.sources import SOURCES, ContestSettings
from pipeline.labels import causal, exact
from pipeline.models.estimator import EntropyEstimator
from pipeline.models.sizes import Introduction
from pipeline.training.evaluation import r_squared

TIMED_WINDOWS, REPEATS = 32, 5


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Variant of an estimator: the point where the embedding enters the decoder, and the width of the embedding."""

    introduction: Introduction
    introduced_above: int
    bottleneck_width: int

    @property
    def name(self) -> str:
        return f"{self.introduction} above {self.introduced_above}, {self.bottleneck_width} wide"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of an estimator's variant, or of the causal model, on a source."""

    source: str
    variant: str
    held_out_loss: float
    """Loss on fresh documents in nats per token. For estimators, the cost of storing the embeddings is not included."""
    mean_absolute_error: float
    """Mean of |label - true surprisal|, in nats."""
    r_squared: float
    bias: float
    """Mean of label - true surprisal, in nats."""
    passes: float
    """Time to label a document, divided by the time of one model pass over the document. With the paper's procedure,
    this is 2T."""


def variants(layers: int, widths: tuple[int, ...]) -> list[Variant]:
    """Return the variants to compare, for every width of the embedding.

    The first variant of a width is the paper's: the embedding enters the decoder as an additional token. In the next
    variants, a projection of the embedding is added to the states of all tokens above the first n decoder layers. There
    is one of these variants for every n from 0 to `layers`.
    """
    places: list[tuple[Introduction, int]] = [("token", 0), *(("projection", above) for above in range(layers + 1))]
    return [
        Variant(introduction=introduction, introduced_above=above, bottleneck_width=width)
        for width in widths
        for introduction, above in places
    ]


def compare_introductions(
    name: str, settings: ContestSettings, widths: tuple[int, ...], folder: Path
) -> Iterator[Outcome]:
    """Train a causal language model and an estimator of every variant on documents of the source called `name`.

    All models are trained with equal compute. Yield the result of each model as soon as it is measured.
    """
    source = SOURCES[name](np.random.default_rng(settings.seed))
    seen = drawn(source, settings.steps * settings.batch, settings, stream=2)
    corpus = Corpus.of(list(seen.tokens_MT.astype(np.int32)))
    fresh = drawn(source, settings.fresh_documents, settings, stream=1)
    ids_MT, truth_MT = torch.from_numpy(fresh.tokens_MT), torch.from_numpy(fresh.surprisal_MT)
    torch.manual_seed(settings.seed)
    language_model = train_language_model(corpus, source.vocabulary, settings, folder)
    surprisal_MT = causal.token_entropies(language_model, ids_MT, source.vocabulary)
    yield _outcome(name, "causal", surprisal_MT.mean().item(), surprisal_MT, truth_MT, 1.0)
    for variant in variants(settings.layers, widths):
        torch.manual_seed(settings.seed)
        estimator = train_estimator(corpus, source.vocabulary, settings, folder / variant.name, **asdict(variant))
        labels_MT = exact.token_entropies(estimator, ids_MT)
        with torch.no_grad():
            loss = estimator.token_losses(ids_MT).mean().item()
        yield _outcome(name, variant.name, loss, labels_MT, truth_MT, passes(estimator, ids_MT[:TIMED_WINDOWS]))


def write_results(folder: Path, outcomes: Sequence[Outcome], made_by: str) -> None:
    """Write `results.csv` and `results.md` to a folder, and print `results.md`."""
    write_csv(folder / "results.csv", [asdict(outcome) for outcome in outcomes])
    write_report(folder, markdown(outcomes), made_by)


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Return a Markdown table with a row per variant and a column per source.

    A source's cells have the mean absolute error in nats, followed by the R² in brackets. The last two columns have the
    held-out loss and the passes per document, averaged over all sources.
    """
    sources = list(dict.fromkeys(outcome.source for outcome in outcomes))
    rows: list[list[str]] = []
    for variant in dict.fromkeys(outcome.variant for outcome in outcomes):
        of_source = {outcome.source: outcome for outcome in outcomes if outcome.variant == variant}
        errors = [f"{of_source[name].mean_absolute_error:.3f} ({of_source[name].r_squared:.3f})" for name in sources]
        loss = fmean(outcome.held_out_loss for outcome in of_source.values())
        cost = fmean(outcome.passes for outcome in of_source.values())
        rows.append([variant, *errors, f"{loss:.3f}", f"{cost:.1f}"])
    return markdown_table(["the embedding enters", *sources, "held-out loss", "passes per document"], rows)


def passes(estimator: EntropyEstimator, input_ids_BT: Tensor) -> float:
    """Return the time of exact labelling divided by the time of one model pass: the median of several ratios."""
    with torch.no_grad():
        ratios = [
            _seconds(lambda: exact.token_entropies(estimator, input_ids_BT))
            / _seconds(lambda: estimator.token_losses(input_ids_BT))
            for _ in range(REPEATS)
        ]
    return median(ratios)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _outcome(source: str, variant: str, loss: float, labels_MT: Tensor, truth_MT: Tensor, cost: float) -> Outcome:
    error_MT = labels_MT.double() - truth_MT.double()
    return Outcome(
        source=source,
        variant=variant,
        held_out_loss=loss,
        mean_absolute_error=error_MT.abs().mean().item(),
        r_squared=r_squared(labels_MT, truth_MT),
        bias=error_MT.mean().item(),
        passes=cost,
    )
