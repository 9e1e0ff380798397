"""Join the labels of a sidecar to their documents, and write an annotated dataset.

python -m pipeline.annotate --input fineweb/*.parquet --sidecar --output labels
python -m pipeline.join --input fineweb/*.parquet --labels labels --output joined

A document's labels are found by its `id` and its text. If the documents or the labels have no `id`, they are found by
the text alone. The documents may be in other files or another order than when they were labelled, and some may be
missing or repeated. The command ends at a document that has no labels, or whose text differs from the labelled text.
With --unmatched keep, the command instead keeps these documents without labels and counts them. The same command
resumes an interrupted run.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import cyclopts
from tqdm import tqdm

from pipeline.cli import run
from pipeline.data.annotated import AnnotatedDataset, find_shards
from pipeline.data.files import pinned
from pipeline.data.inputs import find_documents
from pipeline.data.label_index import LabelIndex, StoredLabels
from pipeline.data.ledger import Ledger
from pipeline.data.naming import named_inputs, recorded
from pipeline.data.source_documents import column_of
from pipeline.engine.output import existing_plan, locked, open_run
from pipeline.engine.plan import Run, Source, Unit, default_rows_per_unit, inspect, plan_units
from pipeline.join.joiner import Joiner, Unmatched
from pipeline.messages import say
from pipeline.models.checkpoint import copy_tokenizer
from pipeline.publish.card import write_card
from pipeline.publish.origin import origin_of
from pipeline.publish.section import THIS_FOLDER, SubsetInfo
from pipeline.publish.subset import with_totals
from schemas.annotations import INPUT_IDS, Provenance, annotated_schema
from schemas.layout import Subset
from schemas.receipts import Counts, Plan, total

GIB = 2**30


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of the join: documents, labels and output."""

    input: tuple[str, ...]
    """Documents: paths, folders, globs or URLs of Parquet, JSON lines or text files, as for pipeline.annotate."""
    labels: str
    """Sidecar: a folder that pipeline.annotate --sidecar wrote, or hf://datasets/USER/NAME. To choose one of several
    subsets, give the subset's data folder, as in labels/data/causal."""
    output: Path
    """Folder for the annotated dataset."""
    subset: str | None = None
    """Name of the subset to write. Default: the name of the labels' subset."""
    split: str | None = None
    """Split to read from the folders and datasets in the input, or `all` for all splits. Default: the only split, or
    `train` if there are several."""
    config_name: str | None = None
    """Configuration to read from the folders and datasets in the input. Default: the only configuration, or the one
    that the dataset declares as its default."""
    text_column: str | None = None
    """Column of the documents. Default: the column that was labelled."""
    without_tokens: bool = False
    """Leave out `input_ids`. The join is then several times faster, because it need not tokenize the texts again.
    `load_dataset` reads the result, but the commands of this package do not."""
    unmatched: Unmatched = "refuse"
    """Treatment of documents that have no labels, or whose text differs from the labelled text. refuse: end at the
    first such document. keep: write these documents without labels, and count them."""
    rows_per_unit: int | None = None
    """Maximum number of rows in a shard. Default: as for pipeline.annotate."""
    memory: float = 4.0
    """GiB of labels to hold in memory. If the documents are in another order than their labels, and the labels need
    more memory than this, the labels are read several times."""

    def __post_init__(self) -> None:
        if self.memory <= 0:
            raise ValueError(f"`memory` must be above 0 GiB, not {self.memory:g}")
        if self.rows_per_unit is not None and self.rows_per_unit < 1:
            raise ValueError(f"`rows_per_unit` must be at least 1, not {self.rows_per_unit}")


def join(config: Config) -> None:
    """Join the labels of a sidecar to their documents, and write an annotated dataset."""
    sidecar = find_shards(config.labels)
    if not sidecar.provenance.sidecar:
        raise ValueError(f"{config.labels} is not a sidecar: it has its documents already")
    inputs = pinned(config.input)
    listing = find_documents(inputs, config.split, config.config_name, config.output)
    listing.tell()
    column = column_of(replace(sidecar.provenance, text_column=config.text_column or sidecar.provenance.text_column))
    source = inspect(listing.files, column, listing.choices)
    job = run_for(config, sidecar, source, named_inputs(inputs, source.files))
    units = plan_units(source, rows_per_unit=job.provenance.rows_per_unit, limit=None)
    job = replace(job, units=len(units))
    plan = Plan(job.provenance, recorded(config.input), source=recorded(inputs), schema=job.schema)
    with locked(job.subset.root):
        require_same_names(job)
        open_run(job.subset, plan, units)
        if job.tokenizer is not None:
            copy_tokenizer(job.tokenizer, job.subset.tokenizer)
        labels = StoredLabels(sidecar, int(config.memory * GIB))
        index = LabelIndex.of(sidecar, source.schema)
        say(f"keys           {'id and text' if index.has_ids else 'text alone: one of the sides has no `id`'}")
        write(job, units, Joiner(job, index, labels, config.unmatched))
        receipts = Ledger(job.subset).receipts()
        info = SubsetInfo(
            subset=job.subset, path=THIS_FOLDER, provenance=job.provenance, schema=job.schema, origin=origin_of(inputs)
        )
        write_card(with_totals(info, receipts))
    say_totals(total(receipts).counts, labels, job.subset.root)


def run_for(config: Config, sidecar: AnnotatedDataset, source: Source, named: tuple[str, ...]) -> Run:
    """Return the run that writes the joined dataset. Its labels are those of the sidecar's run.

    Raises:
        ValueError: if the source has no rows, if it has a column with the name of a label column, or if the sidecar
            lacks the tokenizer of its labels.
    """
    if not source.rows:
        raise ValueError("the input has no rows; name files that have some with `input`")
    if sidecar.provenance.tokenizer_sha256 is not None and sidecar.tokenizer is None:
        raise ValueError(f"{config.labels} lacks the tokenizer of its labels; annotate its documents again")
    provenance = joined_provenance(config, sidecar, source, named)
    schema = annotated_schema(source.schema, provenance)
    kept = schema.remove(schema.get_field_index(INPUT_IDS)) if config.without_tokens else schema
    name = sidecar.place.rpartition("/")[2]
    return Run(
        subset=Subset(config.subset or name, config.output.resolve()),
        checkpoints=(),
        tokenizer=sidecar.tokenizer if provenance.tokenizer_sha256 else None,
        estimator_tokenizers=(),
        provenance=provenance,
        source_schema=source.schema,
        schema=kept,
        units=0,
    )


def joined_provenance(config: Config, sidecar: AnnotatedDataset, source: Source, named: tuple[str, ...]) -> Provenance:
    """Return the provenance of the sidecar's labels, with the source that they are joined to."""
    return replace(
        sidecar.provenance,
        sidecar=False,
        keep_text=True,
        columns=None,
        text_column=config.text_column or sidecar.provenance.text_column,
        source=named,
        source_files=len(source.files),
        source_sha256=source.sha256,
        source_rows=source.rows,
        choices=source.choices,
        rows_per_unit=config.rows_per_unit or default_rows_per_unit(source.rows),
        joined_sha256=sidecar.sha256,
    )


def require_same_names(job: Run) -> None:
    """Raise if the output holds a join that was begun with other columns.

    Raises:
        ValueError: if the columns differ, or as `existing_plan` does.
    """
    plan = existing_plan(job.subset)
    if plan is not None and plan.schema is not None and plan.schema.names != job.schema.names:
        raise ValueError(
            f"`output` {job.subset.root} was begun with other columns; give `without_tokens` as before, or choose "
            "another `output`"
        )


def write(job: Run, units: list[Unit], joiner: Joiner) -> None:
    """Write the shards that are missing."""
    finished = Ledger(job.subset).finished()
    done = sum(unit.stop - unit.start for unit in units if unit.index in finished)
    with tqdm(total=job.provenance.source_rows, initial=done, unit=" documents", disable=None) as progress:
        for unit in units:
            if unit.index not in finished:
                Ledger(job.subset).record(joiner.write(unit))
                progress.update(unit.stop - unit.start)


def say_totals(counts: Counts, labels: StoredLabels, output: Path) -> None:
    say(f"documents      {counts.rows:,}", f"tokens         {counts.tokens:,}, {counts.labelled_tokens:,} with a label")
    if counts.rows_changed:
        say(f"changed        {counts.rows_changed:,} with another text than the labelled one, and no labels")
    if counts.rows_unmatched:
        say(f"unmatched      {counts.rows_unmatched:,} that were not labelled, and have no labels")
    if labels.reads > len(labels.groups):
        times = labels.reads / len(labels.groups)
        say(f"labels read    {times:.1f} times, for they are in another order; more `memory` reads them once")
    say(f"written        {output}")


if __name__ == "__main__":
    run(join, "pipeline.join")
