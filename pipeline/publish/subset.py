"""Publishing of everything in a subset except its shards: plan, tokenizer, card, report and notes on quarantine."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from pipeline.data.hub import Operation, Repository
from pipeline.data.ledger import Ledger, PublishedLedger
from pipeline.data.naming import is_local, without_paths
from pipeline.data.tokenizer import tokenizer_sha256
from pipeline.engine.output import require_same
from pipeline.models.checkpoint import TOKENIZER_FILES
from pipeline.publish.card import dataset_card
from pipeline.publish.readme import keeping_own_data, read_readme
from pipeline.publish.section import SubsetInfo
from schemas.decoding import json_object, reading, text_of
from schemas.receipts import PLAN_FILE, QUARANTINE, REPORT_FILE, Plan, Quarantined, Receipt, total

LOG = logging.getLogger(__name__)
Missing = Callable[[str], Sequence[Operation]]
"""Function that takes the id of the repository's last commit, and returns the operations to add in a new commit."""


def with_totals(info: SubsetInfo, receipts: Iterable[Receipt]) -> SubsetInfo:
    """Return a copy of `info` with totals: counts, digest and size of all shards that the receipts describe."""
    counts, digest, size = total(receipts)
    return replace(info, counts=counts, shards_sha256=digest, size=size)


def publish_beginning(repository: Repository, info: SubsetInfo) -> None:
    """Commit the plan, the tokenizer and a first card, so that the dataset can be loaded while it grows.

    Raises:
        ValueError: if another run has published a subset of this name in the repository; if `datasets` could not read
            both the labels and the repository's existing data afterwards; or if the tokenizer in the local dataset is
            not the one that made the dataset's tokens.
    """
    subset, files = info.subset, _tokenizer(info)
    plan_file = subset.in_repository.ledger / PLAN_FILE

    def missing(head: str) -> Sequence[Operation]:
        plan = PublishedLedger(repository, subset).plan(head)
        if plan is not None:
            require_same(f"`output` {repository.url}", info.provenance, plan.provenance)
        own = plan_without_paths(text_of(Ledger(subset).plan_file)).encode()
        begun = [CommitOperationAdd(plan_file.as_posix(), own)] if plan is None else []
        named = [(file.relative_to(subset.root).as_posix(), file) for file in files]
        card = _readme(repository, info, head)
        if plan is None:
            card = keeping_own_data(card, repository.files("", head), subset, repository.url)
        return [*begun, *(CommitOperationAdd(path, file) for path, file in named), _card(repository, info, card)]

    repository.commit(f"{subset.name}: plan", missing)


def publish_end(repository: Repository, info: SubsetInfo) -> None:
    """Commit the card with totals, the report of the last session and the notes on quarantined units.

    Notes in the repository on units that are no longer quarantined are deleted.
    """
    subset, places = info.subset, info.subset.in_repository
    report = [subset.ledger / REPORT_FILE] if (subset.ledger / REPORT_FILE).exists() else []
    note_files = Ledger(subset).note_files()
    kept = {(places.ledger / QUARANTINE / file.name).as_posix() for file in note_files}

    def missing(head: str) -> Sequence[Operation]:
        existing = repository.files((places.ledger / QUARANTINE).as_posix(), head)
        notes = [(file, _note(file)) for file in note_files]
        contents = [*((file, _report(file)) for file in report), *notes]
        return [
            *(CommitOperationAdd(file.relative_to(subset.root).as_posix(), content) for file, content in contents),
            *(CommitOperationDelete(path) for path in sorted(set(existing) - kept)),
            *_last_card(repository, info, head),
        ]

    repository.commit(f"{subset.name}: card", missing)


def plan_without_paths(text: str) -> str:
    """Return the JSON of a plan for publication: URLs are kept, and a placeholder replaces each local path.

    Raises:
        ValueError: if the text is not a valid plan.
    """
    Plan.from_json(text)
    plan = json.loads(text)
    listed = {key: without_paths(plan[key]) for key in ("inputs", "source") if plan.get(key) is not None}
    files = [{**file, "url": without_paths([file["url"]])[0]} for file in plan["files"]]
    return json.dumps({**plan, **listed, "files": files})


def _tokenizer(info: SubsetInfo) -> list[Path]:
    """Return the files of the tokenizer that made `input_ids`, or an empty list if the source was already tokenized."""
    folder, digest = info.subset.tokenizer, info.provenance.tokenizer_sha256
    if digest is None:
        return []
    if tokenizer_sha256(folder) != digest:
        remedy = "run the same pipeline.annotate command again, which writes it"
        raise ValueError(f"{folder} does not contain the labels' tokenizer; {remedy}")
    return [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]


def _report(file: Path) -> bytes:
    """Return the report of the last session, checked to be a JSON object."""
    with reading(file, "delete it; no label depends on it"):
        text = text_of(file)
        json_object(text)
        return text.encode()


def _note(file: Path) -> bytes:
    """Return the note on a quarantined unit for publication, with only the name of a local input file."""
    with reading(file, "delete it, and run the same pipeline.annotate command to retry the unit"):
        unit = Quarantined.from_json(text_of(file))
    name = Path(unit.file).name if is_local(unit.file) else unit.file
    return replace(unit, file=name, reason=unit.reason.replace(unit.file, name)).to_json().encode()


def _readme(repository: Repository, info: SubsetInfo, head: str) -> str | None:
    return read_readme(repository.download(info.subset.in_repository.card.as_posix(), head))


def _card(repository: Repository, info: SubsetInfo, existing: str | None) -> CommitOperationAdd:
    """Return the operation that writes the repository's updated card."""
    place = info.subset.in_repository.card.as_posix()
    return CommitOperationAdd(place, dataset_card(info, existing, f"{repository.url}/{place}").encode())


def _last_card(repository: Repository, info: SubsetInfo, head: str) -> list[Operation]:
    """Return the operation that writes the updated card.

    If the existing card cannot be read any more, log a warning and return no operation.
    """
    try:
        return [_card(repository, info, _readme(repository, info, head))]
    except ValueError as error:
        LOG.warning("the card is not updated, everything else is: %s", error)
        return []
