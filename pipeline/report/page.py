"""The page of an annotated dataset: HTML that stands by itself, with figures of a sample and some of its documents.

The page's script reads its contents as JSON. There a label is a whole number of ROUNDING_NATS, or null; a token is an
index into the list of texts.
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
from pipeline.report.statistics import (
    LEAST_OCCURRENCES,
    MOST_GROUPS,
    Statistics,
    Values,
    group_figures,
    measure_figures,
)
from pipeline.report.tokens import MOST_CHARACTERS, TokenTexts
from schemas.annotations import LIMITS, ROUNDING_NATS
from schemas.rows import is_text

PAGE_FILE = "report.html"
SCRIPTS = ("document.js", "charts.js", "page.js")
USUAL = SampleSize()
CUT = f"Tokens of more than {MOST_CHARACTERS:,} characters are cut short, with … at their end."


def write_report(
    dataset: str, folder: Path, *, against: str | None = None, by: str | None = None, size: SampleSize = USUAL
) -> Path:
    """Writes `report.html` into the folder, where it may replace an earlier one of the dataset; returns its path.

    Datasets are named as find_annotations takes them. `against` is another dataset with labels of the same documents,
    shown alongside. Documents are grouped by the source's column `by`, or by the first that has few values.

    Raises:
        ValueError: as find_annotations and page_contents do, if the datasets' documents differ, or if the folder has
            a `report.html` that shows something else.
        ConnectionError: if the Hub cannot be reached.
    """
    annotated, page = find_annotations(dataset), folder / PAGE_FILE
    digest = hashlib.sha256(annotated.place.encode()).hexdigest()  # a path of this machine is in no page
    if page.exists() and f'<meta name="annotated-dataset" content="{digest}">' not in page.read_text(
        errors="replace", encoding="utf-8"
    ):
        raise ValueError(f"{page} is there already and shows something else than {dataset}; choose another folder")
    source = LabelledSource(annotated, None if against is None else find_annotations(against))
    tokenizer = None if annotated.tokenizer is None else load_tokenizer(annotated.tokenizer)
    write_text(page, page_html(page_contents(source, tokenizer, size, by), digest))
    return page


def page_html(contents: Values, dataset: str) -> str:
    """A whole page with these contents, marked with the dataset's digest."""
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
class Sampled:
    """A sample's statistics, and the documents to show, each cut short."""

    statistics: Statistics
    shown: list[Document]


def page_contents(source: LabelledSource, tokenizer: Tokenizer | None, size: SampleSize, by: str | None) -> Values:
    """All values of the page, for its script.

    Raises:
        ValueError: if there is no document or no column `by`; as LabelledSource.documents does.
    """
    if not len(source.dataset):
        raise ValueError(f"{source.dataset.source} has no document to show")
    if by is not None and by not in source.source_columns:
        existing = ", ".join(source.source_columns) or "none"
        raise ValueError(f"the source of {source.dataset.source} has no column {by}; it has {existing}")
    columns = (
        [by] if by else [name for name in source.source_columns if is_text(source.dataset.schema.field(name).type)]
    )
    sampled = _read(source, size, columns)
    statistics, texts = sampled.statistics, TokenTexts(tokenizer)
    column, most = by or statistics.few_groups(columns), size.tokens_each(len(sampled.shown))
    documents, figures = _documents(sampled.shown, texts), measure_figures(source.series, statistics, texts)
    notes = [*_notes(source, sampled, size, most), LIMITS[source.dataset.provenance.method]]
    return {
        "title": visible(short_name(source.dataset)),
        "told": [*map(visible, [*notes, CUT] if texts.cut else notes)],
        "rounding": ROUNDING_NATS,
        "levels": LEVELS,
        "series": [*map(visible, source.series)],
        "beside": None if source.against is None else len(source.series) - 1,
        "measures": figures,
        "least": LEAST_OCCURRENCES,
        "groups": None if column is None else group_figures(column, statistics),
        **documents,
    }


def _read(source: LabelledSource, size: SampleSize, columns: Sequence[str]) -> Sampled:
    """Reads the sample once; documents that are not shown are kept in sums alone."""
    statistics = Statistics(2 * len(source.series) - 1, source.dataset.vocabulary)
    runs = sampled_rows(len(source.dataset), size.sample, size.seed)
    sample = sum(map(len, runs))
    documents = min(size.documents, sample)
    to_show = {sample * index // documents for index in range(documents)}
    shown: list[Document] = []
    for run in runs:
        few = [name for name in columns if len(columns) == 1 or len(statistics.groups.get(name, ())) <= MOST_GROUPS]
        for document in source.documents(run, few):  # the others cost as much to read, and make no figure
            if statistics.documents in to_show:
                shown.append(document.first(size.tokens_each(documents)))
            statistics.add(document)
    return Sampled(statistics, shown)


def _notes(source: LabelledSource, sampled: Sampled, size: SampleSize, most_tokens: int) -> Iterator[str]:
    """Sentences on the dataset and the sample."""
    rows, statistics, provenance = len(source.dataset), sampled.statistics, source.dataset.provenance
    source_names = ", ".join(public_names(provenance.source))
    compared = "" if source.against is None else f", beside {short_name(source.against)}"
    yield f"{provenance.method.capitalize()} labels of {source_names}{compared}. Model: {provenance.labelled_by}."
    drawn = "" if statistics.documents == rows else f", drawn from all over it with seed {size.seed}"
    cut = any(document.left for document in sampled.shown)
    shown = f", the first {most_tokens:,} tokens of each at most" if cut else ""
    yield (
        f"Shown: {len(sampled.shown):,} of {_documents_of(rows)}{shown}. "
        f"The figures below are of {_documents_of(statistics.documents)} with {statistics.tokens:,} tokens{drawn}."
    )


def _documents_of(count: int) -> str:
    return f"{count:,} document{'s' if count != 1 else ''}"


def _documents(shown: Sequence[Document], texts: TokenTexts) -> Values:
    """The texts that occur, the most frequent first, and the documents' tokens as indices into them."""
    tokens = [texts.of(document.tokens_N.tolist()) for document in shown]
    counts = Counter(text for each in tokens for text in each)
    index_of = {text: index for index, (text, _) in enumerate(counts.most_common())}
    return {
        "texts": list(index_of),
        "documents": [
            {
                "row": document.row,
                "size": document.size,
                "tokens": [index_of[text] for text in each],
                "labels": [_rounded(labels_N) for labels_N in document.labels_SN],
            }
            for document, each in zip(shown, tokens, strict=True)
        ],
    }


def _rounded(labels_N: np.ndarray) -> list[int | None]:
    labelled_N = ~np.isnan(labels_N)
    steps_N = np.round(np.where(labelled_N, labels_N, 0) / ROUNDING_NATS).astype(np.int64)
    return [step if labelled else None for step, labelled in zip(steps_N.tolist(), labelled_N.tolist(), strict=True)]


def _harmless(values: str) -> str:
    """The same JSON without characters that begin or end an HTML element."""
    return values.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
