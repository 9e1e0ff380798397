"""What the page of an annotated dataset says, as JSON values: figures of a sample, and documents out of it.

A label is a whole number of ROUNDING_NATS, null where a token has none; a token is its place among the texts.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from pipeline.data.naming import public_names
from pipeline.messages import visible
from pipeline.reporting.extent import Extent
from pipeline.reporting.figures import LEAST_OCCURRENCES, Values, groups, measures
from pipeline.reporting.measures import Document
from pipeline.reporting.palette import LEVELS
from pipeline.reporting.sampling import LabelledSource, sampled_rows, short_name
from pipeline.reporting.statistics import MOST_GROUPS, Statistics
from pipeline.reporting.token_texts import MOST_CHARACTERS, TokenTexts
from schemas.annotations import LIMITS, ROUNDING_NATS
from schemas.rows import is_text

CUT = f"Tokens of more than {MOST_CHARACTERS:,} characters are cut short, with … at their end."


@dataclass(frozen=True)
class Sampled:
    """A sample's statistics, and the documents to show, cut short."""

    statistics: Statistics
    shown: list[Document]


def page_contents(source: LabelledSource, tokenizer: Tokenizer | None, extent: Extent, by: str | None) -> Values:
    """Everything on the page.

    Raises:
        ValueError: if there is no document or no column `by`; as LabelledSource.documents does.
    """
    if not len(source.dataset):
        raise ValueError(f"{source.dataset.source} has no document to show")
    if by is not None and by not in source.source_columns:
        there = ", ".join(source.source_columns) or "none"
        raise ValueError(f"the source of {source.dataset.source} has no column {by}; it has {there}")
    columns = [by] if by else [name for name in source.source_columns if is_text(source.schema.field(name).type)]
    sampled = _read(source, extent, columns)
    statistics, texts = sampled.statistics, TokenTexts(tokenizer)
    column, most = by or statistics.few_groups(columns), extent.tokens_each(len(sampled.shown))
    documents, figures = _documents(sampled.shown, texts), measures(source, statistics, texts)
    told = [*_told(source, sampled, extent, most), LIMITS[source.dataset.provenance.method]]
    return {
        "title": visible(short_name(source.dataset)),
        "told": [*map(visible, [*told, CUT] if texts.cut else told)],
        "rounding": ROUNDING_NATS,
        "levels": LEVELS,
        "series": [*map(visible, source.series)],
        "beside": None if source.against is None else len(source.series) - 1,
        "measures": figures,
        "least": LEAST_OCCURRENCES,
        "groups": None if column is None else groups(column, statistics),
        **documents,
    }


def _read(source: LabelledSource, extent: Extent, columns: Sequence[str]) -> Sampled:
    """All that is kept of a document that is not shown is in sums."""
    statistics = Statistics(2 * len(source.series) - 1, source.dataset.vocabulary)
    runs = sampled_rows(len(source.dataset), extent.sample, extent.seed)
    sample = sum(map(len, runs))
    documents = min(extent.documents, sample)
    places = {sample * place // documents for place in range(documents)}
    shown: list[Document] = []
    for run in runs:
        few = [name for name in columns if len(columns) == 1 or len(statistics.groups.get(name, ())) <= MOST_GROUPS]
        for document in source.documents(run, few):  # the others cost as much to read, and make no figure
            if statistics.documents in places:
                shown.append(document.first(extent.tokens_each(documents)))
            statistics.add(document)
    return Sampled(statistics, shown)


def _told(source: LabelledSource, sampled: Sampled, extent: Extent, most_tokens: int) -> Iterator[str]:
    """What was looked at."""
    rows, statistics, provenance = len(source.dataset), sampled.statistics, source.dataset.provenance
    source_names = ", ".join(public_names(provenance.source))
    compared = "" if source.against is None else f", beside {short_name(source.against)}"
    yield f"{provenance.method.capitalize()} labels of {source_names}{compared}. Model: {provenance.labelled_by}."
    drawn = "" if statistics.documents == rows else f", drawn from all over it with seed {extent.seed}"
    cut = any(document.left for document in sampled.shown)
    shown = f", the first {most_tokens:,} tokens of each at most" if cut else ""
    yield (
        f"Shown: {len(sampled.shown):,} of {_documents_of(rows)}{shown}. "
        f"The figures below are of {_documents_of(statistics.documents)} with {statistics.tokens:,} tokens{drawn}."
    )


def _documents_of(count: int) -> str:
    return f"{count:,} document{'s' if count != 1 else ''}"


def _documents(shown: Sequence[Document], texts: TokenTexts) -> Values:
    """The texts that occur, the most frequent first, and the documents' tokens as places among them."""
    tokens = [texts.of(document.tokens_N.tolist()) for document in shown]
    place_of = {
        text: place for place, (text, _) in enumerate(Counter(t for each in tokens for t in each).most_common())
    }
    return {
        "texts": list(place_of),
        "documents": [
            {
                "row": document.row,
                "size": document.size,
                "tokens": [place_of[text] for text in each],
                "labels": [_rounded(labels_N) for labels_N in document.labels_SN],
            }
            for document, each in zip(shown, tokens, strict=True)
        ],
    }


def _rounded(labels_N: np.ndarray) -> list[int | None]:
    given_N = ~np.isnan(labels_N)
    steps_N = np.round(np.where(given_N, labels_N, 0) / ROUNDING_NATS).astype(np.int64)
    return [step if given else None for step, given in zip(steps_N.tolist(), given_N.tolist(), strict=True)]
