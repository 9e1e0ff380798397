"""The part of a dataset's card that `load_dataset` reads: which files are a subset's, and the digest of its shards.

What stands below it for people is not checked.
"""

import hashlib
import re

import yaml
from huggingface_hub import DatasetCard

from pipeline.verification.ledger import AGAIN, UNREADABLE, Ledger, planned_shards
from pipeline.verification.stored import Fault, Stored, link
from schemas.layout import CARD_FILE

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
