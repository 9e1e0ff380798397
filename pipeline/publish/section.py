"""What is known of a subset that is published or written to a folder."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

import pyarrow as pa

from pipeline.data.hub import Repository
from pipeline.data.naming import load_call, public_names
from pipeline.messages import in_markdown, name_in_markdown
from pipeline.publish.licenses import SourceFacts
from schemas.annotations import DESCRIPTIONS, LIMITS, Provenance
from schemas.layout import Subset
from schemas.receipts import BIN_NATS, BINS, Counts

THIS_FOLDER = "THIS_FOLDER"


@dataclass(frozen=True, kw_only=True)
class SubsetInfo:
    """Of a subset. Without counts it is still being written."""

    subset: Subset
    place: str
    """What `load_dataset` is given: THIS_FOLDER, or USER/NAME on the Hub."""
    revision: str = "main"
    """The branch on the Hub."""
    provenance: Provenance
    schema: pa.Schema
    source: SourceFacts
    counts: Counts | None = None
    shards_sha256: str = ""
    size: int = 0
    """Bytes of all shards."""

    @property
    def labels(self) -> str:
        """The subset as commands of this project take it."""
        place = self.place if self.place == THIS_FOLDER else Repository(self.place, self.revision).url
        return f"{place}/{self.subset.in_repository.data.as_posix()}"


WIDTH = 40
LEAST_SHARE = 0.0005  # of all labels, that a line can show: 0.1%


def drawn_histogram(histogram: tuple[int, ...]) -> str:
    """A line for each bin: its lower end in nats, a bar, its share. Those after the last that shows are one line."""
    total, most = sum(histogram), max(histogram, default=0)
    if not total:
        return "no labels"
    shown = max(place for place, count in enumerate(histogram) if count / total >= LEAST_SHARE) + 1
    lines = [(_lower_end(place), count) for place, count in enumerate(histogram[:shown]) if place or count]
    if beyond := sum(histogram[shown:]):
        lines.append(("above", beyond))
    return "\n".join(
        f"{end:>9} {'█' * round(WIDTH * count / most):<{WIDTH}} {count / total:6.1%}".rstrip() for end, count in lines
    )


def median(histogram: tuple[int, ...]) -> str:
    """The median in nats, as near as the bins tell: between the ends of the one that it falls in."""
    half, place = sum(histogram) / 2, 0
    place = next((place for place, count in enumerate(accumulate(histogram)) if count >= half), 0)
    if not place:
        return "below 0" if half else "no"
    if place == BINS - 1:
        return f"above {_lower_end(place)}"
    before = sum(histogram[:place])
    return f"{(place - 1 + (half - before) / histogram[place]) * BIN_NATS:.2f}"


def _lower_end(place: int) -> str:
    return f"{(place - 1) * BIN_NATS:.1f}" if place else "below 0"


MOST_COLUMNS = 100  # to name


def section(facts: SubsetInfo) -> str:
    """What the card says of a subset."""
    name, provenance = facts.subset.name, facts.provenance
    columns = [column for column in DESCRIPTIONS if column in facts.schema.names]
    described = "\n".join(
        f"| `{column}` | {_named(facts.schema.field(column).type)} | {DESCRIPTIONS[column]} |" for column in columns
    )
    passed = _listed([column for column in facts.schema.names if column not in columns])
    shown = {**asdict(provenance), "source": public_names(provenance.source)}
    origin = "\n".join(f"| {key} | {_shown(value)} |" for key, value in shown.items())
    return f"""## {name}

{_figures(facts)}

| column | type | |
|---|---|---|
{described}

Columns of the source: {passed}. `entropy[i]` speaks of `input_ids[i]`: no shift, equal lengths. The tokenizer of
`input_ids` is in `{facts.subset.in_repository.tokenizer.as_posix()}`, if they were not tokenized already.

```python
from datasets import load_dataset
dataset = {load_call(facts.place, name, facts.revision)}  # or streaming=True
```

    python -m jobs.train_language_model --labels {facts.labels} --objective flood --output model

### Limits

{LIMITS[provenance.method]} {_seen(provenance)}

### Where it comes from

{facts.source.sentence}
Model: {in_markdown(provenance.labelled_by)}.

| provenance | |
|---|---|
{origin}"""


def _listed(columns: Sequence[str]) -> str:
    names = ", ".join(map(name_in_markdown, columns[:MOST_COLUMNS])) or "none"
    more = len(columns) - MOST_COLUMNS
    return f"{names} and {more:,} more" if more > 0 else names


def _named(kind: pa.DataType) -> str:
    """A type as it is named wherever it comes from: a list's items have one name in memory and another in Parquet."""
    return f"list of {kind.value_type}" if pa.types.is_list(kind) else str(kind)


def _figures(facts: SubsetInfo) -> str:
    counts = facts.counts
    if counts is None:
        return "It is still being written."
    mean = counts.mean_entropy
    a_byte = f", {mean / math.log(2) * counts.tokens / counts.text_bytes:.3f} bits a byte" if counts.text_bytes else ""
    longest, long = facts.provenance.longest_document, counts.rows_too_long
    too_long = f"\n{long:,} longer than {longest:,} bytes have no tokens." if long else ""
    rows, tokens, labelled = counts.rows, counts.tokens, counts.labelled_tokens
    return f"""{rows:,} documents, {tokens:,} tokens, {labelled:,} of them labelled.{too_long}
A label is {mean:.3f} nats ({mean / math.log(2):.3f} bits) in the mean{a_byte},
{median(counts.histogram)} nats in the median.

```
{drawn_histogram(counts.histogram)}
```"""


def _seen(provenance: Provenance) -> str:
    return {
        "yes": "The checkpoint was trained on these documents: labels of what it memorised are too low.",
        "no": "The checkpoint was not trained on these documents.",
        "unknown": "Whether the checkpoint was trained on these documents is not known: if so, labels are too low.",
    }[provenance.source_seen_by_estimator]


def _shown(value: object) -> str:
    return ", ".join(in_markdown(str(each)) for each in (value if isinstance(value, tuple) else (value,)))
