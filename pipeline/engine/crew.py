"""The workers of a run as its driver sees them: started, given units, and dismissed. Where they run is a subclass's."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.engine.errors import UnitError
from pipeline.engine.plan import Unit
from pipeline.engine.underway import Part
from pipeline.messages import redacted
from pipeline.models.checkpoint import UnfitModelError

LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Hand:
    """A worker."""

    actor: Any
    node: str | None = None
    """Known when it has loaded."""
    units: set[Unit] = field(default_factory=set)
    failures: int = 0
    """Units in a row that it could not do."""
    rests_until: float = 0.0


class Ended(NamedTuple):
    """A call that is over."""

    hand: Hand
    unit: Unit | None
    """None: the worker's start."""
    result: Any
    error: BaseException | None


class Crew(ABC):
    """All workers of a run."""

    units_at_a_time = 1
    """Units that a worker is given at a time."""
    failed_starts_that_end = 1
    """Failed starts in a row, or as many as there are workers, that end a run in which no worker is at work."""

    def __init__(self) -> None:
        self.hands: set[Hand] = set()
        self.at_work: set[Hand] = set()
        """Those that have loaded."""
        self.failed_starts = 0

    @abstractmethod
    def keep(self, needed: int) -> None:
        """Starts workers where some are missing, no more than are needed."""

    @abstractmethod
    def give(self, hand: Hand, unit: Unit) -> None:
        """Lets a worker annotate a unit."""

    @abstractmethod
    def ended(self, patience: float) -> Ended | None:
        """Next call that has ended, or None after `patience` seconds without one."""

    @abstractmethod
    def underway(self, hand: Hand) -> dict[Unit, Part]:
        """What is labelled of a worker's units, as far as is known here; another thread may ask."""

    @abstractmethod
    def forget(self, shards: Sequence[str]) -> None:
        """Has shards that are published removed on every node."""

    @abstractmethod
    def nodes(self) -> set[str | None]:
        """Nodes that are alive."""

    @abstractmethod
    def close(self) -> None:
        """Ends all workers."""

    def started(self, hand: Hand, node: str) -> None:
        """A worker has loaded, on a node."""
        hand.node, self.failed_starts = node, 0
        if hand in self.hands:
            self.at_work.add(hand)

    def failed_to_start(self, hand: Hand, error: BaseException) -> None:
        """A worker could not load.

        Raises:
            ValueError: if none can.
        """
        if isinstance(error, UnfitModelError):
            raise ValueError(shown(error))
        self.dismiss(hand)
        self.failed_starts += 1
        LOG.warning("a worker failed at its start: %s", shown(error))
        if not self.at_work and self.failed_starts >= max(self.failed_starts_that_end, len(self.hands)):
            several = f"{self.failed_starts} workers failed at their start, the last by: "
            raise ValueError(f"{several if self.failed_starts > 1 else ''}{shown(error)}")

    def dismiss(self, hand: Hand) -> None:
        """Ends a worker; another one takes its place."""
        self.hands.discard(hand)
        self.at_work.discard(hand)


def shown(error: BaseException) -> str:
    """What happened, in one line without credentials."""
    kind = "" if isinstance(error, ValueError | UnitError) else f"{type(error).__name__}: "
    return redacted(kind + " ".join(str(error).split()))
