"""Malicious annotated datasets for tests: each is a valid dataset, manipulated by one function, a trick.

A trick gets the folder of the dataset, and a folder outside the dataset. The second folder holds a secret key, which no
command may read.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.receipts import PLAN_FILE, PUBLISHED_FILE, QUARANTINE, RECEIPTS

SUBSET = "second-order"
SECRET = "-----BEGIN PRIVATE KEY----- canary-4711"


@dataclass(frozen=True)
class Prey:
    """Folders that a trick gets: the dataset, and a folder outside the dataset that holds a secret key."""

    dataset: Path
    outside: Path

    @property
    def secret(self) -> Path:
        return self.outside / "id_ed25519"

    @property
    def ledger(self) -> Path:
        return self.dataset / "_ledger" / SUBSET

    @property
    def receipt(self) -> Path:
        return sorted((self.ledger / RECEIPTS).iterdir())[1]

    @property
    def shard(self) -> Path:
        return sorted((self.dataset / "data" / SUBSET).iterdir())[1]

    @property
    def tokenizer(self) -> Path:
        return self.dataset / "tokenizer" / SUBSET

    def edit(self, file: Path, **changes: Any) -> None:
        """Set keys of a JSON file."""
        file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **changes}), encoding="utf-8")

    def edit_run(self, **changes: Any) -> None:
        """Set fields of the plan's provenance."""
        plan = json.loads((self.ledger / PLAN_FILE).read_text(encoding="utf-8"))
        self.edit(self.ledger / PLAN_FILE, run={**plan["run"], **changes})


Trick = Callable[[Prey], None]


def write_outside(folder: Path) -> None:
    """Fill a folder that lies outside the dataset with secret keys.

    The keys are in the folder itself, and in subfolders that are named like the folders of a dataset.
    """
    for name in ("", "data", "receipts", "quarantine", "tokenizer"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "id_ed25519").write_text(SECRET, encoding="utf-8")
    (folder / "data" / ".train-00000-of-00001.parquet.0.unfinished").write_text(SECRET, encoding="utf-8")


def published(shard: str) -> Trick:
    """Return a trick that writes a list of published shards, which names a file outside the dataset."""

    def trick(prey: Prey) -> None:
        receipt = {**json.loads(prey.receipt.read_text(encoding="utf-8")), "unit": 100}
        line = json.dumps({**receipt, "shard": shard.format(secret=prey.secret, outside=prey.outside.name)})
        (prey.ledger / PUBLISHED_FILE).write_text(f"{line}\n", encoding="utf-8")

    return trick


def receipt(shard: str) -> Trick:
    """Return a trick that changes the shard in a unit's receipt, for example to a file outside the dataset."""
    return lambda prey: prey.edit(
        prey.receipt, shard=shard.format(secret=prey.secret, outside=prey.outside.name), size=len(SECRET)
    )


def all_published(prey: Prey) -> None:
    """List every unit as published, and delete all shards."""
    files = sorted((prey.ledger / RECEIPTS).iterdir())
    lines = "".join(f"{file.read_text(encoding='utf-8')}\n" for file in files)
    (prey.ledger / PUBLISHED_FILE).write_text(lines, encoding="utf-8")
    for file in (prey.dataset / "data" / SUBSET).iterdir():
        file.unlink()


def linked(name: str, target: str = "id_ed25519") -> Trick:
    """Return a trick that replaces a file or folder of the dataset by a link to the secret or to a folder outside."""

    def trick(prey: Prey) -> None:
        places = {"SHARD": prey.shard, "RECEIPT": prey.receipt}
        place = places.get(name) or prey.dataset / name.replace("SUBSET", SUBSET)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        place.unlink(missing_ok=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(prey.outside / target)

    return trick


def hard_named_quarantine(prey: Prey) -> None:
    """Add a note on a quarantined unit. The note names a file outside the dataset as the unit's source."""
    (prey.ledger / QUARANTINE).mkdir(exist_ok=True)
    note = {"unit": 1, "shard": "../../x", "file": str(prey.secret), "start": 0, "stop": 9, "reason": "\x1b[2J"}
    (prey.ledger / QUARANTINE / "00000001.json").write_text(json.dumps(note), encoding="utf-8")


def other_inputs(prey: Prey) -> None:
    """Make the plan name the secret as its input."""
    prey.edit(prey.ledger / PLAN_FILE, inputs=[str(prey.secret)])


def other_checkpoint(prey: Prey) -> None:
    """Make the plan name a checkpoint outside the dataset."""
    prey.edit(prey.ledger / PLAN_FILE, checkpoint=str(prey.outside))


def fifo(name: str) -> Trick:
    """Return a trick that replaces a file of the ledger by a pipe to which nobody writes."""

    def trick(prey: Prey) -> None:
        file = prey.ledger / name
        file.unlink(missing_ok=True)
        os.mkfifo(file)

    return trick


def text(name: str, content: str) -> Trick:
    """Return a trick that writes a file of the ledger with this content."""
    return lambda prey: void((prey.ledger / name).write_text(content, encoding="utf-8"))


def folder_for_a_shard(prey: Prey) -> None:
    """Replace a shard by a folder."""
    shard = prey.shard
    shard.unlink()
    shard.mkdir()


def void(_: object) -> None:
    """Discard a value."""


TRICKS: dict[str, Trick] = {
    "published: an absolute path": published("{secret}"),
    "published: a path upwards": published("../../../{outside}/id_ed25519"),
    "published: all, and no shard": all_published,
    "receipt: an absolute path": receipt("{secret}"),
    "receipt: a path upwards": receipt("../../../{outside}/id_ed25519"),
    "receipt: another unit's shard": receipt("train-00000-of-00004.parquet"),
    "link: a shard": linked("SHARD"),
    "link: a receipt": linked("RECEIPT"),
    "link: a file of the tokenizer": linked("tokenizer/SUBSET/added.json"),
    "link: the tokenizer itself": linked("tokenizer/SUBSET/tokenizer.json"),
    "link: the tokenizer's folder": linked("tokenizer/SUBSET", "tokenizer"),
    "link: the data's folder": linked("data/SUBSET", "data"),
    "link: all data": linked("data", "data"),
    "link: all receipts": linked("_ledger/SUBSET/receipts", "receipts"),
    "link: a note on a unit": linked("_ledger/SUBSET/quarantine/00000001.json"),
    "link: all notes": linked("_ledger/SUBSET/quarantine", "quarantine"),
    "link: the plan": linked("_ledger/SUBSET/plan.json"),
    "link: the report": linked("_ledger/SUBSET/report.json"),
    "link: the lock": linked("_ledger/lock"),
    "link: the card": linked("README.md"),
    "note: a file outside": hard_named_quarantine,
    "plan: other inputs": other_inputs,
    "plan: another checkpoint": other_checkpoint,
    "plan: 10^9 units": lambda prey: prey.edit(prey.ledger / PLAN_FILE, units=10**9),
    "plan: 10^9 rows": lambda prey: prey.edit_run(source_rows=10**12, rows_per_unit=1),
    "plan: a vocabulary of 2^40": lambda prey: prey.edit_run(vocabulary=2**40),
    "plan: a control sequence": lambda prey: prey.edit_run(checkpoint_sha256="\x1b]0;pwned\x07\x1b[2J"),
    "plan: a pipe": fifo(PLAN_FILE),
    "plan: nested": text(PLAN_FILE, "[" * 100_000),
    "published: a pipe": fifo(PUBLISHED_FILE),
    "receipt: 10^300 tokens": lambda prey: prey.edit(prey.receipt, counts={"tokens": 10**300}),
    "receipt: not a number": lambda prey: void(
        prey.receipt.write_text(
            prey.receipt.read_text(encoding="utf-8").replace('"nats": ', '"nats": NaN, "n": '), encoding="utf-8"
        )
    ),
    "shard: 10^9 in its name": lambda prey: void(
        prey.shard.rename(prey.shard.with_name("train-00001-of-1000000000.parquet"))
    ),
    "shard: a folder": folder_for_a_shard,
}
