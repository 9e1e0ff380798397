"""The workers of a run as its driver sees them: started while the cluster has room, called, and dismissed."""

import logging
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.data.redaction import redacted
from pipeline.engine.cluster import Share
from pipeline.engine.errors import UnitError
from pipeline.engine.plan import Unit
from pipeline.engine.run import Run
from pipeline.engine.worker import UNITS_AT_A_TIME, Device, Load, Worker

FAILED_STARTS = 3  # of as many workers, or of all that there are, end a run in which none is at work
PATIENCE = 10.0  # seconds for what a worker does beside its units
LOOK = 5.0  # seconds between looks at the cluster

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


class Crew:
    """`workers` is how many to keep, None for all that the cluster has room for and more."""

    def __init__(self, run: Run, load: Load, *, workers: int | None, share: Share) -> None:
        self.run, self.load = run, load
        self.workers, self.share = workers, share.resolved()
        self.hands: set[Hand] = set()
        self.at_work: set[Hand] = set()
        """Those that have loaded."""
        self.events: queue.SimpleQueue[tuple[Hand, Unit | None, Any]] = queue.SimpleQueue()
        self.failed_starts, self.next_look, self.room = 0, 0.0, 1

    def keep(self, needed: int) -> None:
        """Now and then, and when a worker has died, starts workers; no more than are needed."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK
        before, self.room = self.room, self.share.room()
        # Twice what there is room for: workers that wait for room make a cluster that can grow do so.
        wanted = self.workers or max(1, 2 * self.room)
        for _ in range(min(wanted, needed) - len(self.hands)):
            self._hire()
        if before and not self.room:
            LOG.warning("no node has room for a worker, which wants %s", self.share)

    def _hire(self) -> None:
        actor: Any = Worker  # ray.remote made an actor class of it, which its type does not show
        share = {"num_cpus": self.share.cpus, "num_gpus": self.share.gpus}
        device: Device = "cuda" if self.share.gpus else "cpu"
        hand = Hand(actor.options(max_concurrency=UNITS_AT_A_TIME + 1, **share).remote(self.run, self.load, device))
        self.hands.add(hand)
        self._expect(hand, None, hand.actor.load.remote())

    def give(self, hand: Hand, unit: Unit) -> None:
        """Lets a worker annotate a unit."""
        hand.units.add(unit)
        self._expect(hand, unit, hand.actor.annotate.remote(unit))

    def _expect(self, hand: Hand, unit: Unit | None, reference: Any) -> None:
        """Queues an event when a call has ended: the driver's work for a unit does not grow with the workers."""
        reference.future().add_done_callback(lambda future: self.events.put((hand, unit, future)))

    def ended(self, patience: float) -> Ended | None:
        """The next call that has ended; None if none has within so many seconds."""
        try:
            hand, unit, future = self.events.get(timeout=patience)
        except queue.Empty:
            return None
        hand.units -= {unit}
        error = future.exception()
        cause = error.cause if isinstance(error, RayTaskError) else error
        return Ended(hand, unit, None if error else future.result(), cause)

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
        self.dismiss(hand)
        self.failed_starts += 1
        LOG.warning("a worker failed at its start: %s", shown(error))
        if not self.at_work and self.failed_starts >= max(FAILED_STARTS, len(self.hands)):
            raise ValueError(f"{self.failed_starts} workers failed at their start, the last by: {shown(error)}")

    def dismiss(self, hand: Hand) -> None:
        """Ends a worker; another one takes its place."""
        if hand in self.hands:
            self.hands.remove(hand)
            ray.kill(hand.actor)
        if hand in self.at_work:  # else it died at its start: another one at once might do the same
            self.at_work.remove(hand)
            self.next_look = 0.0

    def forget(self, shards: Sequence[str]) -> None:
        """Has shards that are published removed on every node; returns when they are, or after PATIENCE seconds."""
        one_a_node = {hand.node: hand for hand in self.at_work}.values()
        if calls := [hand.actor.forget.remote(shards) for hand in one_a_node]:
            ray.wait(calls, num_returns=len(calls), timeout=PATIENCE)

    def nodes(self) -> set[str | None]:
        """Those that are alive."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def close(self) -> None:
        """Ends all workers."""
        for hand in self.hands:
            ray.kill(hand.actor)


def shown(error: BaseException) -> str:
    """What happened, in one line without credentials; what Ray says below its first line is advice."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    if isinstance(error, RayError):
        return redacted(lines[0] if lines else type(error).__name__)
    kind = "" if isinstance(error, ValueError | UnitError) else f"{type(error).__name__}: "
    return redacted(kind + " ".join(lines))
