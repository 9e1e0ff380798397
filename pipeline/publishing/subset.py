"""What a published subset has besides its shards: plan, tokenizer, card, and notes on how the last run ended."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from pipeline.data.hub import Operation, Repository
from pipeline.engine.ledger import total
from pipeline.engine.opening import read_plan, require_same
from pipeline.publishing.card import dataset_card
from pipeline.publishing.facts import Facts
from schemas.ledger import PLAN_FILE, QUARANTINE, REPORT_FILE

Missing = Callable[[str], Sequence[Operation]]
"""From a commit to what it lacks."""


def with_totals(facts: Facts) -> Facts:
    """The same with the figures of all committed shards."""
    counts, digest, size = total(facts.subset)
    return replace(facts, counts=counts, shards_sha256=digest, size=size)


def publish_beginning(repository: Repository, facts: Facts) -> None:
    """Commits the plan, the tokenizer and a first card, so that the dataset can be loaded while it grows.

    Raises:
        ValueError: if the repository has another run's subset of this name.
    """
    subset, files = facts.subset, sorted(facts.subset.tokenizer.glob("*"))
    plan_file = subset.in_repository.ledger / PLAN_FILE

    def missing(head: str) -> Sequence[Operation]:
        plan = repository.text(plan_file.as_posix(), head)
        if plan is not None:
            require_same(f"--output {repository.url}", facts.provenance, read_plan(plan).provenance)
        there = [] if plan is not None else [subset.ledger / PLAN_FILE]
        named = [(file.relative_to(subset.root).as_posix(), file) for file in (*there, *files)]
        return [*(CommitOperationAdd(path, file) for path, file in named), _card(repository, facts, head)]

    repository.commit(f"{subset.name}: plan", missing)


def publish_end(repository: Repository, facts: Facts) -> None:
    """Commits the card with its figures, the report of the last session and notes on units that were given up."""
    subset, places = facts.subset, facts.subset.in_repository
    report = [subset.ledger / REPORT_FILE] if (subset.ledger / REPORT_FILE).is_file() else []
    given_up = sorted((subset.ledger / QUARANTINE).glob("*.json"))
    kept = {(places.ledger / QUARANTINE / file.name).as_posix() for file in given_up}

    def missing(head: str) -> Sequence[Operation]:
        there = repository.files((places.ledger / QUARANTINE).as_posix(), head)
        named = [(file.relative_to(subset.root).as_posix(), file) for file in (*report, *given_up)]
        return [
            *(CommitOperationAdd(path, file) for path, file in named),
            *(CommitOperationDelete(path) for path in sorted(set(there) - kept)),
            _card(repository, facts, head),
        ]

    repository.commit(f"{subset.name}: card", missing)


def _card(repository: Repository, facts: Facts, head: str) -> CommitOperationAdd:
    """The card that a commit has, brought up to date."""
    path = facts.subset.in_repository.card.as_posix()
    return CommitOperationAdd(path, dataset_card(facts, repository.text(path, head)).encode())
