"""The report page of an annotated dataset: self-contained HTML with statistics and some documents of a sample.

The page's script reads the contents from JSON. In the JSON, a label n stands for n x ROUNDING_NATS nats. A null stands
for a token without a label. A token is an index into the list of the tokens' texts.
"""

import base64
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer

from pipeline.data.annotated import find_annotations
from pipeline.data.atomic import write_text
from pipeline.data.label_units import whole_units
from pipeline.data.naming import public_names
from pipeline.data.tokenizer import load_tokenizer
from pipeline.messages import visible
from pipeline.report.notebook import ASSETS
from pipeline.report.palette import LEVELS, palette_css
from pipeline.report.sampling import Document, LabelledSource, SampleSize, sampled_rows, short_name
from pipeline.report.statistics import (
    LEAST_OCCURRENCES,
    MOST_GROUPS,
    Agreement,
    Statistics,
    Values,
    group_figures,
    means_of,
    measure_figures,
    value_name,
)
from pipeline.report.tokens import MOST_CHARACTERS, TokenTexts
from schemas.annotations import BETTER_MODEL, ROUNDING_NATS, SHIPPED_MODEL, Provenance
from schemas.rows import is_text

PAGE_FILE = "report.html"
SCRIPTS = ("document.js", "charts.js", "page.js")
USUAL = SampleSize()
MOST_EXACT = 2**53  # a double holds all integers up to here
CUT = f"Tokens of more than {MOST_CHARACTERS:,} characters are cut short, with … at their end."


def write_report(
    dataset: str, folder: Path, *, against: str | None = None, by: str | None = None, size: SampleSize = USUAL
) -> Path:
    """Write the report page into a folder and return the page's path. An earlier page of the same dataset is replaced.

    Args:
        dataset: folder or URL of the dataset, as for find_annotations.
        folder: folder of the page.
        against: another dataset with labels of the same documents, shown alongside.
        by: column of the source whose values form groups of documents; None for the first text column with few values.
        size: size of the sample, and of the part of the sample that is shown.

    Raises:
        ValueError: if the documents of the two datasets differ, if the folder has a `report.html` that is not a report
            of this dataset, or if find_annotations or page_contents raises it.
        ConnectionError: if the Hub cannot be reached.
    """
    annotated, page = find_annotations(dataset), folder / PAGE_FILE
    digest = hashlib.sha256(annotated.place.encode()).hexdigest()  # the page must not contain a local path
    if page.exists() and f'<meta name="annotated-dataset" content="{digest}">' not in page.read_text(
        errors="replace", encoding="utf-8"
    ):
        raise ValueError(f"{page} is there already and shows something else than {dataset}; choose another folder")
    source = LabelledSource(annotated, None if against is None else find_annotations(against))
    tokenizer = None if annotated.tokenizer is None else load_tokenizer(annotated.tokenizer)
    write_text(page, page_html(page_contents(source, tokenizer, size, by), digest))
    return page


def page_html(contents: Values, dataset: str) -> str:
    """Return the complete page with these contents, marked with `dataset`, the digest of the dataset's location."""
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        style=palette_css()
        + "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("tokens.css", "page.css")),
        dataset=dataset,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        contents=_harmless(json.dumps(contents, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
    )


@dataclass(frozen=True)
class Shown:
    """A document to show: its first tokens, and statistics of the whole document."""

    document: Document
    labelled_S: np.ndarray
    """Number of labels of each series, int64."""
    means_S: np.ndarray
    """Mean of each series in nats, float64; NaN for a series without labels."""
    bytes: int | None
    """Size of the document's text in bytes; None without a tokenizer."""

    @classmethod
    def of(cls, document: Document, texts: TokenTexts, tokens: int) -> Self:
        """Return a document cut to its first `tokens` tokens, with statistics of all its tokens."""
        labelled_S = (~np.isnan(document.labels_SN)).sum(axis=1)
        sums_S = np.asarray(np.nansum(document.labels_SN, axis=1, dtype=np.float64))
        source = {visible(name): _value(value) for name, value in document.source.items()}
        first = replace(document.first(tokens), source=source)
        return cls(first, labelled_S, means_of(sums_S, labelled_S), texts.byte_count(document.tokens_N))


@dataclass(frozen=True)
class Sampled:
    """A sample's statistics, and the documents to show."""

    statistics: Statistics
    agreement: Agreement | None
    shown: list[Shown]


def page_contents(source: LabelledSource, tokenizer: Tokenizer | None, size: SampleSize, by: str | None) -> Values:
    """Return the values that the page's script reads.

    Raises:
        ValueError: if the dataset has no document, if it has no column `by`, or if `LabelledSource.documents` raises a
            ValueError.
    """
    if not len(source.dataset):
        raise ValueError(f"{source.dataset.source} has no document to show")
    if by is not None and by not in source.source_columns:
        existing = ", ".join(source.source_columns) or "none"
        raise ValueError(f"the source of {source.dataset.source} has no column {by}; it has {existing}")
    of_text = [name for name in source.source_columns if is_text(source.dataset.schema.field(name).type)]
    columns, texts = [by] if by else of_text, TokenTexts(tokenizer)
    sampled = _read(source, size, columns, texts)
    statistics = sampled.statistics
    column, most = by or statistics.few_groups(columns), size.tokens_each(len(sampled.shown))
    documents, figures = _documents(sampled.shown, texts), measure_figures(source.series, statistics, texts)
    notes = [*_notes(source, sampled, size, most), *_limits(source.dataset.provenance)]
    return {
        "title": visible(short_name(source.dataset)),
        "model": visible(source.dataset.provenance.model),
        "told": [*map(visible, [*notes, CUT] if texts.cut else notes)],
        "rounding": ROUNDING_NATS,
        "levels": LEVELS,
        "series": [*map(visible, source.series)],
        "beside": None if source.against is None else len(source.series) - 1,
        "measures": figures,
        "least": LEAST_OCCURRENCES,
        "groups": None if column is None else group_figures(column, statistics),
        "agreement": None if sampled.agreement is None else sampled.agreement.figures(source.series),
        **documents,
    }


def _read(source: LabelledSource, size: SampleSize, columns: Sequence[str], texts: TokenTexts) -> Sampled:
    """Read the sample and return its statistics, with the documents to show.

    All other documents are dropped as soon as they are added to the statistics.
    """
    statistics = Statistics(2 * len(source.series) - 1, source.dataset.vocabulary)
    agreement = None if source.against is None else Agreement()
    runs = sampled_rows(len(source.dataset), size.sample, size.seed)
    sample = sum(map(len, runs))
    documents = min(size.documents, sample)
    to_show = {sample * index // documents for index in range(documents)}
    shown: list[Shown] = []
    for run in runs:
        few = [name for name in columns if len(columns) == 1 or len(statistics.groups.get(name, ())) <= MOST_GROUPS]
        for document in source.documents(run, source.scalar_columns):
            if statistics.documents in to_show:
                shown.append(Shown.of(document, texts, size.tokens_each(documents)))
            if agreement is not None:
                agreement.add(document.labels_SN[0], document.labels_SN[-1])
            statistics.add(document, few)
    return Sampled(statistics, agreement, shown)


def _notes(source: LabelledSource, sampled: Sampled, size: SampleSize, most_tokens: int) -> Iterator[str]:
    """Yield sentences about the dataset and the sample."""
    rows, statistics, provenance = len(source.dataset), sampled.statistics, source.dataset.provenance
    source_names = ", ".join(public_names(provenance.source))
    compared = "" if source.against is None else f", compared with {short_name(source.against)}"
    yield f"{provenance.method.capitalize()} labels of {source_names}{compared}."
    drawn = "" if statistics.documents == rows else f", drawn from the whole dataset with seed {size.seed}"
    cut = any(shown.document.left for shown in sampled.shown)
    shown = f", at most the first {most_tokens:,} tokens of each" if cut else ""
    yield (
        f"Shown: {len(sampled.shown):,} of {_documents_of(rows)}{shown}. "
        f"The figures below are of {_documents_of(statistics.documents)} with {statistics.tokens:,} tokens{drawn}."
    )


def _limits(provenance: Provenance) -> Iterator[str]:
    """Yield sentences about the limits of labels by this method and this model."""
    yield provenance.limits
    if provenance.model == SHIPPED_MODEL:
        yield f"The {SHIPPED_MODEL} is {BETTER_MODEL}."


def _documents_of(count: int) -> str:
    return f"{count:,} document{'s' if count != 1 else ''}"


def _documents(all_shown: Sequence[Shown], texts: TokenTexts) -> Values:
    """Return the JSON values of the documents, and the list of the tokens' texts, the most frequent text first.

    In a document, a token is the index of its text in the list.
    """
    tokens = [texts.of(shown.document.tokens_N.tolist()) for shown in all_shown]
    counts = Counter(text for each in tokens for text in each)
    index_of = {text: index for index, (text, _) in enumerate(counts.most_common())}
    columns = dict.fromkeys(name for shown in all_shown for name in shown.document.source)
    return {
        "texts": list(index_of),
        "columns": list(columns),
        "documents": [
            {
                "row": shown.document.row,
                "size": shown.document.size,
                "bytes": shown.bytes,
                "labelled": shown.labelled_S.tolist(),
                "means": [None if math.isnan(mean) else mean for mean in shown.means_S.tolist()],
                "source": shown.document.source,
                "tokens": [index_of[text] for text in each],
                "labels": [_rounded(labels_N) for labels_N in shown.document.labels_SN],
            }
            for shown, each in zip(all_shown, tokens, strict=True)
        ],
    }


def _value(value: Any) -> int | float | str | None:
    """Return a source column's value for the JSON: null, a number that JavaScript holds exactly, or a short text."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST_EXACT):
        return value
    return visible(value_name(value))


def _rounded(labels_N: np.ndarray) -> list[int | None]:
    labelled_N = ~np.isnan(labels_N)
    units = zip(whole_units(labels_N).tolist(), labelled_N.tolist(), strict=True)
    return [unit if labelled else None for unit, labelled in units]


def _harmless(values: str) -> str:
    """Return JSON with escapes for the characters that could begin or end an HTML element."""
    return values.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
