"""
Kafka inside the process: logs, committed offsets and groups that rebalance eagerly.

Owns what a broker owns; `memory_kafka` has the ports on top of it. Means what Kafka means
where the worker depends on it: offsets with gaps (markers, compaction), reads out of range,
commits that are not fenced by partition, all members revoked before any is assigned.
Deterministic: no clock, no randomness, no task of its own; whoever waits is woken by a change,
so a test awaits facts and never sleeps.
"""

import asyncio
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from worker.core.model import Partition, Position, Record
from worker.errors import BrokerUnavailable
from worker.ports import BatchSpan

_HEADER_BYTES = 61

Headers = tuple[tuple[str, bytes | None], ...]


class Unreadable(LookupError):
    """The batch at this offset is broken."""


class Changes:
    """Wakes everybody who waits for something to become true."""

    def __init__(self) -> None:
        # A dict, not a set: its order is that of waiting, so runs repeat exactly.
        self._waiters: dict[asyncio.Future[None], None] = {}

    def announce(self) -> None:
        """Wake all who wait now."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def next(self, timeout_seconds: float | None = None) -> None:
        """Wait for the next change, or for a while."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await asyncio.wait({waiter}, timeout=timeout_seconds)
        finally:
            self._waiters.pop(waiter, None)

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait until something is true; returns at once where it is."""
        while not fact():
            await self.next()


@dataclass
class Log:
    """
    One partition: the records that are still there, and the offsets that there were.

        >>> log = Log()
        >>> log.append(Record(Position("t", 0, 0), 0, b"key", b"value"))
        >>> log.end += 2
        >>> [len(part) if isinstance(part, tuple) else part for part in log.read(0, 10)]
        [1, 3]
    """

    first: int = 0
    end: int = 0
    sick: str | None = None
    records: list[Record] = field(default_factory=list)
    broken: list[range] = field(default_factory=list)
    doubtful: list[range] = field(default_factory=list)

    def append(self, record: Record) -> None:
        """Add a record at its offset."""
        self.records.append(record)
        self.end = record.position.offset + 1

    def read(self, offset: int, limit: int) -> tuple[tuple[Record, ...], int]:
        """
        Return up to `limit` records from an offset on, and the position after them.

        Raises:
            Unreadable: the batch at the offset is broken.
            LookupError: it cannot be read; the argument is the reason.
        """
        if self.sick is not None:
            raise LookupError(self.sick)
        if not self.first <= offset <= self.end:
            raise LookupError("offset_out_of_range")
        if self._broken_at(offset) is not None:
            raise Unreadable("corrupt_record")
        starts = (batch.start for batch in self.broken if batch.start > offset)
        end = min(starts, default=self.end)
        start, stop = self._index(offset), self._index(end)
        records = tuple(self.records[start : min(start + limit, stop)])
        if start + limit < stop:
            return records, records[-1].position.offset + 1
        return records, end

    def at(self, offset: int) -> Record | None:
        """Return the record at exactly this offset, None where it is gone or broken."""
        if self._broken_at(offset) is not None:
            return None
        for record in self.records[self._index(offset) :][:1]:
            if record.position.offset == offset:
                return record
        return None

    def spoil(self, first: int, last: int, *, doubtful: bool = False) -> None:
        """Make these offsets one batch that cannot be read, nor perhaps its header believed."""
        self.broken.append(range(first, last + 1))
        if doubtful:
            self.doubtful.append(self.broken[-1])

    def span(self, offset: int) -> BatchSpan | None:
        """
        Return the batch at an offset or behind it; a batch is a record unless spoilt.

        Raises:
            Unreadable: its header is not to be believed.
        """
        for record in self.records[self._index(max(offset, self.first)) :][:1]:
            at = record.position.offset
            return self._span(self._broken_at(at) or range(at, at + 1))
        return None

    def _span(self, batch: range) -> BatchSpan:
        if batch in self.doubtful:
            raise Unreadable(f"the header at offset {batch.start} is not to be believed")
        records = self.records[self._index(batch.start) : self._index(batch.stop)]
        return BatchSpan(
            first=batch.start,
            last=batch.stop - 1,
            records=len(records),
            size_bytes=_HEADER_BYTES + sum(record.size_bytes for record in records),
            codec="none",
            timestamp_ms=max(record.timestamp_ms for record in records),
        )

    def _broken_at(self, offset: int) -> range | None:
        return next((batch for batch in self.broken if offset in batch), None)

    def remove(self, offsets: Iterable[int]) -> None:
        """Remove records as compaction does: their offsets stay in use."""
        gone = set(offsets)
        self.records = [kept for kept in self.records if kept.position.offset not in gone]

    def truncate(self, first: int) -> None:
        """Remove what is below an offset, as retention does."""
        self.first = first
        self.records = self.records[self._index(first) :]

    def _index(self, offset: int) -> int:
        return bisect_left(self.records, offset, key=lambda record: record.position.offset)


class Group:
    """
    The members of one consumer group, and who has what.

    A round begins whenever a member enters or leaves; every member gives up what it has and
    joins the round; when all have, the partitions are shared out and the round is over.
    """

    def __init__(self, changes: Changes) -> None:
        self.members: list[object] = []
        self.round = 0
        self.shares: dict[object, frozenset[Partition]] = {}
        self._changes = changes
        self._joined: set[object] = set()
        self._finished = 0

    @property
    def is_stable(self) -> bool:
        """Whether every member has what it is going to have."""
        return self._finished == self.round

    def begin_round(self) -> None:
        """Ask all members to give up what they have and to join again."""
        self.round += 1
        self._joined.clear()
        self._changes.announce()

    async def join(self, member: object, partitions: Callable[[], list[Partition]]) -> int:
        """Join the round that is under way (entering where needed); returns once it is over."""
        while True:
            if member not in self.members:
                self.members.append(member)
                self.begin_round()
            self._joined.add(member)
            if not self.is_stable and self._joined.issuperset(self.members):
                self._share_out(partitions())
            if self.is_stable:
                return self.round
            await self._changes.next()

    def leave(self, member: object) -> None:
        """Take a member out; the others share what it had."""
        if member in self.members:
            self.members.remove(member)
            self.begin_round()

    def _share_out(self, partitions: list[Partition]) -> None:
        count = len(self.members)
        self.shares = {
            member: frozenset(partitions[index::count])
            for index, member in enumerate(self.members)
        }
        self._finished = self.round
        self._changes.announce()


class MemoryBroker:
    """
    A broker with topics, groups and committed offsets, and faults to order.

        >>> broker = MemoryBroker()
        >>> broker.create_topic("documents", partitions=2)
        >>> broker.append("documents", 1, key=b"a", value=b"1")
        0
        >>> broker.append("documents", 1, key=b"a", value=b"2", gap=3)
        4
        >>> broker.log(Partition("documents", 1)).end
        5
    """

    def __init__(self) -> None:
        self.changes = Changes()
        self.down = False
        self.committed: dict[tuple[str, Partition], int] = {}
        self.topic_ids: dict[str, UUID] = {}
        self._topics_created = 0
        self._logs: dict[Partition, Log] = {}
        self._groups: dict[str, Group] = {}
        self._faults: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._held: list[tuple[str, dict[Partition, int]]] | None = None

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        """Create a topic, or create it anew, empty and with another id."""
        self._topics_created += 1
        self.topic_ids[topic] = UUID(int=self._topics_created)
        for number in range(partitions):
            self._logs[Partition(topic, number)] = Log()
        self.changes.announce()

    def append(
        self,
        topic: str,
        partition: int = 0,
        *,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        timestamp_ms: int = 0,
        gap: int = 0,
    ) -> int:
        """Append a record after a gap of offsets that hold none; returns its offset."""
        log = self.log(Partition(topic, partition))
        position = Position(topic, partition, log.end + gap)
        log.append(Record(position, timestamp_ms, key, value, headers))
        self.changes.announce()
        return position.offset

    def skip(self, topic: str, partition: int = 0, count: int = 1) -> None:
        """Let the log end in offsets that hold no record, as transaction markers do."""
        self.log(Partition(topic, partition)).end += count
        self.changes.announce()

    def log(self, partition: Partition) -> Log:
        """
        Return the log of a partition, to look at or to damage.

        Raises:
            BrokerUnavailable: there is no such partition.
        """
        if partition not in self._logs:
            raise BrokerUnavailable(f"there is no partition {partition}")
        return self._logs[partition]

    def partitions(self, topics: Iterable[str]) -> list[Partition]:
        """Return all partitions of some topics, in order."""
        wanted = set(topics)
        return sorted(partition for partition in self._logs if partition.topic in wanted)

    def group(self, name: str) -> Group:
        """Return a group, which exists as soon as it is named."""
        return self._groups.setdefault(name, Group(self.changes))

    def expel(self, member: object) -> None:
        """Put a member out of its group; it learns that when it next speaks to the broker."""
        for group in self._groups.values():
            group.leave(member)

    def stop(self) -> None:
        """Be unreachable: every call fails, and nothing arrives."""
        self.down = True

    def start(self) -> None:
        """Be back, with everything as it was."""
        self.down = False
        self.changes.announce()

    def fail(self, call: str, *errors: Exception) -> None:
        """Let the next calls of that name (`poll`, `commit`, `publish` ...) raise these."""
        self._faults[call].extend(errors or (BrokerUnavailable(),))

    def check(self, call: str) -> None:
        """Raise what was ordered for a call, or that the broker is down."""
        if self._faults[call]:
            raise self._faults[call].popleft()
        if self.down:
            raise BrokerUnavailable

    def hold_commits(self) -> None:
        """Let commits time out from now on; `apply_held_commits` lets them arrive, late."""
        self._held = self._held or []

    def apply_held_commits(self) -> None:
        """Apply what was held, and hold no longer."""
        held, self._held = self._held or [], None
        for group, offsets in held:
            self.commit(group, offsets)

    def commit(self, group: str, offsets: Mapping[Partition, int]) -> None:
        """Store offsets as Kafka does: whoever sends them, and lower ones too."""
        if self._held is not None:
            self._held.append((group, dict(offsets)))
            raise BrokerUnavailable("the commit timed out")
        for partition, offset in offsets.items():
            self.committed[group, partition] = offset
        self.changes.announce()

    async def committed_at(self, group: str, partition: Partition, offset: int) -> None:
        """Wait until a group has committed this offset or a later one."""
        await self.changes.until(lambda: self.committed.get((group, partition), -1) >= offset)

    async def stable_at(self, group: str, members: int) -> None:
        """Wait until a group has so many members and no rebalance under way."""
        known = self.group(group)
        await self.changes.until(lambda: known.is_stable and len(known.members) == members)
