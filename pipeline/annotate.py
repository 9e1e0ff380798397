"""The main job: documents in, an annotated dataset out.

    python -m pipeline.annotate                                          # built-in sample documents
    python -m pipeline.annotate --input fineweb/*.parquet --output DIR   # your own
    ray job submit --working-dir . -- python -m pipeline.annotate ...    # on a cluster

Input and settings are checked before anything is written. The same command again goes on where a run stopped.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cyclopts
from tqdm import tqdm

from pipeline.command_line import run
from pipeline.data.dataset_card import dataset_card
from pipeline.data.documents import find_files
from pipeline.data.sample import SAMPLE_NAME, write_sample
from pipeline.data.shards import write_text
from pipeline.data.tokenizer import TOKENIZED_ALREADY, TokenSource, load_tokenizer, token_source, tokenizer_sha256
from pipeline.engine import driver
from pipeline.engine.annotation import Run
from pipeline.engine.ledger import Receipt, open_run, shards_sha256, total
from pipeline.engine.plan import Source, Unit, default_rows_per_unit, inspect, plan_units
from pipeline.models.checkpoint import (
    SHIPPED,
    Kind,
    checkpoint_members,
    checkpoint_sha256,
    context_and_vocabulary,
    copy_tokenizer,
    declared_start,
    find_checkpoint,
    require_kind,
)
from pipeline.summary import print_examples, print_summary
from schemas.annotations import CARD_FILE, TOKENIZER_FOLDER, Dtype, Method, Provenance, annotated_schema

KIND_OF_METHOD: dict[Method, Kind] = {"second-order": "second-order", "exact": "estimator", "causal": "causal"}


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """What to label, with what, and where to write it."""

    input: tuple[str, ...] = ()
    """Parquet files, folders or globs with a column `text`; built-in sample documents by default."""
    output: Path | None = None
    """Folder for the dataset; `annotated`, or `annotated-sample` for the built-in documents, by default."""
    method: Method = "second-order"
    """second-order: one pass, needs a second-order checkpoint. exact: differences of code lengths, a few hundred
    times dearer, needs an estimator. causal: the loss of a causal language model."""
    estimator: str | None = None
    """Checkpoint for the method: a folder, one with the folds of a cross-fitting, or a model `user/name` of the Hub;
    the one that comes with the project by default."""
    tokenizer: str | None = None
    """Tokenizer folder, or `none` for an input column `input_ids` in place of `text`; the checkpoint's by default. With
    another than the checkpoint's, labels are moved from its tokens to these through the bytes that both cover."""
    vocabulary: int | None = None
    """Number of token ids, with --tokenizer none; the checkpoint's by default."""
    window: int | None = None
    """Tokens labelled in one pass; the checkpoint's context by default."""
    overlap: int | None = None
    """Tokens that a window shares with the next in longer documents; half the window by default."""
    share: float = 1.0
    """Share of the tokens to label, in random runs of eight; the rest is null; exact labels cost in proportion."""
    start_token: str | None = None
    """For --method causal, the text of the token that stood between documents when the model was trained; what its
    tokenizer declares as beginning, or else end, of sequence by default."""
    dtype: Dtype = "float32"
    """What the checkpoint computes in; bfloat16 is for GPUs."""
    batch_invariant: bool = False
    """Label every window by itself, so that a document's labels are the same bits whatever is labelled beside it."""
    workers: int | None = None
    """Worker processes; one a GPU, or one a CPU where there is none, by default."""
    limit: int | None = None
    """Rows to label at the most, from the first on."""
    rows_per_unit: int | None = None
    """Rows in a shard; a sixteenth of the rows, from 8 to 4,096, by default."""
    keep_text: bool = False
    """Keep the column `text`."""
    source_seen_by_estimator: Literal["yes", "no", "unknown"] = "unknown"
    """Whether the checkpoint was trained on these documents; written into the provenance."""
    address: str | None = None
    """Ray cluster to join; inside `ray job submit` that job's cluster, else a local one, by default."""

    def __post_init__(self) -> None:
        for name in ("limit", "workers", "rows_per_unit", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if not 0 < self.share <= 1:
            raise ValueError(f"--share must be above 0 and at most 1, not {self.share}")


DEFAULTS = Config()


def annotate(config: Config = DEFAULTS) -> None:
    """Label every token of every document with its entropy, in nats, and write an annotated dataset."""
    with tempfile.TemporaryDirectory() as scratch:
        sample = Path(scratch) / "sample.parquet"
        if not config.input:
            write_sample(sample)
        source = inspect(find_files(config.input or [str(sample)]), tokenized=config.tokenizer == TOKENIZED_ALREADY)
        job, units = prepare(config, source)
        receipts = open_run(job.output, job.provenance, units)
        if job.tokenizer is not None:
            copy_tokenizer(job.tokenizer, job.output / TOKENIZER_FOLDER)
        started = time.monotonic()
        fresh = label([unit for unit in units if unit.index not in receipts], job, config)
    seconds = time.monotonic() - started
    everything = [*receipts.values(), *fresh]
    counts = total(everything)
    card = dataset_card(
        job.provenance,
        documents=counts.rows,
        tokens=counts.tokens,
        mean_entropy=counts.mean_entropy,
        shards_sha256=shards_sha256(everything),
    )
    write_text(job.output / CARD_FILE, card)
    print_summary(job.output, counts, new_tokens=total(fresh).tokens, seconds=seconds)
    print_examples(job.output)


def prepare(config: Config, source: Source) -> tuple[Run, list[Unit]]:
    """Checks every setting and returns what workers need; writes nothing.

    Raises:
        ValueError: if the settings do not fit together.
    """
    checkpoint = checkpoint_folder(config)
    members = checkpoint_members(checkpoint)
    for member in members:
        require_kind(member, KIND_OF_METHOD[config.method])
    context, model_vocabulary = min(map(context_and_vocabulary, members))
    tokens = tokens_for(members[0], model_vocabulary, config)
    other = other_tokenizer(members[0], tokens)
    window = config.window if config.window is not None else context
    overlap = config.overlap if config.overlap is not None else window // 2
    if not 0 <= overlap < window <= context:
        raise ValueError(f"needs 0 <= overlap < window <= {context}, not overlap {overlap} and window {window}")
    rows = min(sum(source.rows), config.limit or sum(source.rows))
    if rows == 0:
        raise ValueError("the input has no rows")
    provenance = Provenance(
        method=config.method,
        checkpoint_sha256=checkpoint_sha256(*members),
        tokenizer_sha256=tokenizer_sha256(tokens.folder) if tokens.folder else None,
        vocabulary=tokens.vocabulary,
        window=window,
        overlap=overlap,
        share=config.share,
        keep_text=config.keep_text,
        source=config.input or (SAMPLE_NAME,),
        source_sha256=source.sha256,
        source_rows=rows,
        rows_per_unit=config.rows_per_unit or default_rows_per_unit(rows),
        source_seen_by_estimator=config.source_seen_by_estimator if len(members) == 1 else "no",
        folds=len(members),
        start_token=start_token_id(members[0], config) if config.method == "causal" else None,
        dtype=config.dtype,
        batch_invariant=config.batch_invariant,
        estimator_tokenizer_sha256=tokenizer_sha256(other) if other else None,
    )
    annotated_schema(source.schema, provenance)
    units = plan_units(source, rows_per_unit=provenance.rows_per_unit, limit=config.limit)
    folder = tokens.folder.resolve() if tokens.folder else None
    output = config.output or Path("annotated" if config.input else "annotated-sample")
    checkpoints = tuple(member.resolve() for member in members)
    return Run(output.resolve(), checkpoints, folder, other, provenance, len(units)), units


def tokens_for(checkpoint: Path, model_vocabulary: int, config: Config) -> TokenSource:
    """The tokens that were asked for, or the checkpoint's own; ids that it reads must be ids that it knows."""
    named = config.tokenizer or str(checkpoint)
    implied = model_vocabulary if named == TOKENIZED_ALREADY else None
    tokens = token_source(named, implied if config.vocabulary is None else config.vocabulary)
    other = other_tokenizer(checkpoint, tokens)
    read = tokens.vocabulary if other is None else token_source(str(other), None).vocabulary
    if read > model_vocabulary:
        raise ValueError(f"{read} token ids do not fit the {model_vocabulary} that {checkpoint} knows")
    return tokens


def other_tokenizer(checkpoint: Path, tokens: TokenSource) -> Path | None:
    """The checkpoint's folder where its tokenizer is not the one asked for, so that its labels must be moved."""
    own = tokenizer_sha256(checkpoint)
    same = tokens.folder is None or own in (None, tokenizer_sha256(tokens.folder))
    return None if same else checkpoint.resolve()


def start_token_id(checkpoint: Path, config: Config) -> int:
    """The token that was asked for, or what the checkpoint declares."""
    if config.start_token is None:
        return declared_start(checkpoint)
    found = load_tokenizer(checkpoint).token_to_id(config.start_token)
    if found is None:
        raise ValueError(f"--start-token {config.start_token} is no token of {checkpoint}")
    return found


def checkpoint_folder(config: Config) -> Path:
    """The checkpoint that was named, or the shipped one for the method."""
    if config.estimator is not None:
        return find_checkpoint(config.estimator)
    if config.method == "causal":
        raise ValueError("--method causal needs --estimator, a causal language model, its folder or Hub name")
    return SHIPPED / KIND_OF_METHOD[config.method]


def label(units: Sequence[Unit], job: Run, config: Config) -> list[Receipt]:
    """Labels the units on Ray, with a progress bar; does not start Ray where there are none."""
    if not units:
        return []
    receipts: list[Receipt] = []
    tokens = 0
    with driver.cluster(config.address or os.environ.get("RAY_ADDRESS") or "local"):
        workers, started = config.workers or driver.default_workers(), time.monotonic()
        with tqdm(
            total=sum(unit.stop - unit.start for unit in units), desc="annotating", unit=" documents"
        ) as progress:
            for receipt in driver.annotate_units(job, units, workers):
                receipts.append(receipt)
                tokens += receipt.counts.tokens
                progress.set_postfix_str(f"{tokens / (time.monotonic() - started):,.0f} tokens/s", refresh=False)
                progress.update(receipt.counts.rows)
    return receipts


if __name__ == "__main__":
    run(annotate, "pipeline.annotate")
