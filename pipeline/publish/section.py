"""Section about one subset in a card, from the template card.md: totals, columns, loading, limits and provenance."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from string import Template

import pyarrow as pa

from pipeline.data.hub import Repository
from pipeline.data.naming import load_call, public_names
from pipeline.messages import in_markdown, name_in_markdown
from pipeline.publish.origin import Origin
from schemas.annotations import DESCRIPTIONS, Provenance
from schemas.layout import Subset
from schemas.receipts import BIN_NATS, BINS, Counts
from schemas.sidecars import KEY_DESCRIPTIONS

INTRODUCTION, SECTION = (
    Path(__file__).with_name("card.md").read_text(encoding="utf-8").split("\n<!-- The section of each subset: -->\n")
)
IN_SHARDS = "`entropy[i]` is the label of `input_ids[i]`. Both lists have the same length, without a shift."
IN_SIDECARS = (
    "The documents are not here. `entropy[i]` is the label of the i-th token of the document, without a shift. "
    "`python -m pipeline.join` joins the labels to the documents by their `id` and digest."
)
THIS_FOLDER = "THIS_FOLDER"
MOST_COLUMNS = 100  # most columns that the section lists by name


@dataclass(frozen=True, kw_only=True)
class SubsetInfo:
    """Content of the card's section about a subset. `counts` is None while the subset is still being written."""

    subset: Subset
    path: str
    """First argument of `load_dataset`: THIS_FOLDER, or USER/NAME on the Hub."""
    revision: str = "main"
    """Branch on the Hub."""
    provenance: Provenance
    schema: pa.Schema
    origin: Origin
    counts: Counts | None = None
    shards_sha256: str = ""
    size: int = 0
    """Size of all shards in bytes."""

    @property
    def labels(self) -> str:
        """Path or URL of the subset's shards, for the training command's flag `--labels`."""
        dataset = self.path if self.path == THIS_FOLDER else Repository(self.path, self.revision).url
        return f"{dataset}/{self.subset.in_repository.data.as_posix()}"


def section(info: SubsetInfo) -> str:
    """Return the section about a subset in Markdown, without the two comments that enclose the section."""
    provenance, names = info.provenance, info.schema.names
    described = {**(KEY_DESCRIPTIONS if provenance.sidecar else {}), **DESCRIPTIONS}
    columns = [column for column in described if column in names]
    types = [_type_name(info.schema.field(column).type) for column in columns]
    calibration = str(provenance.calibration)  # without the knots
    shown = {**vars(provenance), "source": public_names(provenance.source), "calibration": calibration}
    return Template(SECTION.rstrip()).substitute(
        name=info.subset.name,
        figures=_figures(info),
        columns=_rows((f"`{name}`", kind, described[name]) for name, kind in zip(columns, types, strict=True)),
        source_columns=_listed([column for column in names if column not in columns]),
        tokenizer=info.subset.in_repository.tokenizer.as_posix(),
        load_call=load_call(info.path, info.subset.name, info.revision),
        alignment=IN_SIDECARS if provenance.sidecar else IN_SHARDS,
        labels=f"{info.labels}::DOCUMENTS" if provenance.sidecar else info.labels,
        limits=provenance.limits + _calibrated(provenance),
        seen=_seen(provenance),
        origin=info.origin.sentence,
        model=in_markdown(provenance.labelled_by),
        provenance=_rows((key, _joined(value)) for key, value in shown.items()),
    )


def _rows(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _listed(columns: Sequence[str]) -> str:
    names = ", ".join(map(name_in_markdown, columns[:MOST_COLUMNS])) or "none"
    more = len(columns) - MOST_COLUMNS
    return f"{names} and {more:,} more" if more > 0 else names


def _type_name(kind: pa.DataType) -> str:
    """Return the name of a type. For a list, leave out the field name of its items, which Parquet may change."""
    if pa.types.is_fixed_size_list(kind):
        return f"lists of {kind.list_size} {kind.value_type}"
    return f"list of {_type_name(kind.value_type)}" if pa.types.is_list(kind) else str(kind)


def _joined(value: object) -> str:
    return ", ".join(in_markdown(str(each)) for each in (value if isinstance(value, tuple) else (value,)))


def _seen(provenance: Provenance) -> str:
    return {
        "yes": "The checkpoint was trained on these documents, so labels of text that it memorised are too low.",
        "no": "The checkpoint was not trained on these documents.",
        "unknown": "It is not known whether the checkpoint was trained on these documents; if so, labels are too low.",
    }[provenance.source_seen_by_estimator]


def _calibrated(provenance: Provenance) -> str:
    """Return a sentence about the calibration, and a sentence about label columns that are not calibrated.

    Each sentence begins with a space, and is left out if it does not apply.
    """
    calibration = provenance.calibration
    if calibration is None:
        return ""
    by = f", with a fit for each value of {name_in_markdown(calibration.by)}" if calibration.by else ""
    ends = ", constant outside the labels that it was fitted to" if calibration.kind == "isotonic" else ""
    against = f"{in_markdown(calibration.reference)} ({calibration.kind}{by}{ends})"
    sentence = f" The labels were calibrated against {against}."
    left = [name for name in provenance.columns_of_labels if name not in calibration.calibrated]
    return sentence + (f" Not calibrated: {_listed(left)}." if left else "")


def _figures(info: SubsetInfo) -> str:
    counts = info.counts
    if counts is None:
        return "This subset is still being written."
    mean = counts.mean_entropy
    bits = mean / math.log(2)
    per_byte = f", or {bits * counts.tokens / counts.text_bytes:.3f} bits per byte of text" if counts.text_bytes else ""
    longest, long = info.provenance.longest_document, counts.rows_too_long
    too_long = f"\n{long:,} documents are longer than {longest:,} bytes and have no tokens." if long else ""
    unlabelled = counts.rows_changed + counts.rows_unmatched
    unmatched = f"\n{unlabelled:,} documents were not labelled, or with another text." if unlabelled else ""
    rows, tokens, labelled = counts.rows, counts.tokens, counts.labelled_tokens
    return f"""{rows:,} documents, {tokens:,} tokens, {labelled:,} of them labelled.{too_long}{unmatched}
The mean label is {mean:.3f} nats ({bits:.3f} bits){per_byte}; the median is {_median(counts.histogram)}.

Histogram of the labels: lower end of each bin in nats, share of all labels.

```
{_drawn(counts.histogram)}
```"""


WIDTH = 40
LEAST_SHARE = 0.0005  # smallest visible share of all labels: a line shows it as 0.1%


def _drawn(histogram: tuple[int, ...]) -> str:
    """Draw a histogram as text, with a line per bin: its lower end in nats, a bar and its share of the labels.

    All bins after the last bin with a visible share are drawn as one line.
    """
    total, most = sum(histogram), max(histogram, default=0)
    if not total:
        return "no labels"
    shown = max(index for index, count in enumerate(histogram) if count / total >= LEAST_SHARE) + 1
    lines = [(_lower_end(index), count) for index, count in enumerate(histogram[:shown]) if index or count]
    if beyond := sum(histogram[shown:]):
        lines.append(("above", beyond))
    return "\n".join(
        f"{end:>9} {'█' * round(WIDTH * count / most):<{WIDTH}} {count / total:6.1%}".rstrip() for end, count in lines
    )


def _median(histogram: tuple[int, ...]) -> str:
    """Return the median of a histogram as text, in nats, interpolated within its bin."""
    half = sum(histogram) / 2
    index = next((index for index, count in enumerate(accumulate(histogram)) if count >= half), 0)
    if not index:
        return "below 0" if half else "undefined"
    if index == BINS - 1:
        return f"above {_lower_end(index)} nats"
    before = sum(histogram[:index])
    return f"{(index - 1 + (half - before) / histogram[index]) * BIN_NATS:.2f} nats"


def _lower_end(index: int) -> str:
    return f"{(index - 1) * BIN_NATS:.1f}" if index else "below 0"
