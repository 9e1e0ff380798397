"""Consistency of a subset: plan, receipts and notes on quarantined units must agree with each other and the files."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard

from pipeline.data.ledger import Ledger
from pipeline.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, tokenizer_sha256
from pipeline.engine.output import GROWING_FILE
from pipeline.verify.stored import LINK, Fault, Stored
from schemas.annotations import Provenance
from schemas.decoding import text_of
from schemas.layout import CARD_FILE, shard_name, shards_in_all
from schemas.receipts import OWN, QUARANTINE, RECEIPTS, Plan, Quarantined, Receipt, total

AGAIN = "run the same annotate command again"


@dataclass
class Records:
    """The readable content of a ledger, with the faults of files that cannot be read."""

    plan: Plan | None = None
    receipts: dict[str, list[Receipt]] = field(default_factory=lambda: defaultdict(list))
    """Receipts by the name of their shard."""
    quarantined: dict[str, Quarantined] = field(default_factory=dict)
    """Notes on quarantined units by the name of the unit's shard."""
    faults: list[Fault] = field(default_factory=list)


def read_records(stored: Stored) -> Records:
    """Read the whole ledger. Each file that cannot be read is recorded as a fault."""
    records, ledger, root = Records(), Ledger(stored.subset), stored.subset.root
    for file in _files(ledger):
        try:
            if not stored.is_link(file):
                _read(ledger, file, records)
                continue
            fault = LINK
        except (ValueError, OSError) as error:
            fault = f"cannot be read ({' '.join(str(error).split())})"
        records.faults.append(Fault(file.relative_to(root).as_posix(), fault, _shard_of(file, records)))
    return records


def check_records(stored: Stored, records: Records) -> list[Fault]:
    """Return the faults of a subset, except those in the content of shards and in the card.

    The checks are that all shards exist, that the receipts match the plan, and that the tokenizer is unchanged. A
    quarantined unit is not a fault.
    """
    faults = [*records.faults]
    if (stored.subset.ledger / GROWING_FILE).exists():
        growing = (stored.subset.in_repository.ledger / GROWING_FILE).as_posix()
        faults.append(Fault(growing, f"a run with a larger --limit was not completed; {AGAIN}"))
    names = planned_shards(stored, records)
    faults += [fault for unit, name in enumerate(names) for fault in _check_unit(stored, records, unit, name)]
    faults += [
        Fault(stored.named(file), wrong or "is not a shard of this run; remove it", file)
        for file, wrong in stored.files.items()
        if wrong or file not in names
    ]
    ours = (stored.subset.in_repository.ledger / RECEIPTS).as_posix()
    unknown = sorted({*records.receipts, *records.quarantined} - {*names} - {*stored.files})
    faults += [Fault(ours, f"has {shard}, which is not a shard of this run", shard) for shard in unknown]
    return [*faults, *_check_tokenizer(stored, records)]


def planned_shards(stored: Stored, records: Records) -> list[str]:
    """Return the names of all shards of a complete subset.

    The number of shards is taken from the plan. Without a plan, it is taken from the name of the first shard.
    """
    if records.plan is not None:
        return [shard_name(unit, len(records.plan.units)) for unit in range(len(records.plan.units))]
    try:
        units = shards_in_all(min([*records.receipts, *(name for name in stored.files if name.endswith(".parquet"))]))
    except ValueError:
        units = 0
    return [shard_name(unit, units) for unit in range(min(units, len(stored.files) + len(records.receipts) + 1))]


def _files(ledger: Ledger) -> Iterator[Path]:
    """Yield the ledger's files. The plan comes first, because the plan is needed to read the other files."""
    if ledger.plan_file.exists() or ledger.plan_file.is_symlink():
        yield ledger.plan_file
    yield from ledger.receipt_files()
    yield from ledger.note_files()


def _read(ledger: Ledger, file: Path, records: Records) -> None:
    if file == ledger.plan_file:
        records.plan = Plan.from_json(text_of(file))
        rows, all_rows = sum(records.plan.rows), records.plan.provenance.source_rows
        if not rows or rows != all_rows:
            raise ValueError(f"its units have {rows:,} rows, its provenance {all_rows:,}")
    elif file.parent.name == QUARANTINE:
        note = Quarantined.from_json(text_of(file))
        records.quarantined[note.shard] = note
    else:
        receipts = ledger.receipts_in(file) if file.match(OWN) else map(Receipt.from_json, text_of(file).splitlines())
        for receipt in receipts:
            records.receipts[receipt.shard].append(receipt)


def _shard_of(file: Path, records: Records) -> str:
    """Return the name of the shard that a file of the ledger is about, or an empty string.

    A file about a single shard is named after the index of the shard's unit. For any other file, and for an index that
    the plan does not contain, the result is the empty string.
    """
    units = len(records.plan.units) if records.plan else 0
    return shard_name(int(file.stem), units) if file.stem.isdigit() and int(file.stem) < units else ""


def _check_unit(stored: Stored, records: Records, unit: int, name: str) -> Iterator[Fault]:
    receipts, note = records.receipts.get(name, []), records.quarantined.get(name)
    file = stored.named(name)
    if note is not None and (receipts or note.unit != unit or not _fits(records, unit, note.stop - note.start)):
        yield Fault(file, "the note on its quarantine contradicts the plan or a receipt", name)
    elif name not in stored.files and note is None and not _unreadable(records, name):
        yield Fault(file, f"is missing; {AGAIN}", name)
    elif name in stored.files and not receipts and records.plan is not None and not _unreadable(records, name):
        yield Fault(file, "has no receipt", name)
    for receipt in receipts:
        if receipt.unit != unit or not _fits(records, unit, receipt.counts.rows):
            has = f"unit {receipt.unit} and {receipt.counts.rows:,} rows"
            yield Fault(file, f"its receipt says {has}, unlike the plan", name)


def _fits(records: Records, unit: int, rows: int) -> bool:
    if records.plan is None:
        return True
    _, start, stop = records.plan.units[unit]
    return stop - start == rows


def _unreadable(records: Records, shard: str) -> bool:
    """True if the shard's receipt or note cannot be read. `records` then has a fault for the shard."""
    return any(fault.shard == shard for fault in records.faults)


def _check_tokenizer(stored: Stored, records: Records) -> Sequence[Fault]:
    """Check `tokenizer.json`, which decides token ids, and `tokenizer_config.json`, which names the start token."""
    if records.plan is None:
        return ()
    faults, settings = check_tokenizer(stored, records.plan.provenance), records.plan.tokenizer_config_sha256
    return [*faults, *(_check_digest(stored, CONFIG_FILE, settings) if settings else ())]


def check_tokenizer(stored: Stored, provenance: Provenance) -> Sequence[Fault]:
    """Check that the digest of `tokenizer.json` is the digest in the provenance."""
    return _check_digest(stored, TOKENIZER_FILE, provenance.tokenizer_sha256)


def _check_digest(stored: Stored, own_name: str, expected: str | None) -> Sequence[Fault]:
    file = stored.subset.tokenizer / own_name
    name = file.relative_to(stored.subset.root).as_posix()
    if stored.is_link(file):
        return [Fault(name, LINK)]
    digest = tokenizer_sha256(stored.subset.tokenizer, own_name)
    if digest == expected:
        return ()
    if digest is None:
        return [Fault(name, f"is missing; {AGAIN}")]
    return [Fault(name, f"is not the tokenizer of this run: its sha256 is {digest} instead of {expected}")]


DIGEST = re.compile(r"shards ([0-9a-f]{64})$")


def check_card(stored: Stored, records: Records, *, sound: bool) -> list[Fault]:
    """Check the card's entry for a subset. If the subset has no plan, nothing is checked.

    The entry contains a digest of all shards. This digest is only checked if the subset has no other faults (`sound`).
    """
    file = stored.subset.card
    if records.plan is None:
        return []
    if stored.is_link(file):
        return [Fault(CARD_FILE, LINK)]
    if not file.is_file():
        return [Fault(CARD_FILE, f"is missing, so load_dataset finds no subsets; {AGAIN}")]
    try:
        card = DatasetCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        entry = {each["config_name"]: each for each in card.data.get("configs") or []}[stored.subset.name]
        described = DIGEST.search(str(entry.get("description")))
        files = f"{stored.subset.in_repository.data.as_posix()}/**/*.parquet"
        if entry["data_files"] != [{"split": "train", "path": files}]:
            return [Fault(CARD_FILE, f"lists other files for {stored.subset.name} than {files}; {AGAIN}")]
    except (ValueError, KeyError, TypeError, AttributeError, OSError, yaml.YAMLError):
        return [Fault(CARD_FILE, f"has no readable entry for {stored.subset.name} in its front matter; {AGAIN}")]
    digest = _shards_sha256(stored, records) if sound else None
    if described is not None and digest is not None and described[1] != digest:
        return [Fault(CARD_FILE, f"has the digest of other shards of {stored.subset.name}: {described[1]}; {AGAIN}")]
    return []


def _shards_sha256(stored: Stored, records: Records) -> str | None:
    """Return the digest that the card must contain, or None if a shard has no receipt or several receipts."""
    names = [name for name in planned_shards(stored, records) if name not in records.quarantined]
    receipts = [records.receipts.get(name, []) for name in names]
    if any(len(each) != 1 for each in receipts):
        return None
    return total(receipt for (receipt,) in receipts).sha256
