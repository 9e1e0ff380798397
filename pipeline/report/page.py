"""What the page of an annotated dataset says, as JSON values: figures of a sample, and documents out of it.

A label is a whole number of ROUNDING_NATS, null where a token has none; a token is its place among the texts.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
from tokenizers import Tokenizer

from pipeline.data.annotated import find_annotations
from pipeline.data.atomic import write_text
from pipeline.data.naming import public_names
from pipeline.data.tokenizer import load_tokenizer
from pipeline.messages import visible
from pipeline.report.notebook import ASSETS
from pipeline.report.palette import LEVELS, palette_css
from pipeline.report.sampling import Document, LabelledSource, SampleSize, sampled_rows, short_name
from pipeline.report.statistics import LEAST_OCCURRENCES, MOST_GROUPS, Statistics, Values, groups, measures
from pipeline.report.tokens import MOST_CHARACTERS, TokenTexts
from schemas.annotations import LIMITS, ROUNDING_NATS
from schemas.rows import is_text

CUT = f"Tokens of more than {MOST_CHARACTERS:,} characters are cut short, with … at their end."


@dataclass(frozen=True)
class Sampled:
    """A sample's statistics, and the documents to show, cut short."""

    statistics: Statistics
    shown: list[Document]


def page_contents(source: LabelledSource, tokenizer: Tokenizer | None, extent: SampleSize, by: str | None) -> Values:
    """Everything on the page.

    Raises:
        ValueError: if there is no document or no column `by`; as LabelledSource.documents does.
    """
    if not len(source.dataset):
        raise ValueError(f"{source.dataset.source} has no document to show")
    if by is not None and by not in source.source_columns:
        there = ", ".join(source.source_columns) or "none"
        raise ValueError(f"the source of {source.dataset.source} has no column {by}; it has {there}")
    columns = (
        [by] if by else [name for name in source.source_columns if is_text(source.dataset.schema.field(name).type)]
    )
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


def _read(source: LabelledSource, extent: SampleSize, columns: Sequence[str]) -> Sampled:
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


def _told(source: LabelledSource, sampled: Sampled, extent: SampleSize, most_tokens: int) -> Iterator[str]:
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


PAGE_FILE = "report.html"
SCRIPTS = ("document.js", "charts.js", "page.js")
USUAL = SampleSize()


def write_report(
    dataset: str, folder: Path, *, against: str | None = None, by: str | None = None, extent: SampleSize = USUAL
) -> Path:
    """Writes `report.html` into the folder, where it may replace an earlier one of the dataset; returns its path.

    `dataset` is what find_annotations takes. With `against`, the same documents' labels in another dataset stand beside
    its own. Documents are counted by the values of the source's column `by`, or of the first that has few.

    Raises:
        ValueError: as find_annotations and page_contents do, if the datasets' documents are not the same, or if the
            folder has a `report.html` that shows something else.
        ConnectionError: if the Hub cannot be reached.
    """
    found, page = find_annotations(dataset), folder / PAGE_FILE
    digest = hashlib.sha256(found.place.encode()).hexdigest()  # a path of this machine is in no page
    if page.exists() and f'<meta name="annotated-dataset" content="{digest}">' not in page.read_text(
        errors="replace", encoding="utf-8"
    ):
        raise ValueError(f"{page} is there already and shows something else than {dataset}; choose another folder")
    source = LabelledSource(found, None if against is None else find_annotations(against))
    tokenizer = None if found.tokenizer is None else load_tokenizer(found.tokenizer)
    write_text(page, page_html(page_contents(source, tokenizer, extent, by), digest))
    return page


def page_html(contents: Values, dataset: str) -> str:
    """A whole page of what page_contents gives, marked with the dataset's digest."""
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        style=palette_css()
        + "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("tokens.css", "page.css")),
        dataset=dataset,
        script=script,
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        contents=_harmless(json.dumps(contents, ensure_ascii=False, allow_nan=False, separators=(",", ":"))),
    )


def _harmless(values: str) -> str:
    """JSON that ends no element and begins none, and means the same."""
    return values.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
