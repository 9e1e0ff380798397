"""Write the tokens and labels of an annotated dataset as the files of another trainer.

python -m pipeline.export annotated --to megatron --output tokens
python -m pipeline.export annotated --to olmo-core --output tokens --train-to 4.0
python -m pipeline.export annotated --to mds --output samples --block 2048
python -m pipeline.export hf://datasets/USER/NAME --to datatrove --output tokens --train-to-quantile 0.8

Each shard of the dataset becomes two files of the same format: one in OUTPUT/tokens with the token ids, and one in
OUTPUT/entropy with the labels in the order of the ids. With mds and litdata, each shard becomes files of samples
instead, which hold ids and labels. Labels are int16 in units of 1/128 nat, with -32768 for a token without a label.
With --train-from or --train-to, masks select the tokens to train on. OUTPUT/export.json describes the files. The same
command resumes an interrupted export.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import cyclopts
from tqdm import tqdm

from pipeline.cli import run
from pipeline.data.annotated import AnnotatedDataset, find_annotations
from pipeline.data.atomic import is_unfinished, write_text
from pipeline.data.label_units import MOST_UNITS, NO_LABEL
from pipeline.data.tokenizer import beginning_token
from pipeline.export.sample_files import LitdataFiles, MdsFiles, SampleFiles
from pipeline.export.shard_files import ShardFiles
from pipeline.export.token_batches import MOST_BLOCK, TokenBatch, TrainedRange, in_blocks, quantile, token_batches
from pipeline.export.token_files import DatatroveFiles, MegatronFiles, OlmoFiles, TokenFiles
from pipeline.messages import say
from schemas.annotations import ROUNDING_NATS

EXPORT_FILE, DONE = "export.json", "done"
FORMATS: dict[str, type[TokenFiles] | type[SampleFiles]] = {
    "datatrove": DatatroveFiles,
    "olmo-core": OlmoFiles,
    "megatron": MegatronFiles,
    "mds": MdsFiles,
    "litdata": LitdataFiles,
}


@cyclopts.Parameter(name="*")
@dataclass(frozen=True)
class Config:
    """The dataset, the format and the tokens to train on."""

    dataset: str
    """Folder that pipeline.annotate wrote, or hf://datasets/USER/NAME. To choose one of several subsets, give the
    subset's data folder, as in annotated/data/exact."""
    to: Literal["datatrove", "olmo-core", "megatron", "mds", "litdata"] = field(kw_only=True)
    """Format of the files. datatrove: .ds files, which nanotron reads too. olmo-core: raw .npy files. megatron: .bin
    and .idx files. mds: .mds files of samples for MosaicML Streaming. litdata: chunks of samples for LitData."""
    output: Path = field(kw_only=True)
    """Folder to write the files to."""
    separator: int | Literal["none"] | None = field(default=None, kw_only=True)
    """Token id to put after each document, or `none`. By default, the beginning-of-sequence token that the dataset's
    tokenizer declares or, if it declares none, the end-of-sequence token."""
    block: int | None = field(default=None, kw_only=True)
    """With mds and litdata, number of tokens in a sample: documents are joined end to end, and cut into samples. By
    default, each document is a sample."""
    train_from: float | None = field(default=None, kw_only=True)
    """Train only on tokens whose entropy is at least this, in nats. Tokens without a label are always trained on."""
    train_to: float | None = field(default=None, kw_only=True)
    """Train only on tokens whose entropy is at most this, in nats."""
    train_from_quantile: float | None = field(default=None, kw_only=True)
    """Like --train-from, but as a quantile of all labels, from 0 to 1. All labels are read once to compute it."""
    train_to_quantile: float | None = field(default=None, kw_only=True)
    """Like --train-to, but as a quantile of all labels, from 0 to 1. All labels are read once to compute it."""

    def __post_init__(self) -> None:
        if isinstance(self.separator, int) and self.separator < 0:
            raise ValueError(f"`separator` must be 0 or more, or none, not {self.separator}")
        if self.block is not None and not issubclass(FORMATS[self.to], SampleFiles):
            raise ValueError(
                f"`block` is for mds and litdata; the reader of {self.to} cuts tokens itself, so leave it out"
            )
        if self.block is not None and not 1 <= self.block <= MOST_BLOCK:
            raise ValueError(f"`block` must be from 1 to {MOST_BLOCK:,}, not {self.block}")
        for end in ("from", "to"):
            nats, share = getattr(self, f"train_{end}"), getattr(self, f"train_{end}_quantile")
            if nats is not None and not math.isfinite(nats):
                raise ValueError(f"`train_{end}` must be a number of nats, not {nats}")
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"`train_{end}_quantile` must be from 0 to 1, not {share}")
            if share is not None and nats is not None:
                raise ValueError(f"`train_{end}` and `train_{end}_quantile` set the same limit; leave one out")

    @property
    def masked(self) -> bool:
        """True if only some tokens are to be trained on."""
        limits = (self.train_from, self.train_to, self.train_from_quantile, self.train_to_quantile)
        return any(limit is not None for limit in limits)


@dataclass(frozen=True)
class Totals:
    """Numbers of documents and tokens in the files, and of documents and tokens that are left out.

    Separators count as tokens.
    """

    documents: int = 0
    tokens: int = 0
    trained: int = 0
    """Number of tokens to train on."""
    empty: int = 0
    """Number of documents without tokens, which are left out."""
    unfilled: int = 0
    """Number of tokens that are left out because they do not fill a block."""

    @classmethod
    def of(cls, batch: TokenBatch) -> "Totals":
        return cls(batch.documents, len(batch.ids_N), int(batch.trained_N.sum()), batch.empty, batch.unfilled)

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(one + two for one, two in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class Export:
    """Settings of an export: the dataset, the format, the separator and the tokens to train on."""

    dataset: AnnotatedDataset
    format: str
    separator: int | None
    """Id to put after each document, or None."""
    trained: TrainedRange | None
    """Range of labels of the tokens to train on; None to train on all tokens, without masks."""
    block: int | None = None
    """Number of tokens of each sample; None makes a sample of each document."""

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary of the files. All token ids in the files are below this number."""
        return max(self.dataset.vocabulary, 0 if self.separator is None else self.separator + 1)

    def files(self, output: Path, name: str) -> ShardFiles:
        return FORMATS[self.format](output, name, self.vocabulary, masked=self.trained is not None)

    @property
    def described(self) -> dict[str, Any]:
        """Facts, by name, that determine the files or that readers of the files need."""
        made = self.dataset.provenance
        return {
            "format": self.format,
            "dataset": self.dataset.source,
            "rows": list(self.dataset.rows),
            "tokenizer_sha256": made.tokenizer_sha256,
            "checkpoint_sha256": made.checkpoint_sha256,
            "vocabulary": self.vocabulary,
            "separator": self.separator,
            "block": self.block,
            "types": {part: kind.name for part, kind in self.files(Path(), "").kinds.items()},
            "nats_per_unit": ROUNDING_NATS,
            "no_label": NO_LABEL,
            "trained_on": None if self.trained is None else [self.trained.lowest, self.trained.highest],
        }

    def batches(self, start: int, stop: int) -> Iterator[TokenBatch]:
        """Yield rows `start` to `stop` in batches of documents, or of blocks."""
        batches = token_batches(self.dataset, start, stop, self.separator, self.trained or TrainedRange())
        return batches if self.block is None else in_blocks(batches, self.block)

    def write_shard(self, output: Path, name: str, start: int, stop: int) -> Totals:
        """Write rows `start` to `stop` as the files called `name`, unless they were written before."""
        done = output / DONE / f"{name}.json"
        if done.is_file():
            return Totals(**json.loads(done.read_text(encoding="utf-8")))
        totals = Totals()
        with self.files(output, name) as files:
            for batch in self.batches(start, stop):
                files.write(batch)
                totals += Totals.of(batch)
            files.finish()
        write_text(done, json.dumps(asdict(totals)))
        return totals


def export(config: Config) -> None:
    """Write the tokens and labels of an annotated dataset as the files of another trainer."""
    dataset = find_annotations(config.dataset)
    trained = trained_range(config, dataset) if config.masked else None
    chosen = Export(dataset, config.to, separator_of(config, dataset), trained, config.block)
    begin(config.output, chosen.described)
    names, totals, start = names_of(dataset), Totals(), 0
    for name, rows in tqdm([*zip(names, dataset.rows, strict=True)], "shards", disable=None):
        totals += chosen.write_shard(config.output, name, start, start + rows)
        start += rows
    chosen.files(config.output, "").write_index(names)
    report(totals, config)


def report(totals: Totals, config: Config) -> None:
    """Print what was written and left out."""
    say(f"documents      {totals.documents:,}", f"tokens         {totals.tokens:,}")
    if totals.empty:
        say(f"left out       {totals.empty:,} documents without tokens")
    if totals.unfilled:
        say(f"left out       {totals.unfilled:,} tokens at the ends of shards, which do not fill a block")
    if config.masked:
        say(f"trained on     {totals.trained:,} tokens, {totals.trained / max(1, totals.tokens):.1%}")
    say(f"written        {config.output}, described in {config.output / EXPORT_FILE}")


def separator_of(config: Config, dataset: AnnotatedDataset) -> int | None:
    """Return the id to put after each document; None if the setting `separator` is `none`.

    By default, the id is that of the tokenizer's beginning-of-sequence token. If the tokenizer declares no such token,
    its end-of-sequence token is used.

    Raises:
        ValueError: if `separator` is not set, and the dataset has no tokenizer that declares one of these tokens.
    """
    if config.separator == "none":
        return None
    if config.separator is not None:
        return config.separator
    if dataset.tokenizer is None:
        raise ValueError(f"{dataset.source} has no tokenizer to declare a `separator`; give its id, or none")
    return beginning_token(dataset.tokenizer)


def trained_range(config: Config, dataset: AnnotatedDataset) -> TrainedRange:
    """Return the range of labels of the tokens to train on.

    Raises:
        ValueError: if the range is empty.
    """
    lowest, highest = NO_LABEL, MOST_UNITS
    if config.train_from is not None:
        lowest = max(lowest, math.ceil(config.train_from / ROUNDING_NATS))
    elif config.train_from_quantile is not None:
        lowest = quantile(dataset, config.train_from_quantile)
    if config.train_to is not None:
        highest = min(highest, math.floor(config.train_to / ROUNDING_NATS))
    elif config.train_to_quantile is not None:
        highest = quantile(dataset, config.train_to_quantile)
    if lowest > highest:
        nats = f"{lowest * ROUNDING_NATS:g} and at most {highest * ROUNDING_NATS:g} nats"
        raise ValueError(f"no label can be at least {nats}; give other limits of the tokens to train on")
    return TrainedRange(lowest, highest)


def begin(output: Path, description: dict[str, Any]) -> None:
    """Write the description of a new export to its folder, or prepare the folder of an existing export to resume it.

    An existing export must have the same description. Its unfinished files are deleted.

    Raises:
        ValueError: if the folder holds other files, or another export.
    """
    file = output / EXPORT_FILE
    if not file.is_file():
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise ValueError(f"`output` {output} holds other files; choose another folder")
        write_text(file, json.dumps(description, indent=1) + "\n")
        return
    existing = json.loads(file.read_text(encoding="utf-8"))
    if differing := [name for name, value in description.items() if existing.get(name) != value]:
        raise ValueError(f"`output` {output} holds another export, with another {differing[0]}; choose another folder")
    for unfinished in filter(is_unfinished, output.rglob("*")):
        unfinished.unlink()


def names_of(dataset: AnnotatedDataset) -> list[str]:
    """Return a name for the files of each shard: the shard's name without its extension."""
    return [shard.url.rpartition("/")[2].removesuffix(".parquet") for shard in dataset.shards]


if __name__ == "__main__":
    run(export, "pipeline.export")
