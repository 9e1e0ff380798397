"""A subset's ledger: plan, receipts and notes on units that were given up, held against each other and its files."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard

from pipeline.data.tokenizer import CONFIG_FILE, TOKENIZER_FILE, tokenizer_sha256
from pipeline.engine.ledger import receipt_file
from pipeline.engine.output import GROWING_FILE, Plan, read_plan
from pipeline.verify.stored import Fault, Stored, link
from schemas.annotations import Provenance
from schemas.layout import CARD_FILE, shard_name, shards_in_all
from schemas.receipts import PLAN_FILE, QUARANTINE, RECEIPT_FILES, RECEIPTS, Quarantined, Receipt

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError)
"""What reading JSON, or an Arrow schema in it, raises that is not as it was written."""
AGAIN = "give the same annotate command again"


@dataclass
class Ledger:
    """The content of a ledger; `faults` are of the ledger itself."""

    plan: Plan | None = None
    rows: list[int] | None = None
    """Of each unit of the plan."""
    receipts: dict[str, list[Receipt]] = field(default_factory=lambda: defaultdict(list))
    """By shard."""
    given_up: dict[str, Quarantined] = field(default_factory=dict)
    """By shard."""
    faults: list[Fault] = field(default_factory=list)


def read_ledger(stored: Stored) -> Ledger:
    """Reads everything, and notes what cannot be read."""
    ledger, root = Ledger(), stored.subset.root
    for file in _files(stored):
        name = file.relative_to(root).as_posix()
        if not stored.remote and link(root, file):
            what = "is a link, or no file; copy what it leads to here"
            ledger.faults.append(Fault(name, what, _shard_of(file, ledger)))
            continue
        try:
            _read(stored, file, ledger)
        except UNREADABLE as error:
            what = f"cannot be read ({' '.join(str(error).split())})"
            ledger.faults.append(Fault(name, what, _shard_of(file, ledger)))
    return ledger


def check_ledger(stored: Stored, ledger: Ledger) -> list[Fault]:
    """Everything but the content of shards: which there are, their receipts, the tokenizer.

    What is given up is no fault.
    """
    faults = [*ledger.faults]
    if (stored.subset.ledger / GROWING_FILE).exists():
        growing = (stored.subset.in_repository.ledger / GROWING_FILE).as_posix()
        faults.append(Fault(growing, f"a run with a larger --limit did not end; {AGAIN}"))
    names = planned_shards(stored, ledger)
    faults += [fault for unit, name in enumerate(names) for fault in _check_unit(stored, ledger, unit, name)]
    faults += [
        Fault(stored.named(file), wrong or "is no shard of this run; take it away", file)
        for file, wrong in stored.files.items()
        if wrong or file not in names
    ]
    ours = (stored.subset.in_repository.ledger / RECEIPTS).as_posix()
    unknown = sorted({*ledger.receipts, *ledger.given_up} - {*names} - {*stored.files})
    faults += [Fault(ours, f"has {shard}, which is no shard of this run", shard) for shard in unknown]
    return [*faults, *_check_tokenizer(stored, ledger)]


def planned_shards(stored: Stored, ledger: Ledger) -> list[str]:
    """The names that shards must have, by the plan or, without one, by the first shard's."""
    if ledger.rows is not None:
        return [shard_name(unit, len(ledger.rows)) for unit in range(len(ledger.rows))]
    try:
        units = shards_in_all(min([*ledger.receipts, *(name for name in stored.files if name.endswith(".parquet"))]))
    except ValueError:
        units = 0
    return [shard_name(unit, units) for unit in range(min(units, len(stored.files) + len(ledger.receipts) + 1))]


def _files(stored: Stored) -> Iterator[Path]:
    """The plan first, on which the rest depends."""
    folder = stored.subset.ledger
    if (folder / PLAN_FILE).exists() or (folder / PLAN_FILE).is_symlink():
        yield folder / PLAN_FILE
    for kind in RECEIPT_FILES:
        yield from sorted((folder / RECEIPTS).glob(kind))
    yield from sorted((folder / QUARANTINE).glob("*.json"))


def _read(stored: Stored, file: Path, ledger: Ledger) -> None:
    text = file.read_text(encoding="utf-8")
    if file.name == PLAN_FILE:
        ledger.plan = read_plan(text)
        units = [(start, stop) for _, start, stop in json.loads(text)["units"]]
        ledger.rows = [stop - start for start, stop in units]
        if not ledger.rows or min(ledger.rows) < 0 or sum(ledger.rows) != ledger.plan.provenance.source_rows:
            raise ValueError(f"{sum(ledger.rows):,} rows in its units, {ledger.plan.provenance.source_rows:,} in all")
    elif file.parent.name == QUARANTINE:
        note = Quarantined.from_json(text)
        ledger.given_up[note.shard] = note
    else:
        for line in text.splitlines():
            receipt = Receipt.from_json(line)
            own = receipt_file(stored.subset, receipt.unit).name
            if file.suffix == ".json" and file.name != own:
                raise ValueError(f"it is of unit {receipt.unit}, whose receipt is {own}")
            ledger.receipts[receipt.shard].append(receipt)


def _shard_of(file: Path, ledger: Ledger) -> str:
    """The shard whose receipt, or note, a file is by its name."""
    units = len(ledger.rows or ())
    return shard_name(int(file.stem), units) if file.stem.isdigit() and int(file.stem) < units else ""


def _check_unit(stored: Stored, ledger: Ledger, unit: int, name: str) -> Iterator[Fault]:
    receipts, note = ledger.receipts.get(name, []), ledger.given_up.get(name)
    file = stored.named(name)
    if note is not None and (receipts or note.unit != unit or not _fits(ledger, unit, note.stop - note.start)):
        yield Fault(file, "the note on its being given up does not fit the plan or its receipt", name)
    elif name not in stored.files and note is None and not _unreadable(ledger, name):
        yield Fault(file, f"is missing; {AGAIN}", name)
    elif name in stored.files and not receipts and ledger.plan is not None and not _unreadable(ledger, name):
        yield Fault(file, "has no receipt", name)
    for receipt in receipts:
        if receipt.unit != unit or not _fits(ledger, unit, receipt.counts.rows):
            has = f"unit {receipt.unit} and {receipt.counts.rows:,} rows"
            yield Fault(file, f"its receipt says {has}, which is not what the plan says", name)


def _fits(ledger: Ledger, unit: int, rows: int) -> bool:
    return ledger.rows is None or ledger.rows[unit] == rows


def _unreadable(ledger: Ledger, shard: str) -> bool:
    """True if a fault says already that its receipt cannot be read."""
    return any(fault.shard == shard for fault in ledger.faults)


def _check_tokenizer(stored: Stored, ledger: Ledger) -> Sequence[Fault]:
    """The file that decides every token's id, and the one that names the token before a document."""
    if ledger.plan is None:
        return ()
    faults, settings = check_tokenizer(stored, ledger.plan.provenance), ledger.plan.tokenizer_config_sha256
    return [*faults, *(_check_digest(stored, CONFIG_FILE, settings) if settings else ())]


def check_tokenizer(stored: Stored, provenance: Provenance) -> Sequence[Fault]:
    """The tokenizer's digest against the one that the provenance has."""
    return _check_digest(stored, TOKENIZER_FILE, provenance.tokenizer_sha256)


def _check_digest(stored: Stored, own_name: str, wanted: str | None) -> Sequence[Fault]:
    file = stored.subset.tokenizer / own_name
    name = file.relative_to(stored.subset.root).as_posix()
    if not stored.remote and (file.exists() or file.is_symlink()) and link(stored.subset.root, file):
        return [Fault(name, "is a link, or no file; copy what it leads to here")]
    found = tokenizer_sha256(stored.subset.tokenizer, own_name)
    if found == wanted:
        return ()
    if found is None:
        return [Fault(name, f"is missing; {AGAIN}")]
    return [Fault(name, f"is not the tokenizer of this run: its sha256 is {found}, and was {wanted}")]


DIGEST = re.compile(r"shards ([0-9a-f]{64})$")


def check_card(stored: Stored, ledger: Ledger, *, sound: bool) -> list[Fault]:
    """The card's entry for a subset that a run wrote; its digest only where all shards are sound."""
    file = stored.subset.card
    if ledger.plan is None:
        return []
    if not stored.remote and (file.exists() or file.is_symlink()) and link(stored.subset.root, file):
        return [Fault(CARD_FILE, "is a link, or no file; copy what it leads to here")]
    if not file.is_file():
        return [Fault(CARD_FILE, f"is missing, so that load_dataset knows no subsets; {AGAIN}")]
    try:
        card = DatasetCard(file.read_text(encoding="utf-8"), ignore_metadata_errors=True)
        entry = {each["config_name"]: each for each in card.data.get("configs") or []}[stored.subset.name]
        told = DIGEST.search(str(entry.get("description")))
        files = f"{stored.subset.in_repository.data.as_posix()}/**/*.parquet"
        if entry["data_files"] != [{"split": "train", "path": files}]:
            return [Fault(CARD_FILE, f"has other files for {stored.subset.name} than {files}; {AGAIN}")]
    except (*UNREADABLE, yaml.YAMLError):
        return [Fault(CARD_FILE, f"has no readable entry for {stored.subset.name} at its top; {AGAIN}")]
    digest = _shards_sha256(stored, ledger) if sound else None
    if told is not None and digest is not None and told[1] != digest:
        return [Fault(CARD_FILE, f"has the digest of other shards of {stored.subset.name}: {told[1]}; {AGAIN}")]
    return []


def _shards_sha256(stored: Stored, ledger: Ledger) -> str | None:
    """As the card has it; None where a receipt is missing or there are several."""
    receipts = [ledger.receipts.get(name, []) for name in planned_shards(stored, ledger) if name not in ledger.given_up]
    if any(len(each) != 1 for each in receipts):
        return None
    return hashlib.sha256("".join(receipt.sha256 for (receipt,) in receipts).encode()).hexdigest()
