"""
Polls the partitions of one consumer, fairly and one by one.

Owns which partitions flow, and how far each was handed out. Each is polled with `timeout_ms=0`,
which never waits: so an error belongs to its partition, and records are returned in the step
in which they are taken. It waits for an arrival apart from that, and may be cancelled.

A batch that cannot be read is fetched again, for the bytes may have been broken on the way:
three times in all, with waits in which the other partitions go on. An exception out of the
library takes the records before it along, so from then on records are taken one by one until
the trouble is behind: what is before the batch is handed out, and the offset is exact.
"""

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    CorruptRecordException,
    IllegalStateError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from worker.adapters import kafka_internals
from worker.adapters.kafka_client import record_of
from worker.adapters.kafka_errors import is_unreadable, summary
from worker.core.model import Partition, Record
from worker.ports import Assignments, PolledBatch

_log = logging.getLogger(__name__)

_ARRIVAL_SECONDS = 0.2
# With nothing wanted only the caller can change that: it should be asked again soon.
_IDLE_SECONDS = 0.05
# One poll blocks the loop for 10 us a record of 4 KB: 8 times 64 records are 5 ms.
_PARTITIONS_PER_POLL = 8
# Before the second and the third try: what a network or a disk breaks in passing is whole again
# at once, a replica that is repaired or replaced within seconds.
_AGAIN_SECONDS = (0.5, 2.0)
_REASONS: dict[type[Exception], str] = {
    OffsetOutOfRangeError: "offset_out_of_range",
    NoOffsetForPartitionError: "no_offset",
    TopicAuthorizationFailedError: "not_authorized",
}


@dataclass(slots=True)
class _Trouble:
    """Where a partition could not be read, how often, and when it is fetched again."""

    offset: int
    tries: int = 0
    again_at: float | None = None


class Flow:
    """
    The partitions that are polled.

    Whoever owns it calls `stop` before a rebalance lets the library wait inside `getmany`.
    """

    def __init__(
        self, consumer: AIOKafkaConsumer, max_poll_records: int, told: Assignments
    ) -> None:
        self._consumer = consumer
        self._max_poll_records = max_poll_records
        self._told = told
        self._handed_out: dict[Partition, int] = {}
        self._flowing: set[Partition] = set()
        self._troubles: dict[Partition, _Trouble] = {}
        self._turn = 0

    def begin(self, partition: Partition, offset: int) -> bool:
        """Poll a partition from an offset on; False where the library has lost it already."""
        place = TopicPartition(*partition)
        try:
            self._consumer.seek(place, offset)
            self._consumer.resume(place)
        except IllegalStateError:
            return False
        self._troubles.pop(partition, None)
        self._handed_out[partition] = offset
        self._flowing.add(partition)
        return True

    def pause(self, partition: Partition) -> None:
        """Stop polling a partition; what was fetched of it is thrown away."""
        self._troubles.pop(partition, None)
        self._rest(partition)

    def stop(self) -> None:
        """Stop polling all partitions: they are not ours any more."""
        self._troubles.clear()
        self._flowing.clear()
        self._handed_out.clear()

    def lag(self, partition: Partition, since: int | None) -> int | None:
        """Return how many offsets are stable and not handed out, or at `since` or above."""
        end = kafka_internals.stable_end(self._consumer, TopicPartition(*partition))
        if end is None or partition not in self._handed_out:
            return None
        return max(0, end - (self._handed_out[partition] if since is None else since))

    async def poll(
        self, wanted: Sequence[Partition], singly: Collection[Partition] = frozenset()
    ) -> list[PolledBatch]:
        """
        Return what has arrived for these partitions, waiting a short while for it.

        Raises:
            KafkaError: the client is of no use any more, or not allowed to go on.
        """
        self._try_again()
        batches = await self._round(wanted, singly)
        if batches:
            return batches
        if self._flowing.intersection(wanted):
            await kafka_internals.arrival(self._consumer, _ARRIVAL_SECONDS)
        else:
            await asyncio.sleep(_IDLE_SECONDS)
        return await self._round(wanted, singly)

    async def _round(
        self, wanted: Sequence[Partition], singly: Collection[Partition]
    ) -> list[PolledBatch]:
        flowing = [partition for partition in wanted if partition in self._flowing]
        if flowing:
            kafka_internals.check(self._consumer)
        budget = _PARTITIONS_PER_POLL * self._max_poll_records
        batches: list[PolledBatch] = []
        for partition in self._in_turn(flowing):
            batch = await self._take(
                partition, 1 if partition in singly else self._max_poll_records
            )
            if batch is not None:
                batches.append(batch)
                budget -= len(batch.records)
            if budget <= 0:
                break
        return batches

    def _in_turn(self, flowing: Sequence[Partition]) -> Iterator[Partition]:
        # The next round begins behind the last partition of this one.
        for _ in flowing:
            self._turn += 1
            yield flowing[self._turn % len(flowing)]

    async def _take(self, partition: Partition, limit: int) -> PolledBatch | None:
        """Return up to `limit` records; of a partition in trouble one by one."""
        start = self._handed_out[partition]
        step = 1 if partition in self._troubles else limit
        records: list[Record] = []
        try:
            for _ in range(0, limit, step):
                if not await self._step(partition, step, records):
                    break
        except ConsumerStoppedError:
            pass
        except Exception as error:  # noqa: BLE001 - whatever the log of one partition holds
            self._stumble(partition, error)
        position = self._handed_out[partition]
        return None if position == start else PolledBatch(partition, tuple(records), position)

    async def _step(self, partition: Partition, limit: int, records: list[Record]) -> bool:
        """Take up to `limit` records; tells whether anything came, and may yet come."""
        place = TopicPartition(*partition)
        # Never waits: a rebalance would have emptied `_flowing` (see `stop`).
        polled = await self._consumer.getmany(place, timeout_ms=0, max_records=limit)
        position = kafka_internals.position(self._consumer, place)
        if position is None or position == self._handed_out[partition]:
            return False
        if position < self._handed_out[partition]:
            # No checksum covers the base offset of a batch. Followed, it would hand out twice.
            raise CorruptRecordException(f"the log goes back to offset {position}")
        records.extend(record_of(record) for record in polled.get(place, ()))
        self._handed_out[partition] = position
        trouble = self._troubles.get(partition)
        if trouble is not None and position > trouble.offset:
            del self._troubles[partition]
        return True

    def _stumble(self, partition: Partition, error: Exception) -> None:
        if not is_unreadable(error):
            self._fail(partition, error)
            return
        offset = self._handed_out[partition]
        reached = kafka_internals.read_up_to(self._consumer, TopicPartition(*partition))
        trouble = self._troubles.get(partition)
        if reached is not None and reached > offset:
            if trouble is None:
                # The records up to there are lost with the exception: fetch them once more.
                self._troubles[partition] = _Trouble(reached, tries=1)
                self._seek(partition, offset)
                return
            # One by one, it was markers and compacted records only.
            offset = self._handed_out[partition] = reached
        if trouble is None or trouble.offset != offset:
            trouble = self._troubles[partition] = _Trouble(offset)
        self._count(partition, trouble, error)

    def _count(self, partition: Partition, trouble: _Trouble, error: Exception) -> None:
        """Let it rest and be tried again, or give the batch up."""
        _log.warning("cannot read %s at offset %d: %s", partition, trouble.offset, error)
        if trouble.tries == len(_AGAIN_SECONDS):
            self.pause(partition)
            self._told.unreadable(partition, trouble.offset, summary(error))
            return
        now = asyncio.get_running_loop().time()
        trouble.again_at = now + _AGAIN_SECONDS[trouble.tries]
        trouble.tries += 1
        self._rest(partition)

    def _try_again(self) -> None:
        """Fetch anew what has rested for long enough."""
        now = asyncio.get_running_loop().time()
        for partition, trouble in list(self._troubles.items()):
            if trouble.again_at is not None and trouble.again_at <= now:
                trouble.again_at = None
                self._seek(partition, trouble.offset)
                self._flowing.add(partition)

    def _seek(self, partition: Partition, offset: int) -> None:
        place = TopicPartition(*partition)
        # Else it is not ours any more, and nothing of it is to be had.
        with contextlib.suppress(IllegalStateError):
            self._consumer.seek(place, offset)
            self._consumer.resume(place)

    def _rest(self, partition: Partition) -> None:
        # A pause throws away what was fetched, so what comes after it was fetched anew.
        self._flowing.discard(partition)
        with contextlib.suppress(IllegalStateError):
            self._consumer.pause(TopicPartition(*partition))

    def _fail(self, partition: Partition, error: Exception) -> None:
        reason = _REASONS.get(type(error), type(error).__name__)
        _log.error("cannot poll %s: %s", partition, error)
        self.pause(partition)
        self._told.failed(partition, reason)
