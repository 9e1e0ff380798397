"""Repair of a dataset: damaged files are moved away, so that the command that made the dataset makes them again.

Nothing is deleted.
"""

import shlex
import shutil
from collections.abc import Collection, Iterator, Mapping
from itertools import count
from pathlib import Path

from pipeline.data.atomic import write_text
from pipeline.data.ledger import Ledger
from pipeline.data.tokenizer import TOKENIZED_ALREADY, load_tokenizer
from pipeline.verify.consistency import Records
from pipeline.verify.stored import Fault, Stored
from schemas.annotations import INPUT_IDS, SHIPPED_MODEL, Provenance
from schemas.receipts import RECEIPTS, Plan, Receipt
from schemas.rows import TEXT_COLUMN

DAMAGED = "damaged"
"""Folder in the ledger for damaged files. Each repair creates a numbered folder inside."""


def set_aside(stored: Stored, faults: Collection[Fault]) -> list[Path]:
    """Move files with faults away, together with their shards and receipts, and return the new paths.

    The caller must make sure that no run is writing to the folder.

    Raises:
        ValueError: if the plan is damaged or missing, because no other file can restore it, or if a folder is a link.
    """
    subset = stored.subset
    for folder in (subset.data, subset.ledger, subset.ledger / RECEIPTS, subset.ledger / DAMAGED):
        if folder.exists() and folder.resolve() != subset.root.resolve() / folder.relative_to(subset.root):
            raise ValueError(f"{folder} is a link; replace it with a copy of its target, and repair that")
    plan = Ledger(subset).plan_file
    if any(subset.root / fault.file == plan for fault in faults) or not plan.is_file():
        how = "damaged" if plan.is_file() else "missing"
        raise ValueError(f"{plan} is {how}; restore it, or annotate into another folder")
    aside = next(folder for number in count(1) if not (folder := subset.ledger / DAMAGED / str(number)).exists())
    shards = {fault.shard for fault in faults if fault.shard}
    named = {subset.root / fault.file for fault in faults}
    files = named | {subset.data / shard for shard in shards} | set(_receipts_of(stored, shards))
    return [
        _moved(file, aside / file.relative_to(subset.root), shards)
        for file in sorted(files)
        if file.is_symlink() or file.is_file()
    ]


def command_again(stored: Stored, records: Records, estimator: tuple[str, ...] = ()) -> str:
    """Return the command that makes the damaged files again, ending in `...` if not all of its flags are known.

    `estimator` has the checkpoints that the user named; the plan records only checkpoints on the Hub.
    """
    if records.plan is None:
        return "python -m pipeline.annotate ..."
    if records.plan.provenance.joined_sha256 is not None:
        return _command("pipeline.join", _join_flags(records.plan, stored, records), "--labels ...")
    flags = _flags(records.plan, stored, estimator)
    return _command("pipeline.annotate", flags, "..." if _is_incomplete(flags, records.plan) else "")


def _command(module: str, flags: Mapping[str, object], end: str) -> str:
    given = [f"--{name.replace('_', '-')} {_words(value)}".rstrip() for name, value in flags.items() if value]
    return " ".join([f"python -m {module}", *given, *filter(None, [end])])


def _join_flags(plan: Plan, stored: Stored, records: Records) -> dict[str, object]:
    """Return the settings of a join as flags, without --labels. The plan has only the digest of the labels."""
    counts = [receipt.counts for receipts in records.receipts.values() for receipt in receipts]
    kept = any(each.rows_changed or each.rows_unmatched for each in counts)
    return {
        **_place_flags(plan, stored),
        "text_column": _text_column(plan.provenance),
        "without_tokens": plan.schema is not None and INPUT_IDS not in plan.schema.names,
        "unmatched": "keep" if kept else None,
    }


def _flags(plan: Plan, stored: Stored, estimator: tuple[str, ...]) -> dict[str, object]:
    """Return a plan's settings as flags, except settings that a resumed run reads from the plan."""
    run = plan.provenance
    tokenizer = stored.subset.tokenizer if run.is_moved else None
    members = tuple(member.model for member in run.members)
    on_hub = members if members and all("@" in model for model in members) else plan.checkpoint
    return {
        **_place_flags(plan, stored),
        "method": run.method,
        "estimator": on_hub or estimator,
        "start_token": _start_token(plan, stored),
        "label_columns": run.label_columns,
        "top_k": run.top_k,
        "sampled_ids": run.sampled_ids,
        "tokenizer": TOKENIZED_ALREADY if run.tokenizer_sha256 is None else tokenizer,
        "vocabulary": run.vocabulary if run.tokenizer_sha256 is None else None,
        "text_column": _text_column(run),
        "columns": run.columns,
        "keep_text": run.keep_text,
        "sidecar": run.sidecar,
        "window": run.window,
        "overlap": str(run.overlap),
        "share": None if run.share == 1 else run.share,
        "batch_invariant": run.batch_invariant,
        "source_seen_by_estimator": run.source_seen_by_estimator if run.folds == 1 else None,
        "limit": run.source_rows,  # without it, a source with more rows would extend the dataset
    }


def _place_flags(plan: Plan, stored: Stored) -> dict[str, object]:
    """Return the flags that say what is read, and where the dataset is."""
    return {"input": plan.inputs, "output": stored.place, "subset": stored.subset.name}


def _text_column(run: Provenance) -> str | None:
    """Return the value of --text-column, or None if it is a default."""
    return None if run.text_column in (TEXT_COLUMN, INPUT_IDS) else run.text_column


def _is_incomplete(flags: Mapping[str, object], plan: Plan) -> bool:
    """Return True if the value of a setting of the run is not known, so that `flags` lack this setting.

    The setting may be the folder of a checkpoint, a start token, or the chosen configuration or split of an input.
    """
    run = plan.provenance
    lacks_folder = not flags["estimator"] and run.model != SHIPPED_MODEL
    starts = (run.start_token, *(member.start_token for member in run.members))
    lacks_start = flags["start_token"] is None and any(start is not None for start in starts)
    return lacks_folder or lacks_start or bool(run.choices)


def _start_token(plan: Plan, stored: Stored) -> str | None:
    """Return the text of a causal model's start token, or None if its tokenizer is not that of the dataset."""
    run = plan.provenance
    if run.start_token is None or run.is_moved or run.tokenizer_sha256 is None:
        return None
    text: str | None = load_tokenizer(stored.subset.tokenizer).id_to_token(run.start_token)
    return text


def _words(value: object) -> str:
    """Return a flag's value, quoted for a shell. For a boolean flag, return an empty string."""
    values = value if isinstance(value, tuple) else (() if value is True else (value,))
    return shlex.join(map(str, values))


def _receipts_of(stored: Stored, shards: Collection[str]) -> Iterator[Path]:
    """Yield the ledger's files that contain a receipt of one of the shards."""
    for file in Ledger(stored.subset).receipt_files():
        if not file.is_symlink() and any(_shard(line) in shards for line in _lines(file)):
            yield file


def _moved(file: Path, target: Path, shards: Collection[str]) -> Path:
    """Move a file to `target`, and return `target`.

    If the file also has receipts of shards that are not among `shards`, it is copied to `target` instead. The receipts
    of `shards` are then removed from the original file.
    """
    kept = [line for line in _lines(file) if _shard(line) not in shards] if file.suffix == ".jsonl" else []
    target.parent.mkdir(parents=True, exist_ok=True)
    if kept:
        shutil.copy2(file, target)
        write_text(file, "".join(f"{line}\n" for line in kept))
    else:
        file.rename(target)
    return target


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines()


def _shard(line: str) -> str | None:
    try:
        return Receipt.from_json(line).shard
    except ValueError:
        return None
