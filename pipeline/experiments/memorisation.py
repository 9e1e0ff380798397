"""Memorisation of labelled documents by a causal language model: the nats by which its losses are below the labels.

The model's loss l of a token is compared with the token's label e. The memorised nats are max(e - l, 0). The excess,
max(l - e, 0), was not learned. Labels are noisy, so some nats seem memorised even in unseen text. The baseline is the
mean of the nats that seem memorised in unseen text. `document_reader` makes the comparisons.

T tokens of a document, N labelled tokens, M documents.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property, reduce
from operator import add
from typing import NamedTuple, Self

import numpy as np

from pipeline.data.annotated import AnnotatedDataset, as_rows
from pipeline.data.tokenizer import load_tokenizer
from pipeline.experiments.results import markdown_table
from pipeline.messages import in_markdown
from schemas.annotations import INPUT_IDS

BEGINNING_TOKENS, BEGINNING_CHARACTERS = 40, 50  # limits for the beginning of a document in a table
NORMAL_95 = 1.96  # half the width of the 95% interval of a normal distribution, in standard deviations


@dataclass(frozen=True)
class Comparison:
    """Losses of tokens compared with their labels: the number of labelled tokens, and sums over them in nats."""

    tokens: int = 0
    label: float = 0.0
    memorised: float = 0.0
    """Sum of max(label - loss, 0)."""
    excess: float = 0.0
    """Sum of max(loss - label, 0)."""

    @classmethod
    def of(cls, labels_T: np.ndarray, losses_T: np.ndarray) -> Self:
        """Compare the losses of a document's tokens with the labels. Tokens without a label (NaN) are left out."""
        labels_N, losses_N = (nats_T[~np.isnan(labels_T)].astype(np.float64) for nats_T in (labels_T, losses_T))
        known_N = labels_N - losses_N
        memorised, excess = (float(np.maximum(nats_N, 0).sum()) for nats_N in (known_N, -known_N))
        return cls(len(labels_N), float(labels_N.sum()), memorised, excess)

    def __add__(self, other: "Comparison") -> "Comparison":
        return Comparison(*map(add, astuple(self), astuple(other)))

    @property
    def bits(self) -> float:
        """Memorised bits."""
        return self.memorised / math.log(2)

    @property
    def memorised_per_token(self) -> float:
        return self.memorised / self.tokens

    @property
    def excess_per_token(self) -> float:
        return self.excess / self.tokens

    @property
    def difference(self) -> float:
        """Mean loss minus mean label, in nats."""
        return (self.excess - self.memorised) / self.tokens


class AuditedDocument(NamedTuple):
    """A document of the dataset, and the comparison of the model's losses with its labels."""

    row: int
    digest: bytes
    """Digest of the token ids, which copies of a document share."""
    comparison: Comparison
    value: str | None
    """Value of the column that documents are grouped by, or None."""
    id: object
    """Value of the column `id`, or None without this column."""


@dataclass(frozen=True)
class Audit:
    """Audited documents of a dataset, in the order of the dataset, and counts of the documents that are left out."""

    documents: Sequence[AuditedDocument]
    unlabelled: int = 0
    """Number of documents without a labelled token."""
    immovable: int = 0
    """Number of documents whose labels cannot be transferred to the model's tokens."""

    @cached_property
    def copies(self) -> Mapping[bytes, int]:
        """Number of copies of each document, by the digest of its token ids."""
        return Counter(document.digest for document in self.documents)

    def __str__(self) -> str:
        unlabelled = f", {self.unlabelled:,} without labels left out" if self.unlabelled else ""
        immovable = f", {self.immovable:,} left out because their labels cannot move" if self.immovable else ""
        return f"{len(self.documents):,} documents, {len(self.copies):,} of them distinct{unlabelled}{immovable}"


class Rate(NamedTuple):
    """Memorised nats per labelled token, and half the width of the 95% confidence interval over documents."""

    mean: float
    error: float
    """Half the width of the interval; NaN for a single document."""

    @classmethod
    def of(cls, documents: Iterable[AuditedDocument]) -> Self:
        """Estimate the rate as the ratio of two sums over documents (Cochran, Sampling Techniques, 1977, chapter 6).

        Copies of a document count as one draw, because their figures are equal.
        """
        distinct = dict[bytes, Comparison]()
        for document in documents:
            distinct[document.digest] = distinct.get(document.digest, Comparison()) + document.comparison
        nats_M = np.array([comparison.memorised for comparison in distinct.values()])
        tokens_M = np.array([comparison.tokens for comparison in distinct.values()])
        mean, count = float(nats_M.sum() / tokens_M.sum()), len(distinct)
        if count < 2:
            return cls(mean, math.nan)
        variance = count / (count - 1) * float(np.square(nats_M - mean * tokens_M).sum())
        return cls(mean, NORMAL_95 * math.sqrt(variance) / float(tokens_M.sum()))

    def above(self, baseline: "Rate") -> "Rate":
        """Return this rate minus a baseline that was estimated from other documents."""
        return Rate(self.mean - baseline.mean, math.hypot(self.error, baseline.error))

    def __str__(self) -> str:
        return f"{self.mean:.4f}" + ("" if math.isnan(self.error) else f" ({self.error:.4f})")


def summed(documents: Iterable[AuditedDocument]) -> Comparison:
    """Return one comparison for all tokens of some documents."""
    return reduce(add, (document.comparison for document in documents), Comparison())


def nats_above(document: AuditedDocument, baseline: Rate | None) -> float:
    """Return a document's memorised nats, minus the nats that the baseline predicts for as many labelled tokens.

    Nothing is subtracted if `baseline` is None.
    """
    comparison = document.comparison
    return comparison.memorised - (0.0 if baseline is None else baseline.mean * comparison.tokens)


def most_memorised(documents: Iterable[AuditedDocument], baseline: Rate | None, count: int) -> list[AuditedDocument]:
    """Return the `count` documents with the most memorised nats above the baseline.

    Only one of several copies of a document is returned.
    """
    distinct = dict[bytes, AuditedDocument]()
    for document in sorted(documents, key=lambda each: -nats_above(each, baseline)):
        distinct.setdefault(document.digest, document)
        if len(distinct) == count:
            break
    return [*distinct.values()]


def by_value(documents: Iterable[AuditedDocument], most: int) -> Iterator[tuple[str, Sequence[AuditedDocument]]]:
    """Group documents by their `value`, and yield the name and the documents of each group.

    Values are ranked by the number of labelled tokens in their documents. Each of the first `most` values is a group of
    its own. The documents of all other values form one last group.
    """
    members = dict[str | None, list[AuditedDocument]]()
    for document in documents:
        members.setdefault(document.value, []).append(document)
    largest = sorted(members, key=lambda value: -summed(members[value]).tokens)
    for value in largest[:most]:
        yield "null" if value is None else value, members[value]
    if others := largest[most:]:
        yield f"{len(others):,} other values", [document for value in others for document in members[value]]


def rows_for_file(audit: Audit, baseline: Rate | None) -> Iterator[dict[str, object]]:
    """Yield one row of the results file per document, as a mapping from the file's columns to the document's values.

    Differences between losses and labels are in nats. The column `value` has the document's value in the dataset's
    column by which documents are grouped. The columns `id` and `value` are left out if the dataset lacks these values.
    The column `above_unseen` is left out if `baseline` is None.
    """
    given = {
        name for name in ("id", "value") if any(getattr(document, name) is not None for document in audit.documents)
    }
    for document in audit.documents:
        comparison = document.comparison
        yield {
            "row": document.row,
            **{name: getattr(document, name) for name in sorted(given)},
            "copies": audit.copies[document.digest],
            "tokens": comparison.tokens,
            "memorised": comparison.memorised,
            "memorised_per_token": comparison.memorised_per_token,
            **({} if baseline is None else {"above_unseen": nats_above(document, baseline)}),
            "excess": comparison.excess,
            "loss_minus_label": comparison.difference,
        }


def table_of_groups(groups: Iterable[tuple[str, Sequence[AuditedDocument]]], baseline: Rate | None) -> str:
    """Return the totals of named groups of documents as a Markdown table.

    If there is a baseline, the table has a column with the memorised nats per token above the baseline. This column is
    empty in the row of the baseline itself. Half the width of each 95% interval is in brackets.
    """
    above = [] if baseline is None else ["above unseen text"]
    head = ["", "documents", "labelled tokens", "memorised nats", "memorised bits", "nats per token", *above]
    rows: list[list[str]] = []
    for name, documents in groups:
        total, rate = summed(documents), Rate.of(documents)
        figures = [
            f"{len(documents):,}",
            f"{total.tokens:,}",
            f"{total.memorised:,.1f}",
            f"{total.bits:,.1f}",
            str(rate),
        ]
        if baseline is not None:
            figures.append("" if rate == baseline else str(rate.above(baseline)))
        rows.append([name, *figures, f"{total.excess_per_token:.4f}", f"{total.difference:.4f}"])
    return markdown_table([*head, "excess", "loss - label"], rows)


def table_of_documents(audit: Audit, baseline: Rate | None, count: int, dataset: AnnotatedDataset) -> str:
    """Return the most memorised documents of an audited dataset as a Markdown table, with the first words of each."""
    shown = most_memorised(audit.documents, baseline, count)
    above = [] if baseline is None else ["above unseen text"]
    names = ["id"] if any(document.id is not None for document in shown) else []
    rows: list[list[str]] = []
    for document, beginning in zip(shown, beginnings(shown, dataset), strict=True):
        comparison = document.comparison
        figures = [f"{audit.copies[document.digest]:,}", f"{comparison.tokens:,}", f"{comparison.memorised:,.1f}"]
        figures += [f"{nats_above(document, baseline):,.1f}" for _ in above]
        name = [in_markdown(str(document.id)) for _ in names]
        nats = f"{comparison.memorised_per_token:.4f}"
        rows.append([f"{document.row:,}", *name, *figures, nats, in_markdown(beginning)])
    head = ["row", *names, "copies", "labelled tokens", "memorised nats", *above, "nats per token", "begins with"]
    return markdown_table(head, rows)


def beginnings(documents: Iterable[AuditedDocument], dataset: AnnotatedDataset) -> Iterator[str]:
    """Yield the first words of each document, or its first token ids if the dataset has no tokenizer."""
    tokenizer = None if dataset.tokenizer is None else load_tokenizer(dataset.tokenizer)
    for document in documents:
        (rows,) = dataset.batches((INPUT_IDS,), document.row, document.row + 1)
        ids = as_rows(rows)[0][INPUT_IDS][:BEGINNING_TOKENS].tolist()
        text = " ".join(map(str, ids)) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=False)
        line = " ".join(text.split())
        yield line if len(line) <= BEGINNING_CHARACTERS else f"{line[:BEGINNING_CHARACTERS]}…"


NOTE = """Nats per token are means over labelled tokens: memorised max(label - loss, 0), excess max(loss - label, 0). In
brackets: half the width of the 95% interval over documents, of which copies count once.
"""


def markdown(
    audit: Audit, unseen: Audit | None, dataset: AnnotatedDataset, *, by: str | None, groups: int, show: int
) -> str:
    """Return the tables of an audit: all documents, the documents by their value of `by`, and the most memorised ones.

    `unseen` is the audit of unseen text, which gives the baseline. `groups` and `show` bound the numbers of rows.
    """
    baseline = None if unseen is None else Rate.of(unseen.documents)
    named = [("all documents", audit.documents)]
    if by is not None:
        named += [(in_markdown(f"{by} {name}"), members) for name, members in by_value(audit.documents, groups)]
    totals = table_of_groups(named + ([] if unseen is None else [("unseen text", unseen.documents)]), baseline)
    documents = table_of_documents(audit, baseline, show, dataset)
    reference = "" if unseen is None else f"Unseen text: {unseen}.\n"
    return f"Audited: {audit}.\n{reference}\n{totals}\n{documents}\n{NOTE}"
