"""Summary printed at the end of an annotation: the run in figures, and a few tokens with their entropies."""

import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.data.annotated import Row, as_rows, read_labelled
from pipeline.data.files import find_files
from pipeline.data.hub import Repository
from pipeline.data.ledger import Ledger
from pipeline.data.naming import load_call
from pipeline.data.safe_tokenizers import tokenizer_errors
from pipeline.data.shards import inspect_shard
from pipeline.data.tokenizer import TOKENIZER_FILE, load_tokenizer
from pipeline.engine.throughput import Throughput
from pipeline.messages import say
from schemas.annotations import ENTROPY, ENTROPY_COLUMNS, INPUT_IDS, MOST_VOCABULARY, Provenance
from schemas.layout import Subset
from schemas.receipts import Counts, Quarantined, Receipt

EXAMPLE_TOKENS, MOST_LOOKS = 16, 1000  # MOST_LOOKS documents are searched for the example


def print_summary(dataset: str, provenance: Provenance, counts: Counts, report: Throughput) -> None:
    """Print the run's figures, one per line.

    These are documents, tokens, tokens/s, mean entropy, bits per byte, model, dataset, stages and device.
    """
    tokens, labelled, mean = counts.tokens, counts.labelled_tokens, counts.mean_entropy
    bits = f"{mean / math.log(2) * tokens / counts.text_bytes:.3f}" if counts.text_bytes else "unknown without text"
    empty, long = counts.rows_without_text - counts.rows_too_long, counts.rows_too_long
    without = f", {empty:,} without text" if empty else ""
    without += f", {long:,} longer than {provenance.longest_document:,} bytes and not labelled" if long else ""
    replaced = f", {counts.rows_with_replacements:,} with U+FFFD in it" if counts.rows_with_replacements else ""
    unknown = counts.rows_with_unknown_text
    without_token = f", {unknown:,} with characters that have no token" if unknown else ""
    pooled = counts.rows_without_fit
    without_fit = f", {pooled:,} of a domain without a fit of its own, calibrated by the pooled fit" if pooled else ""
    say(f"documents      {counts.rows:,}{without}{replaced}{without_token}{without_fit}")
    say(f"tokens         {tokens:,}" + (f", {labelled:,} of them labelled" if labelled < tokens else ""))
    idle = "none: no unit succeeded" if report.quarantined else "none: the dataset was complete"
    say(f"tokens/s       {_speed(report) if report.units else idle}")
    say(f"mean entropy   {mean:.3f} nats per token")
    say(f"bits per byte  {bits}")
    say(f"model          {provenance.labelled_by}")
    say(f"dataset        {dataset}")
    if report.units:
        speeds = ", ".join(f"{stage} {speed:,.0f}" for stage, speed in report.stage_speeds().items())
        wait, fill = report.stages.device_wait, report.stages.batch_fill
        say(f"stages         tokens/s per worker: {speeds}; {report.stages.bottleneck} is the slowest")
        say(f"device         waits {wait:.1%} of its time; batches are {fill:.1%} full")


def _speed(report: Throughput) -> str:
    """Return the number of tokens read per second, as text.

    If not all tokens were labelled, the text also has the number of tokens labelled per second.
    """
    tokens, labelled = report.counts.tokens, report.counts.labelled_tokens
    if labelled == tokens:
        return f"{report.tokens_per_second:,.0f}"
    return f"{report.tokens_per_second:,.0f} read, {report.tokens_per_second * labelled / tokens:,.0f} labelled"


def print_quarantine(units: Sequence[Quarantined]) -> None:
    """Print the quarantined units, each with its reason."""
    if units:
        say("", f"{len(units)} units are quarantined and have no shard; the same command retries them:")
    for unit in units:
        say(f"  {unit}")


def print_examples(subset: Subset, repository: Repository | None, *, complete: bool, sidecar: bool = False) -> None:
    """Print the call that loads the dataset, and some tokens of a document with their labels.

    The printed tokens include the first labelled token of the document. A sidecar is a dataset of labels without
    tokens. For a sidecar, print the command that joins the labels to their documents, instead of tokens.
    """
    labelled = "the labels of " if sidecar else ""
    has = f"has {labelled}every document" if complete else f"has {labelled}the documents of the finished shards"
    folder = f"{repository.url}/{subset.in_repository.data}" if repository else str(subset.data)
    root = str(subset.root)
    call = load_call(repository.name, subset.name, repository.revision) if repository else load_call(root, subset.name)
    receipts = Ledger(subset).published() if repository else Ledger(subset).receipts()
    if sidecar:
        command = f"python -m pipeline.join --input DOCUMENTS --labels {shlex.quote(root)} --output FOLDER"
        say("", f"{call} {has}, without their tokens; {command} joins them")
        return
    row = next(filter(_has_example, islice(_rows(receipts, folder), MOST_LOOKS)), None)
    if row is None:
        say("", f"{call} {has}")
        return
    first_label = int(np.argmin(np.isnan(row[ENTROPY])))
    start = min(first_label, len(row[INPUT_IDS]) - EXAMPLE_TOKENS)
    columns = [name for name in ENTROPY_COLUMNS if name in row]
    say("", f"{call} {has}; one {f'has, from token {start:,} on' if start else 'begins'}")
    say(f"{'token':<17}" + "".join(f"{name:>18}" for name in columns))
    ids = row[INPUT_IDS][start : start + EXAMPLE_TOKENS].tolist()
    for number, token in enumerate(_shown(ids, subset.tokenizer), start):
        values = (row[name][number] for name in columns)
        say(f"{token:<17}" + "".join(f"{'':>18}" if np.isnan(value) else f"{value:>18.2f}" for value in values))


def _has_example(row: Row) -> bool:
    return len(row[INPUT_IDS]) >= EXAMPLE_TOKENS and not np.isnan(row[ENTROPY]).all()


def _rows(receipts: Iterable[Receipt], folder: str) -> Iterator[Row]:
    """Yield the rows of all shards that have a receipt, with only token ids and labels.

    The rows are read without `datasets`, which would need ten seconds to inspect ten thousand shards first.
    """
    for receipt in receipts:
        (file,) = find_files([f"{folder}/{receipt.shard}"])
        info = inspect_shard(file)
        read = pa.schema([field for field in info.schema if field.name in (INPUT_IDS, *ENTROPY_COLUMNS)])
        for batch in read_labelled(file, 0, info.rows, read, MOST_VOCABULARY):
            yield from as_rows(batch)


def _shown(ids: list[int], tokenizer_folder: Path) -> list[str]:
    if not (tokenizer_folder / TOKENIZER_FILE).is_file():
        return [str(token) for token in ids]
    tokenizer = load_tokenizer(tokenizer_folder)
    with tokenizer_errors("the tokenizer cannot decode its own tokens; use another copy of it"):
        return [repr(tokenizer.decode([token], skip_special_tokens=False)) for token in ids]
