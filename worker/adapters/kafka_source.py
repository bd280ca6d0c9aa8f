"""
The port `Source` on aiokafka: one member of a consumer group.

Owns the membership: the consumer, which cannot be started twice (a new try is a new
`KafkaSource`), the number of the assignment, and the commit under way; `kafka_flow` polls. The
group rebalances eagerly: whenever a member comes or goes, all is revoked and then assigned
anew. Nothing is polled between `revoked` and `begin`. Never resets an offset.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import KafkaError

from worker.adapters import kafka_internals
from worker.adapters.kafka_assignor import Fleet, FleetAssignor
from worker.adapters.kafka_client import client_arguments, milliseconds
from worker.adapters.kafka_errors import translate, translated
from worker.adapters.kafka_flow import Flow
from worker.adapters.kafka_lookup import Lookup
from worker.adapters.kafka_topic_ids import topic_ids
from worker.config import KafkaOptions
from worker.core.model import Landmark, Partition
from worker.errors import BrokerUnavailable, ConfigError, FencedError
from worker.ports import Assignments, BatchSpan, PolledBatch

_log = logging.getLogger(__name__)

_ERROR_SECONDS = 0.2
_REQUEST_SECONDS = 10.0
_FETCH_BYTES = 16 * 1024 * 1024
_FETCH_AT_BYTES = 64 * 1024
"""Some 16 documents of 4 KB: what fills a batch is not waited for."""


def consumer_arguments(options: KafkaOptions) -> dict[str, Any]:
    """Return what the member of the group is made with."""
    return client_arguments(options) | {
        "group_id": options.group,
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
        "heartbeat_interval_ms": milliseconds(options.heartbeat_seconds),
        "session_timeout_ms": milliseconds(options.session_seconds),
        "rebalance_timeout_ms": milliseconds(options.rebalance_seconds),
        "max_poll_interval_ms": milliseconds(options.max_poll_interval_seconds),
        "max_partition_fetch_bytes": options.max_partition_fetch_bytes,
        "fetch_max_bytes": max(_FETCH_BYTES, options.max_partition_fetch_bytes),
        "fetch_min_bytes": min(_FETCH_AT_BYTES, options.max_partition_fetch_bytes),
        "fetch_max_wait_ms": milliseconds(options.fetch_wait_seconds),
    }


class KafkaSource:
    """
    A member of the consumer group of `options`, on its topics.

    `fleet` names what the members of a group must have in common: the table they write.
    """

    def __init__(self, options: KafkaOptions, fleet: Fleet | None = None) -> None:
        self._options = options
        self._fleet = fleet or Fleet()
        self._assignor = FleetAssignor(self._fleet)
        self._limit_seconds = min(_REQUEST_SECONDS, options.request_seconds)
        self._lookup = Lookup(options)
        self._consumer: AIOKafkaConsumer | None = None
        self._number = 0
        self._holds = False
        self._partitions: frozenset[Partition] = frozenset()
        self._commit: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def open(self, assignments: Assignments) -> None:
        """
        Join the group; returns when joined, which takes as long as others drain.

        Raises:
            BrokerUnavailable: no broker answered, or refused the log-in: make a new source.
            ConfigError: a secret is missing, or we are not allowed to join.
        """
        self._assignments = assignments
        with translated():
            consumer = AIOKafkaConsumer(
                **consumer_arguments(self._options),
                # One: with several, each join takes several rounds, and Kafka may choose none.
                partition_assignment_strategy=(self._assignor,),
            )
            consumer.subscribe(list(self._options.topics), listener=_Listener(self))
            self._flow = Flow(consumer, self._options.max_poll_records, assignments)
            self._consumer = consumer
            try:
                async with asyncio.timeout(2 * self._options.request_seconds):
                    await consumer.start()
            except BaseException:
                await self.close()
                raise

    async def poll(
        self, wanted: Sequence[Partition], singly: Collection[Partition] = frozenset()
    ) -> list[PolledBatch]:
        """
        Return what has arrived for these partitions, in fair order; one record of some.

        Raises:
            BrokerUnavailable: not for a broker that is away, which is waited for, but for a
                client that has ended: make a new source.
            ConfigError: the group is another fleet's.
        """
        # Records that are there are returned without waiting: without this, a busy topic
        # would starve the event loop.
        await asyncio.sleep(0)
        if self._failure is not None:
            raise self._failure
        if self._consumer is None:
            await asyncio.sleep(_ERROR_SECONDS)
            return []
        try:
            kafka_internals.mark_polled(self._consumer)
            kafka_internals.check(self._consumer)
            return await self._flow.poll(wanted, singly)
        except KafkaError as error:
            await asyncio.sleep(_ERROR_SECONDS)
            raise translate(error) from error

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's committed offset as the broker knows it, None: there is none."""
        async with self._limited() as consumer:
            offset: int | None = await consumer.committed(TopicPartition(*partition))
            return offset

    async def bounds(self, partition: Partition) -> tuple[int, int]:
        """Return the first offset that is still there and the last stable offset."""
        place = TopicPartition(*partition)
        async with self._limited() as consumer:
            first = await consumer.beginning_offsets([place])
            end = await consumer.end_offsets([place])
            return first[place], end[place]

    async def landmark(self, partition: Partition, offset: int) -> Landmark | None:
        """Return the landmark of the record at exactly this offset, None where it is gone."""
        async with self._limited():
            first, end = await self.bounds(partition)
            if not first <= offset < end:
                return None
            return await self._lookup.landmark(partition, offset)

    async def topic_ids(self) -> Mapping[str, UUID]:
        """Return the ids of our topics, without those whose id no broker tells."""
        async with self._limited() as consumer:
            return await topic_ids(consumer, self._options.topics)

    async def batch(self, partition: Partition, offset: int) -> BatchSpan | None:
        """
        Return the span of the batch that holds this offset, or of the first one behind.

        Raises:
            PermanentError: `kafka_batches` says what makes a span certain; here it is not.
        """
        async with self._limited():
            first, end = await self.bounds(partition)
            if offset >= end:
                return None
            return await self._lookup.batch(partition, max(first, offset), (first, end))

    def begin(self, assignment: int, partition: Partition, offset: int) -> bool:
        """Start polling at an offset; False where the assignment is not the newest."""
        if not (self._holds and assignment == self._number and partition in self._partitions):
            return False
        return self._flow.begin(partition, offset)

    def pause(self, partition: Partition) -> None:
        """Stop polling a partition until `begin`; what was fetched of it is thrown away."""
        if self._consumer is not None:
            self._flow.pause(partition)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """
        Tell the group what is done; partitions that are not ours are left out.

        A commit that was given up on may still arrive, so the next one waits for its end: two
        at once could be applied in the wrong order.
        """
        async with self._limited() as consumer:
            if self._commit is not None:
                await asyncio.wait({self._commit})
            if not kafka_internals.is_member(consumer):
                raise FencedError("this member is not in the group")
            mine = {
                TopicPartition(*partition): offset
                for partition, offset in offsets.items()
                if partition in self._partitions
            }
            if mine:
                await self._send_commit(consumer, mine)

    async def confirm(self) -> tuple[int, frozenset[Partition]]:
        """Return assignment and partitions after a heartbeat that was sent after this call."""
        async with self._limited() as consumer:
            while True:
                number = self._number
                if not self._holds or kafka_internals.must_rejoin(consumer):
                    raise BrokerUnavailable("the group is rebalancing")
                known = await kafka_internals.heartbeat(consumer)
                if not known or number != self._number:
                    await asyncio.sleep(_ERROR_SECONDS)
                elif not kafka_internals.must_rejoin(consumer):
                    return number, self._partitions

    def lag(self, partition: Partition, since: int | None = None) -> int | None:
        """Return how many offsets are stable and not polled, or at `since` or above."""
        return None if self._consumer is None else self._flow.lag(partition, since)

    async def close(self) -> None:
        """Leave the group, within 4 s also where the broker does not answer."""
        consumer, self._consumer = self._consumer, None
        if consumer is None:
            return
        self._let_go()
        if self._commit is not None:
            self._commit.cancel()
            await asyncio.wait({self._commit})
        await kafka_internals.close(consumer)

    async def revoked(self, partitions: set[TopicPartition]) -> None:
        """Let go of everything; called by the library before it joins again."""
        self._let_go()
        if self._consumer is not None and partitions:
            await self._assignments.revoked()
        await self._fleet.look()

    def assigned(self, partitions: set[TopicPartition]) -> None:
        """Take note of a new assignment; called by the library, without heartbeats."""
        if self._consumer is None:
            return
        # First, and with nothing awaited before it: the library forgets pauses at a rebalance
        # and would fetch at once.
        self._consumer.pause(*partitions)
        if self._commit is not None:
            self._commit.cancel()  # else it goes on trying, with the new generation
        if self._assignor.other_fleet is not None:
            self._failure = self._strange(self._assignor.other_fleet)
        self._number += 1
        self._partitions = frozenset(Partition(*place) for place in partitions)
        self._holds = True
        self._assignments.assigned(self._number, self._partitions)

    def _strange(self, fleet: str) -> ConfigError:
        return ConfigError(
            f"the group {self._options.group!r} works for another table ({fleet}) than this "
            f"worker ({self._fleet.name}), and each would get a part of the documents: "
            "give it another kafka.group, or their database.url and database.schema"
        )

    def remember(self, failure: Exception) -> None:
        """Let the next poll raise what the library would swallow."""
        _log.error("rebalance listener failed", exc_info=failure)
        self._failure = failure

    @asynccontextmanager
    async def _limited(self) -> AsyncIterator[AIOKafkaConsumer]:
        if self._consumer is None:
            raise BrokerUnavailable("the source is closed")
        with translated():
            async with asyncio.timeout(self._limit_seconds):
                yield self._consumer

    def _let_go(self) -> None:
        self._holds = False
        self._flow.stop()

    async def _send_commit(
        self, consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]
    ) -> None:
        # A task of its own: one that we give up on goes on, and must stay visible.
        commit = asyncio.create_task(consumer.commit(dict(offsets)))  # noqa: TID251
        commit.add_done_callback(_retrieve)
        self._commit = commit
        await asyncio.wait({commit})
        if commit.cancelled():
            raise FencedError("the assignment ended")
        commit.result()


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # the library has no types
    """Passes on what the library calls; it would log and swallow what is raised here."""

    def __init__(self, source: KafkaSource) -> None:
        self._source = source

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        try:
            await self._source.revoked(revoked)
        except Exception as error:  # noqa: BLE001 - the next poll raises it
            self._source.remember(error)

    def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        try:
            self._source.assigned(assigned)
        except Exception as error:  # noqa: BLE001 - the next poll raises it
            self._source.remember(error)


def _retrieve(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
