"""
A consumer group's offsets, seen and set from outside of the group.

Owns one consumer that never joins. Setting offsets works only while the group has no members:
the broker refuses what comes from outside of a living group.
"""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Self
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import for_code

from worker.adapters import kafka_internals
from worker.adapters.kafka_admin import opened_admin
from worker.adapters.kafka_client import client_arguments
from worker.adapters.kafka_errors import translated
from worker.adapters.kafka_topic_ids import topic_ids
from worker.config import KafkaOptions
from worker.core.model import Partition


async def has_members(options: KafkaOptions) -> bool:
    """
    Tell whether any worker is in the group.

    Raises:
        BrokerUnavailable: nobody answers.
    """
    async with opened_admin(options) as admin:
        (answer,) = await admin.describe_consumer_groups([options.group])
    (found,) = answer.to_object()["groups"]
    with translated():
        if found["error_code"]:
            raise for_code(found["error_code"])
    return bool(found["members"])


class KafkaGroup:
    """The offsets of one group."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    @classmethod
    @asynccontextmanager
    async def open(
        cls, options: KafkaOptions, *, committed_only: bool = False
    ) -> AsyncIterator[Self]:
        """
        Connect for the length of a block.

        With `committed_only` a log ends, as for a worker, before a transaction that is open.

        Raises:
            BrokerUnavailable: nobody answers.
        """
        consumer = AIOKafkaConsumer(
            **client_arguments(options),
            group_id=options.group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed" if committed_only else "read_uncommitted",
        )
        try:
            with translated():
                await consumer.start()
            yield cls(consumer)
        finally:
            await kafka_internals.close(consumer)

    async def bounds(self, partition: Partition) -> tuple[int, int]:
        """Return the first offset that is still there and the end, of a partition there is."""
        place = TopicPartition(*partition)
        with translated():
            first = await self._consumer.beginning_offsets([place])
            end = await self._consumer.end_offsets([place])
        return first[place], end[place]

    async def topic_ids(self, topics: Collection[str]) -> Mapping[str, UUID]:
        """Return the ids of topics, without those whose id no broker tells."""
        with translated():
            return await topic_ids(self._consumer, topics)

    async def ends(self, partitions: Collection[Partition]) -> dict[Partition, int]:
        """Return where the logs end, of partitions there are."""
        with translated():
            found = await self._consumer.end_offsets(
                [TopicPartition(*one) for one in partitions]
            )
        return {Partition(*place): end for place, end in found.items()}

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's committed offset, None where there is none."""
        place = TopicPartition(*partition)
        self._consumer.assign([place])
        with translated():
            offset: int | None = await self._consumer.committed(place)
        return offset

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """
        Set the group's offsets.

        Raises:
            FencedError: the group has members.
        """
        places = {TopicPartition(*one): offset for one, offset in offsets.items()}
        self._consumer.assign(list(places))
        with translated():
            await self._consumer.commit(places)
