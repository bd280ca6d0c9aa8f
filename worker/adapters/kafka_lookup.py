"""
Looks single places of the log up, beside the group.

Owns a second consumer without a group, made when it is needed and closed when nobody waits any
more: a claim asks about a few partitions at once, and then for hours nobody does.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException

from schemas.dead_letter import Reason
from worker.adapters import kafka_internals
from worker.adapters.kafka_batches import Doubtful, find_span
from worker.adapters.kafka_client import client_arguments, milliseconds, record_of
from worker.adapters.kafka_errors import is_unreadable
from worker.config import KafkaOptions
from worker.core.lifecycle import landmark
from worker.core.model import Landmark, Partition
from worker.errors import PermanentError
from worker.ports import BatchSpan

_WAIT_SECONDS = 0.2
# The broker answers with one whole batch at least, however large; more is not wanted.
_FETCH_BYTES = 1024


class Lookup:
    """Answers what the log holds at an offset. The caller bounds the time."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._waiting = 0
        self._turn = asyncio.Lock()
        self._consumer: AIOKafkaConsumer | None = None

    async def landmark(self, partition: Partition, offset: int) -> Landmark | None:
        """
        Return the landmark of the record at this offset below the end.

        None where it is gone, or its batch cannot be read any more.
        """
        async with self._connected() as consumer:
            return await _look_up(consumer, TopicPartition(*partition), offset)

    async def batch(
        self, partition: Partition, offset: int, bounds: tuple[int, int]
    ) -> BatchSpan | None:
        """
        Return the span of the batch that holds an offset between the bounds, or the next one.

        Raises:
            PermanentError: what stands there is no batch whose span is certain.
        """
        place = TopicPartition(*partition)
        try:
            async with self._connected() as consumer:
                fetch = partial(kafka_internals.raw_batches, consumer, place)
                return await find_span(fetch, offset, bounds)
        except (Doubtful, CorruptRecordException) as error:
            raise PermanentError(
                Reason.UNREADABLE_BATCH,
                f"{partition.name}, offset {offset}: {error}",
            ) from error

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AIOKafkaConsumer]:
        """One after the other."""
        self._waiting += 1
        try:
            async with self._turn:
                yield self._consumer or await self._start()
        except BaseException:
            await self._close()
            raise
        finally:
            self._waiting -= 1
            if not self._waiting:
                await self._close()

    async def _start(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **client_arguments(self._options),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            max_partition_fetch_bytes=_FETCH_BYTES,
            fetch_max_wait_ms=milliseconds(_WAIT_SECONDS),
        )
        self._consumer = consumer
        await consumer.start()
        return consumer

    async def _close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await kafka_internals.close(consumer)


async def _look_up(
    consumer: AIOKafkaConsumer, place: TopicPartition, offset: int
) -> Landmark | None:
    consumer.assign([place])
    consumer.seek(place, offset)
    while True:
        try:
            polled = await consumer.getmany(
                place, timeout_ms=milliseconds(_WAIT_SECONDS), max_records=1
            )
        except Exception as error:
            if is_unreadable(error):
                return None
            raise
        for record in polled.get(place, ()):
            return landmark(record_of(record)) if record.offset == offset else None
        # Markers and compacted batches move the position and hand out nothing.
        if (kafka_internals.position(consumer, place) or 0) > offset:
            return None
