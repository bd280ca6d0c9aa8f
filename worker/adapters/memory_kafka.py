"""
The ports `Source` and `DeadLetters` on a broker in memory.

Owns the positions of one member and the task that joins its group, as aiokafka's coordinator
does: `revoked` runs there, beside `poll`, never inside it. Records that were taken are
returned in the same step; nothing is polled before `begin`.
"""

import asyncio
import contextlib
from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from schemas.dead_letter import Reason
from worker.adapters.dead_letter_headers import headers_of
from worker.adapters.memory_broker import Group, MemoryBroker, Unreadable
from worker.core.lifecycle import landmark
from worker.core.model import Landmark, Partition
from worker.errors import BrokerUnavailable, FencedError, PermanentError
from worker.ports import Assignments, BatchSpan, DeadLetter, PolledBatch, Recorded

__all__ = ["MemoryBroker", "MemoryDeadLetters", "MemorySource"]

_POLL_SECONDS = 0.2


class MemorySource:
    """
    A member of a consumer group on a `MemoryBroker`.

    Tell the broker's `expel` about it by the object itself.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        group: str,
        *,
        topics: Sequence[str] = ("documents",),
        max_poll_records: int = 64,
    ) -> None:
        self._broker = broker
        self._group_name = group
        self._topics = tuple(topics)
        self._max_poll_records = max_poll_records
        self._number = 0
        self._round = 0
        self._holds = False
        self._knows_expulsion = False
        self._partitions: frozenset[Partition] = frozenset()
        self._positions: dict[Partition, int] = {}
        self._flowing: set[Partition] = set()
        self._turn = 0
        self._failure: Exception | None = None
        self._coordination: asyncio.Task[None] | None = None

    async def open(self, assignments: Assignments) -> None:
        """Join the group; returns when joined."""
        await asyncio.sleep(0)
        self._broker.check("open")
        self._assignments = assignments
        # As aiokafka's coordinator: a task of its own, so that a drain does not stop `poll`.
        self._coordination = asyncio.create_task(self._coordinate())  # noqa: TID251
        try:
            await self._broker.changes.until(lambda: self._number > 0)
        except BaseException:
            await self.close()
            raise

    async def poll(
        self, wanted: Sequence[Partition], singly: Collection[Partition] = frozenset()
    ) -> list[PolledBatch]:
        """Return what has arrived, in fair order, waiting for the next change at most."""
        await asyncio.sleep(0)
        self._notice_expulsion()
        if self._failure is not None:
            raise self._failure
        if not self._broker.down:
            self._broker.check("poll")
        batches = self._take(wanted, singly)
        if not batches:
            await self._broker.changes.next(_POLL_SECONDS)
            batches = self._take(wanted, singly)
        return batches

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's committed offset, None where there is none."""
        await asyncio.sleep(0)
        self._check("committed")
        return self._broker.committed.get((self._group_name, partition))

    async def bounds(self, partition: Partition) -> tuple[int, int]:
        """Return the first offset that is still there and the end."""
        await asyncio.sleep(0)
        self._check("bounds")
        log = self._broker.log(partition)
        return log.first, log.end

    async def landmark(self, partition: Partition, offset: int) -> Landmark | None:
        """Return the landmark of the record at exactly this offset, None where it is gone."""
        await asyncio.sleep(0)
        self._check("landmark")
        record = self._broker.log(partition).at(offset)
        return None if record is None else landmark(record)

    async def topic_ids(self) -> Mapping[str, UUID]:
        """Return the ids of our topics."""
        await asyncio.sleep(0)
        self._check("topic_ids")
        ids = self._broker.topic_ids
        return {topic: ids[topic] for topic in self._topics if topic in ids}

    async def batch(self, partition: Partition, offset: int) -> BatchSpan | None:
        """
        Return the span of the batch that holds this offset, or of the first one behind.

        Raises:
            PermanentError: it was spoilt so that its span is doubtful.
        """
        await asyncio.sleep(0)
        self._check("batch")
        try:
            return self._broker.log(partition).span(offset)
        except Unreadable as error:
            raise PermanentError(Reason.UNREADABLE_BATCH, str(error)) from error

    def begin(self, assignment: int, partition: Partition, offset: int) -> bool:
        """Start polling at an offset; False where the assignment is not the newest."""
        if not (self._holds and assignment == self._number and partition in self._partitions):
            return False
        self._positions[partition] = offset
        self._flowing.add(partition)
        self._broker.changes.announce()
        return True

    def pause(self, partition: Partition) -> None:
        """Stop polling a partition until `begin`."""
        self._flowing.discard(partition)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Tell the group what is done; partitions that are not ours are left out."""
        await asyncio.sleep(0)
        self._check("commit")
        self._notice_expulsion()
        if self not in self._group.members:
            raise FencedError("this member is not in the group")
        mine = {
            partition: offset
            for partition, offset in offsets.items()
            if partition in self._partitions
        }
        self._broker.commit(self._group_name, mine)

    async def confirm(self) -> tuple[int, frozenset[Partition]]:
        """Return assignment and partitions, where the group still says so."""
        await asyncio.sleep(0)
        self._check("confirm")
        self._notice_expulsion()
        if not self._holds or self._must_rejoin:
            raise BrokerUnavailable("the group is rebalancing")
        return self._number, self._partitions

    def lag(self, partition: Partition, since: int | None = None) -> int | None:
        """Return how many offsets were not polled, or stand at `since` or above."""
        if partition not in self._positions:
            return None
        offset = self._positions[partition] if since is None else since
        return max(0, self._broker.log(partition).end - offset)

    async def close(self) -> None:
        """Leave the group."""
        task, self._coordination = self._coordination, None
        if task is None:
            return
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self._holds = False
        self._partitions = frozenset()
        self._flowing.clear()
        self._group.leave(self)

    def _check(self, call: str) -> None:
        if self._coordination is None:
            raise BrokerUnavailable("the source is closed")
        self._broker.check(call)

    @property
    def _group(self) -> Group:
        return self._broker.group(self._group_name)

    @property
    def _must_rejoin(self) -> bool:
        if self in self._group.members:
            return self._round != self._group.round
        return self._number == 0 or self._knows_expulsion

    async def _coordinate(self) -> None:
        while True:
            await self._broker.changes.until(lambda: self._must_rejoin)
            await self._give_up()
            self._round = await self._group.join(
                self, lambda: self._broker.partitions(self._topics)
            )
            self._take_over(self._group.shares[self])

    async def _give_up(self) -> None:
        self._holds = False
        self._flowing.clear()
        self._positions.clear()
        if not self._partitions:
            return
        try:
            await self._assignments.revoked()
        except Exception as error:  # noqa: BLE001 - as the client does: it ends the next poll
            self._failure = error

    def _take_over(self, partitions: frozenset[Partition]) -> None:
        self._number += 1
        self._partitions = partitions
        self._holds = True
        self._knows_expulsion = False
        try:
            self._assignments.assigned(self._number, partitions)
        except Exception as error:  # noqa: BLE001 - as the client does: it ends the next poll
            self._failure = error
        self._broker.changes.announce()

    def _notice_expulsion(self) -> None:
        if self._holds and not self._knows_expulsion and self not in self._group.members:
            self._knows_expulsion = True
            self._broker.changes.announce()

    def _take(
        self, wanted: Sequence[Partition], singly: Collection[Partition]
    ) -> list[PolledBatch]:
        if self._broker.down or not self._holds or self._knows_expulsion:
            return []
        flowing = [partition for partition in wanted if partition in self._flowing]
        self._turn += 1
        start = self._turn % len(flowing) if flowing else 0
        taken = (
            self._read(partition, 1 if partition in singly else self._max_poll_records)
            for partition in flowing[start:] + flowing[:start]
        )
        return [batch for batch in taken if batch is not None]

    def _read(self, partition: Partition, limit: int) -> PolledBatch | None:
        position = self._positions[partition]
        try:
            records, following = self._broker.log(partition).read(position, limit)
        except Unreadable as error:
            self.pause(partition)
            self._assignments.unreadable(partition, position, str(error.args[0]))
            return None
        except LookupError as error:
            self.pause(partition)
            self._assignments.failed(partition, str(error.args[0]))
            return None
        if following == position:
            return None
        self._positions[partition] = following
        return PolledBatch(partition, records, following)


class MemoryDeadLetters:
    """
    A dead-letter topic on a `MemoryBroker`; `letters` are those it acknowledged.

    A call that `MemoryBroker.fail("publish acknowledgement")` was ordered for is written and
    then reported as failed, as a broker does that dies before it answers.
    """

    def __init__(self, broker: MemoryBroker, topic: str = "documents.dead-letters") -> None:
        self._broker = broker
        self._topic = topic
        self.letters: list[DeadLetter] = []

    async def publish(self, letter: DeadLetter, recorded: Recorded) -> None:
        """Append one letter to the topic."""
        await asyncio.sleep(0)
        self._broker.check("publish")
        record = letter.record
        self._broker.append(
            self._topic,
            key=record.key,
            value=record.value,
            headers=tuple(headers_of(letter, recorded)),
            timestamp_ms=record.timestamp_ms,
        )
        self._broker.check("publish acknowledgement")
        self.letters.append(letter)

    async def close(self) -> None:
        """Release nothing: there is no connection."""
