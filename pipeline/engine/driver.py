"""Hands units to workers until all are done. Only units and receipts pass through here, never data.

Workers join when the cluster has room for them and are replaced when they die. A unit in flight then is given out
again, by itself; one that keeps killing its workers, or that cannot be labelled, is given up and written down.
"""

import logging
import queue
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.data.redaction import redacted
from pipeline.engine.annotation import OutputError, Run, SourceError
from pipeline.engine.cluster import Share
from pipeline.engine.ledger import quarantine, remove_unfinished
from pipeline.engine.plan import Unit
from pipeline.engine.report import Outcome
from pipeline.engine.stages import Stages
from pipeline.engine.worker import UNITS_AT_A_TIME, Load, Worker
from schemas.annotations import shard_name
from schemas.ledger import Quarantined, Receipt

ATTEMPTS = 3
NODES_LOST = 10  # with as many nodes a unit is given up though none of its workers died alone
HOPELESS = 8  # units given up before one succeeds end the run: its settings are wrong, not its rows
PATIENCE = 1.0  # seconds until the caller hears that nothing has happened
LOOK = 5.0  # seconds between looks at the cluster
SLOW = 3.0  # times the mean that a unit takes at the end of a run before an idle worker starts it too

LOG = logging.getLogger(__name__)


@dataclass(eq=False)
class Hand:
    """A worker as the driver sees it."""

    actor: Any
    node: str | None = None
    """Known when it has loaded."""
    units: set[Unit] = field(default_factory=set)


class Driver:
    """One run over its units. `workers` is how many to keep, None for all that the cluster has room for and more."""

    def __init__(self, run: Run, load: Load, *, workers: int | None, share: Share, done: int = 0) -> None:
        self.run, self.load = run, load
        self.workers, self.share = workers, share.resolved()
        self.hands: set[Hand] = set()
        self.done, self.given_up, self.failed_loads = done, 0, 0
        self.strikes: dict[Unit, list[str | None]] = {}
        self.running: dict[Unit, float] = {}
        self.finished, self.seconds = 0, 0.0
        self.events: queue.SimpleQueue[tuple[Hand, Unit | None, Any]] = queue.SimpleQueue()
        self.next_look, self.room = 0.0, 1

    @property
    def loaded(self) -> int:
        """Workers that are at work."""
        return sum(hand.node is not None for hand in self.hands)

    def outcomes(self, units: Sequence[Unit]) -> Iterator[Outcome]:
        """What becomes of every unit, as it happens.

        Raises:
            ValueError: if workers cannot load, the output cannot be written, or unit after unit fails from the start.
        """
        self.waiting = deque(sorted(units, key=lambda unit: unit.start - unit.stop))
        self.unfinished = set(units)
        try:
            while self.unfinished:
                self._look()
                try:
                    hand, unit, future = self.events.get(timeout=PATIENCE)
                except queue.Empty:
                    yield None
                else:
                    yield self._settle(hand, unit, future)
        finally:
            for hand in self.hands:
                ray.kill(hand.actor)
            remove_unfinished(self.run.output)

    def _look(self) -> None:
        """Now and then, and when a worker has died: hires, and helps with units that hold up the end."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK
        before, self.room = self.room, self.share.room()
        # Twice what there is room for: workers that wait for room make a cluster that can grow do so.
        wanted = self.workers or max(1, 2 * self.room)
        for _ in range(min(wanted, len(self.unfinished)) - len(self.hands)):
            self._hire()
        if before and not self.room:
            LOG.warning("no node has room for a worker, which wants %s", self.share)
        if not self.waiting:
            self._help_the_slow()

    def _hire(self) -> None:
        actor: Any = Worker  # ray.remote made an actor class of it, which its type does not show
        share = {"num_cpus": self.share.cpus, "num_gpus": self.share.gpus}
        hand = Hand(actor.options(max_concurrency=UNITS_AT_A_TIME, **share).remote(self.run, self.load))
        self.hands.add(hand)
        self._expect(hand, None, hand.actor.load.remote())

    def _expect(self, hand: Hand, unit: Unit | None, reference: Any) -> None:
        """Queues an event when a call has ended: the driver's work for a unit does not grow with the workers."""
        reference.future().add_done_callback(lambda future: self.events.put((hand, unit, future)))

    def _settle(self, hand: Hand, unit: Unit | None, future: Any) -> Outcome:
        """Takes what became of a call, and gives its worker, if it lives, the next units."""
        if unit is not None:
            hand.units.discard(unit)
        outcome: Outcome = None
        if error := future.exception():
            outcome = self._failed(hand, unit, error)
        elif unit is None:
            hand.node, self.failed_loads = future.result(), 0
        elif unit in self.unfinished:  # else another worker was faster with it
            outcome = self._finished(unit, future.result())
        if hand in self.hands:
            self._hand_out(hand)
        return outcome

    def _finished(self, unit: Unit, result: tuple[Receipt, Stages]) -> Outcome:
        self.unfinished.remove(unit)
        self.seconds += time.monotonic() - self.running.pop(unit)
        self.finished += 1
        self.strikes.pop(unit, None)
        return result

    def _hand_out(self, hand: Hand) -> None:
        """Gives a worker what is waiting: a unit to label and one to read ahead, a suspect by itself."""
        while hand.node is not None and self.waiting and self._may_have(hand, self.waiting[0]):
            self._give(hand, self.waiting.popleft())

    def _may_have(self, hand: Hand, unit: Unit) -> bool:
        if not hand.units:
            return True
        suspect = any(each in self.strikes for each in (unit, *hand.units))
        return not suspect and len(hand.units) < UNITS_AT_A_TIME and len(self.waiting) > len(self.hands)

    def _give(self, hand: Hand, unit: Unit) -> None:
        hand.units.add(unit)
        self.running.setdefault(unit, time.monotonic())
        self._expect(hand, unit, hand.actor.annotate.remote(unit))

    def _help_the_slow(self) -> None:
        """Gives units that take long to idle workers too. Their shards will be the same, whoever is first."""
        if not self.finished:
            return
        limit = time.monotonic() - SLOW * self.seconds / self.finished
        workers_of = Counter(unit for hand in self.hands for unit in hand.units)
        slow = [unit for unit, since in self.running.items() if since < limit and workers_of[unit] == 1]
        idle = [hand for hand in self.hands if hand.node is not None and not hand.units]
        for hand, unit in zip(idle, slow, strict=False):
            if unit not in self.strikes:
                LOG.info("unit %d takes long; a second worker begins it", unit.index)
                self._give(hand, unit)

    def _failed(self, hand: Hand, unit: Unit | None, error: BaseException) -> Outcome:
        cause = error.cause if isinstance(error, RayTaskError) else None
        if isinstance(cause, OutputError) or (unit is None and isinstance(cause, ValueError)):
            raise ValueError(shown(cause)) from error
        if not isinstance(cause, ValueError | SourceError):  # the worker or its device is gone, or not to be trusted
            self._dismiss(hand)
        if unit is None:
            self._count_failed_load(cause or error)
        if unit is None or unit not in self.unfinished or any(unit in other.units for other in self.hands):
            return None  # there is no unit, or another worker has done it or is still at it
        return self._give_up(unit, cause) if isinstance(cause, ValueError) else self._strike(hand, unit, cause or error)

    def _dismiss(self, hand: Hand) -> None:
        if hand in self.hands:
            self.hands.remove(hand)
            ray.kill(hand.actor)
            if hand.node is not None:  # else it died at its start: another one at once might do the same
                self.next_look = 0.0

    def _count_failed_load(self, error: BaseException) -> None:
        self.failed_loads += 1
        LOG.warning("a worker failed at its start: %s", shown(error))
        if self.failed_loads >= ATTEMPTS and not self.loaded:
            raise ValueError(f"{self.failed_loads} workers failed at their start, the last by: {shown(error)}")

    def _strike(self, hand: Hand, unit: Unit, error: BaseException) -> Outcome:
        """Gives a unit another try, or up; a lost node is not the unit's fault."""
        nodes = self.strikes.setdefault(unit, [])
        nodes.append(hand.node)
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        if sum(node in alive for node in nodes) >= ATTEMPTS or len(nodes) >= NODES_LOST:
            return self._give_up(unit, error)
        LOG.warning("unit %d failed, try %d: %s", unit.index, len(nodes), shown(error))
        self.waiting.append(unit)
        self.running.pop(unit, None)
        for other in list(self.hands):
            self._hand_out(other)
        return None

    def _give_up(self, unit: Unit, error: BaseException) -> Quarantined:
        tries = len(self.strikes.pop(unit, []))
        note = Quarantined(
            unit=unit.index,
            shard=shard_name(unit.index, self.run.units),
            file=unit.file.url,
            start=unit.start,
            stop=unit.stop,
            reason=shown(error) + (f" ({tries} tries)" if tries else ""),
        )
        self.unfinished.remove(unit)
        self.running.pop(unit, None)
        self.given_up += 1
        if not self.done + self.finished and self.given_up == min(HOPELESS, self.run.units):
            raise ValueError(f"no unit succeeds; {note}") from error
        quarantine(self.run.output, note)
        LOG.error("%s", note)
        return note


def shown(error: BaseException) -> str:
    """What happened, in one line without credentials; what Ray says below its first line is advice."""
    text = str(error).strip()
    return redacted(text.splitlines()[0] if isinstance(error, RayError) and text else " ".join(text.split()))
