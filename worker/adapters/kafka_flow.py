"""
Polls the partitions of one consumer, fairly and one by one.

Owns which partitions flow, and how far each was handed out. Each is polled with `timeout_ms=0`,
which never waits: so an error belongs to its partition, and records are returned in the step
in which they are taken. It waits for an arrival apart from that, and may be cancelled.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    CorruptRecordException,
    IllegalStateError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
    UnsupportedCodecError,
)

from worker.adapters import kafka_internals
from worker.adapters.kafka_client import record_of
from worker.core.model import Partition
from worker.ports import PolledBatch

_log = logging.getLogger(__name__)

Failed = Callable[[Partition, str], None]
"""Is told which partition cannot be polled, and why."""

_ARRIVAL_SECONDS = 0.2
# With nothing wanted only the caller can change that: it should be asked again soon.
_IDLE_SECONDS = 0.05
# One poll blocks the loop for 10 us a record of 4 KB: 8 times 64 records are 5 ms.
_PARTITIONS_PER_POLL = 8
_REASONS: dict[type[Exception], str] = {
    OffsetOutOfRangeError: "offset_out_of_range",
    CorruptRecordException: "corrupt_record",
    UnsupportedCodecError: "unsupported_codec",
    TopicAuthorizationFailedError: "not_authorized",
}


class Flow:
    """
    The partitions that are polled.

    Whoever owns it calls `stop` before a rebalance lets the library wait inside `getmany`.
    """

    def __init__(
        self, consumer: AIOKafkaConsumer, max_poll_records: int, failed: Failed
    ) -> None:
        self._consumer = consumer
        self._max_poll_records = max_poll_records
        self._failed = failed
        self._handed_out: dict[Partition, int] = {}
        self._flowing: set[Partition] = set()
        self._turn = 0

    def begin(self, partition: Partition, offset: int) -> bool:
        """Poll a partition from an offset on; False where the library has lost it already."""
        place = TopicPartition(*partition)
        try:
            self._consumer.seek(place, offset)
            self._consumer.resume(place)
        except IllegalStateError:
            return False
        self._handed_out[partition] = offset
        self._flowing.add(partition)
        return True

    def pause(self, partition: Partition) -> None:
        """Stop polling a partition; what was fetched of it is thrown away."""
        self._flowing.discard(partition)
        with contextlib.suppress(IllegalStateError):
            self._consumer.pause(TopicPartition(*partition))

    def stop(self) -> None:
        """Stop polling all partitions: they are not ours any more."""
        self._flowing.clear()
        self._handed_out.clear()

    def lag(self, partition: Partition) -> int | None:
        """Return how many offsets are stable and not handed out, None while unknown."""
        end = kafka_internals.stable_end(self._consumer, TopicPartition(*partition))
        if end is None or partition not in self._handed_out:
            return None
        return max(0, end - self._handed_out[partition])

    async def poll(self, wanted: Sequence[Partition]) -> list[PolledBatch]:
        """
        Return what has arrived for these partitions, waiting a short while for it.

        Raises:
            KafkaError: the client is of no use any more, or not allowed to go on.
        """
        batches = await self._round(wanted)
        if batches:
            return batches
        if self._flowing.intersection(wanted):
            await kafka_internals.arrival(self._consumer, _ARRIVAL_SECONDS)
        else:
            await asyncio.sleep(_IDLE_SECONDS)
        return await self._round(wanted)

    async def _round(self, wanted: Sequence[Partition]) -> list[PolledBatch]:
        flowing = [partition for partition in wanted if partition in self._flowing]
        if flowing:
            kafka_internals.check(self._consumer)
        budget = _PARTITIONS_PER_POLL * self._max_poll_records
        batches: list[PolledBatch] = []
        for partition in self._in_turn(flowing):
            batch = await self._take(partition)
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

    async def _take(self, partition: Partition) -> PolledBatch | None:
        place = TopicPartition(*partition)
        try:
            # Never waits: a rebalance would have emptied `_flowing` (see `stop`).
            polled = await self._consumer.getmany(
                place, timeout_ms=0, max_records=self._max_poll_records
            )
        except ConsumerStoppedError:
            return None
        except Exception as error:  # noqa: BLE001 - whatever the log of one partition holds
            self._fail(partition, error)
            return None
        position = kafka_internals.position(self._consumer, place)
        if position is None or position == self._handed_out[partition]:
            return None
        self._handed_out[partition] = position
        records = tuple(record_of(record) for record in polled.get(place, ()))
        return PolledBatch(partition, records, position)

    def _fail(self, partition: Partition, error: Exception) -> None:
        reason = _REASONS.get(type(error), type(error).__name__)
        _log.error("cannot poll %s: %s", partition, error)
        self.pause(partition)
        self._failed(partition, reason)
