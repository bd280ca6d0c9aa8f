"""
The life of one assigned partition, and where it starts.

Owns the phase (claiming, running, draining, fenced, held, halted, ended), the claim, the offset
tracker and the guards of one assignment. A tracker dies with its claim, so an old task can
never complete an offset of a new one (protocol, section 3). Never waits, never commits, never
reads a clock.

Invariants: only an outcome that `COMPLETES` says yes to completes an offset, and only under
the claim it was tracked with; every offset that `progress` names is covered by a committed
row, a row that superseded it, or the ledger.
"""

from collections.abc import Iterator
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from worker.core.flood import FloodGuard
from worker.core.isolation import Isolation
from worker.core.model import (
    Claim,
    DeadLettered,
    Deleted,
    Landmark,
    Outcome,
    Partition,
    Progress,
    Record,
    Released,
    Stored,
    Superseded,
    Unchanged,
    Work,
)
from worker.core.offsets import OffsetTracker

# Everything that Kafka is told rests on this table (protocol, change 5). DeadLettered is an
# outcome only after its letter was acknowledged and its ledger row marked.
COMPLETES: dict[type[Outcome], bool] = {
    Stored: True,
    Deleted: True,
    Unchanged: True,
    Superseded: True,
    DeadLettered: True,
    Released: False,
}


class Phase(Enum):
    """What a partition of ours is doing."""

    CLAIMING = "claiming"
    RUNNING = "running"
    DRAINING = "draining"
    FENCED = "fenced"
    HELD = "held"
    HALTED = "halted"
    ENDED = "ended"


_OWNING = (Phase.RUNNING, Phase.DRAINING, Phase.HELD)


class PartitionLife:
    """
    One partition from its assignment to its end.

    `isolation` is set while it runs one record at a time, `flood` while it has a guard,
    `gives_up` while a batch that cannot be read is given up.

        >>> from tests.support.works import claim, upsert
        >>> life = PartitionLife(claim().partition, assignment=1)
        >>> life.start(claim(), offset=0)
        >>> work = upsert("a", offset=0)
        >>> life.track(work.record, at=0)
        >>> life.end_work(work, Released())
        >>> life.progress.next_offset
        0
        >>> life.end_work(work, Stored())
        >>> life.progress.next_offset
        1
    """

    def __init__(self, partition: Partition, assignment: int) -> None:
        self.partition = partition
        self.assignment = assignment
        self.phase = Phase.CLAIMING
        self.claim: Claim | None = None
        self.problem: str | None = None
        self.flood: FloodGuard | None = None
        self.isolation: Isolation | None = None
        self.gives_up = False
        self._tracker = OffsetTracker(0)
        self._landmark: Landmark | None = None

    def start(
        self,
        claim: Claim,
        offset: int,
        *,
        flood: FloodGuard | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        """Begin to run under a fresh claim, with an empty tracker."""
        assert self.phase is not Phase.ENDED, "an ended assignment never comes back"
        self.claim = claim
        self.flood = flood
        self.isolation = isolation
        self.problem = None
        self.gives_up = False
        self._tracker = OffsetTracker(offset)
        self._landmark = claim.landmark
        self.phase = Phase.RUNNING

    def is_claiming(self) -> bool:
        """Tell whether the assignment still waits for its claim."""
        return self.phase is Phase.CLAIMING

    def runs(self, claim: Claim) -> bool:
        """Tell whether new works may begin under this claim."""
        return claim == self.claim and self.phase is Phase.RUNNING

    def owns(self, claim: Claim) -> bool:
        """Tell whether this is the claim the partition works under now."""
        return claim == self.claim and self.phase in _OWNING

    def track(self, record: Record, at: float) -> None:
        """Take a record in flight that was polled at this time."""
        self._tracker.track(record.position.offset, at)

    def advance(self, next_offset: int) -> None:
        """Take note that the poll task has tracked everything below this offset."""
        self._tracker.advance(next_offset)

    def end_work(self, work: Work, outcome: Outcome) -> None:
        """Complete a work's offset where its outcome does, and only under its own claim."""
        if not COMPLETES[type(outcome)] or not self.owns(work.claim):
            return
        offset = work.position.offset
        self._tracker.complete(offset)
        # A pointer to a batch that cannot be read: nobody could compare it with the log.
        is_pointer = work.record.key is None and work.record.value is None
        if offset < self._tracker.committable and not is_pointer:
            self._landmark = landmark(work.record)

    def drain(self) -> None:
        """Stop taking records in; what is in flight may still complete."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINING

    def fence(self, claim: Claim) -> bool:
        """Drop the claim where it is still ours; tell whether it was."""
        if not self.owns(claim):
            return False
        self.phase = Phase.FENCED
        return True

    def hold(self, problem: str) -> None:
        """Poll nothing more for a while, and say why; what is in flight may still complete."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.HELD
            self.problem = problem

    def halt(self, problem: str) -> None:
        """Stop for good until an operator has acted, and say why."""
        self.phase = Phase.HALTED
        self.problem = problem

    def end(self) -> None:
        """End with the assignment."""
        self.phase = Phase.ENDED

    @property
    def progress(self) -> Progress:
        """How far the partition is done, as it may be told to the table and to Kafka."""
        return Progress(self._tracker.committable, self._landmark)

    @property
    def handed_out(self) -> int:
        """The offset behind all that was polled."""
        return self._tracker.handed_out

    @property
    def room(self) -> int | None:
        """How many records may be polled; None: any number."""
        if self.gives_up:
            return 0
        room = None if self.flood is None else self.flood.room
        return room if self.isolation is None or room == 0 else 1

    @property
    def in_flight(self) -> int:
        """How many records are tracked and not settled."""
        return self._tracker.in_flight

    @property
    def oldest_at(self) -> float | None:
        """When the oldest record in flight was polled; a partition that stands has none."""
        is_working = self.phase in (Phase.RUNNING, Phase.DRAINING)
        return self._tracker.oldest_at if is_working else None

    def has_in_flight(self, offset: int) -> bool:
        """Tell whether a record is tracked and not settled."""
        return self._tracker.has(offset)

    @property
    def settled(self) -> int:
        """How many records were settled under this claim."""
        return self._tracker.settled


class Lives:
    """The partitions that are assigned to this worker now, and their lives."""

    def __init__(self) -> None:
        self._lives: dict[Partition, PartitionLife] = {}

    def __iter__(self) -> Iterator[PartitionLife]:
        """Yield all lives, in the order of assignment."""
        return iter(list(self._lives.values()))

    def begin(self, life: PartitionLife) -> None:
        """Take in a new assignment; the one before it has ended."""
        self.end(life.partition)
        self._lives[life.partition] = life

    def end(self, partition: Partition) -> None:
        """End an assignment, if there is one."""
        if (life := self._lives.pop(partition, None)) is not None:
            life.end()

    def find(self, partition: Partition) -> PartitionLife | None:
        """Return the life of a partition that is assigned now."""
        return self._lives.get(partition)

    def under(self, claim: Claim) -> PartitionLife | None:
        """Return the life that works under exactly this claim."""
        life = self._lives.get(claim.partition)
        return life if life is not None and life.owns(claim) else None

    def is_ending(self, claim: Claim) -> bool:
        """Tell whether what has not begun under this claim should be left to its next owner."""
        life = self._lives.get(claim.partition)
        return life is None or not life.runs(claim)

    def in_phase(self, phase: Phase) -> list[PartitionLife]:
        """Return the lives in a phase."""
        return [life for life in self._lives.values() if life.phase is phase]


class Start(NamedTuple):
    """Where to start; `alarm` is what an operator should know about it."""

    offset: int
    alarm: str | None = None


class Halt(NamedTuple):
    """Why a partition cannot start before an operator has acted."""

    problem: str


def other_topic(known: UUID | None, seen: UUID | None) -> Halt | None:
    """Halt where the table was filled from another topic; where an id is missing, go on."""
    if None in (known, seen) or known == seen:
        return None
    return Halt(
        f"the topic was re-created: its id is {seen}, and the table was filled from {known}"
    )


def landmark(record: Record) -> Landmark:
    """Return what a record is recognised by."""
    digest = blake2b(record.key or b"", digest_size=8).digest()
    return Landmark(record.position.offset, record.timestamp_ms, digest)


def decide_start(
    committed: int | None, next_offset: int | None, bounds: tuple[int, int]
) -> Start | Halt:
    """
    Decide where a claimed partition starts: the smaller of Kafka's offset and the table's.

    No `next_offset` means that this table has seen nothing: the earliest record. `bounds` are
    the first offset that is still there and the end of the log.
    """
    first, end = bounds
    if next_offset is None:
        return Start(first, _unknown(committed, first))
    if next_offset > end:
        return Halt(
            f"the table is done up to offset {next_offset}, but the log ends at {end}: "
            "the topic was re-created"
        )
    if next_offset < first:
        return Halt(
            f"the table is done up to offset {next_offset}, but the log begins at {first}: "
            f"retention removed {first - next_offset} records that were never read"
        )
    if committed is None or committed == next_offset:
        return Start(next_offset)
    if committed > next_offset:
        return Start(
            next_offset,
            f"Kafka's committed offset {committed} is ahead of the table's {next_offset}: "
            "the database was restored, or the group reset forward; starting at the table's",
        )
    return Start(max(committed, first))


def _unknown(committed: int | None, first: int) -> str | None:
    """Return what is strange about a table that has seen nothing of a partition."""
    if committed is None or committed <= first:
        return None
    return (
        f"Kafka's committed offset is {committed}, but this table has seen nothing: it is "
        f"another one than before, or has lost its progress; starting at {first}"
    )
