"""
Two worlds for one suite: a broker in memory and a real one, with the same verbs.

A world makes sources and dead letters of one group and topic, and puts records, transactions
and gaps into the log.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.protocol.group import LeaveGroupRequest

from tests.support import kafka_batches
from tests.support.kafka import topics
from tests.support.kafka_facts import PATIENCE_SECONDS, Member
from tests.support.kafka_own import break_on_disk
from worker.adapters.kafka_dead_letters import KafkaDeadLetters
from worker.adapters.kafka_source import KafkaSource
from worker.adapters.memory_kafka import MemoryBroker, MemoryDeadLetters, MemorySource
from worker.core.model import Partition


class World:
    """What both worlds do with the sources they make."""

    def __init__(self):
        self.members = []

    async def join(self, kind=Member, **told) -> Member:
        """Open a new source of the group."""
        member = kind(self.make_source(), **told)
        self.members.append(member)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await member.source.open(member)
        return member

    def partition(self, number: int = 0) -> Partition:
        return Partition(self.topic, number)

    async def append_many(self, count, number=0, start=0):
        for index in range(start, start + count):
            await self.append(b"%d" % index, number=number)

    async def close(self):
        for member in self.members:
            await member.source.close()


class MemoryWorld(World):
    source_class = MemorySource
    letters_class = MemoryDeadLetters

    def __init__(self, partitions=1):
        super().__init__()
        self.broker = MemoryBroker()
        self.topic, self.group = "documents", "group"
        self.dead_letter_topic = "documents.dead-letters"
        self.broker.create_topic(self.topic, partitions)
        self.broker.create_topic(self.dead_letter_topic)

    def make_source(self):
        return self.source_class(self.broker, self.group, topics=[self.topic])

    def make_dead_letters(self):
        return self.letters_class(self.broker, self.dead_letter_topic)

    async def append(self, value, *, key=b"key", headers=(), number=0, timestamp_ms=1):
        return self.broker.append(
            self.topic,
            number,
            key=key,
            value=value,
            headers=tuple(headers),
            timestamp_ms=timestamp_ms,
        )

    async def append_doubtful(self, values):
        """Append one batch that cannot be read, with a header that is not to be believed."""
        first, *_, last = [await self.append(value) for value in values]
        self.broker.log(self.partition()).spoil(first, last, doubtful=True)

    async def append_unreadable(self, values, *, number=0, timestamp_ms=1):
        """Append one batch that cannot be read; returns its first offset."""
        offsets = [
            await self.append(value, number=number, timestamp_ms=timestamp_ms + delta)
            for delta, value in enumerate(values)
        ]
        self.broker.log(self.partition(number)).spoil(offsets[0], offsets[-1])
        return offsets[0]

    async def transaction(self, values, *, commit, number=0):
        if commit:
            for value in values:
                await self.append(value, number=number)
        else:
            self.broker.skip(self.topic, number, len(values))
        self.broker.skip(self.topic, number)

    async def truncate(self, first, number=0):
        self.broker.log(self.partition(number)).truncate(first)

    async def create_again(self):
        self.broker.create_topic(self.topic)

    async def expel(self, member):
        self.broker.expel(member.source)

    async def dead_letter_records(self, count):
        records = self.broker.log(Partition(self.dead_letter_topic, 0)).records
        assert len(records) == count
        return [(record.key, record.value, list(record.headers)) for record in records]


class KafkaWorld(World):
    """`own_broker` is for those who break what is on its disk."""

    def __init__(
        self, options, topic, dead_letter_topic="unused", *, own_broker=None, **changes
    ):
        super().__init__()
        self.own_broker = own_broker
        self.options = replace(
            options,
            topics=(topic,),
            dead_letter_topic=dead_letter_topic,
            **({"heartbeat_seconds": 0.3} | changes),
        )
        self.topic, self.group = topic, options.group
        self.dead_letter_topic = dead_letter_topic
        self._stack = AsyncExitStack()
        self._producer = None

    def make_source(self):
        return KafkaSource(self.options)

    def make_dead_letters(self):
        letters = KafkaDeadLetters(self.options)
        self._stack.push_async_callback(letters.close)
        return letters

    async def append(self, value, *, key=b"key", headers=(), number=0, timestamp_ms=1):
        sent = await self._send(await self._plain(), value, key, headers, number, timestamp_ms)
        return (await sent).offset

    async def append_many(self, count, number=0, start=0):
        producer = await self._plain()
        sent = [
            await self._send(producer, b"%d" % index, b"key", (), number, 1)
            for index in range(start, start + count)
        ]
        await asyncio.wait(sent)

    async def append_unreadable(self, values, *, number=0, timestamp_ms=1):
        batch = kafka_batches.with_bytes_behind(values, timestamp_ms=timestamp_ms)
        return await self.send(batch, number)

    async def append_doubtful(self, values):
        first = await self.send(kafka_batches.batch_of(values))
        changes = {first: kafka_batches.with_a_later_last_offset}
        await asyncio.to_thread(break_on_disk, self.own_broker, self.partition(), changes)

    async def send(self, batch, number=0):
        """Send a batch made by hand; returns its first offset."""
        place = TopicPartition(self.topic, number)
        return await kafka_batches.send(self.options.bootstrap_servers, place, batch)

    async def transaction(self, values, *, commit, number=0):
        producer = AIOKafkaProducer(
            bootstrap_servers=self.options.bootstrap_servers, transactional_id=uuid4().hex
        )
        await producer.start()
        try:
            await producer.begin_transaction()
            for value in values:
                last = await (await self._send(producer, value, b"key", (), number, 1))
            await (producer.commit_transaction() if commit else producer.abort_transaction())
        finally:
            await producer.stop()
        await self._stable_end_at(number, last.offset + 2)

    async def _stable_end_at(self, number, offset):
        # The broker answers the end of a transaction before its marker is in the log.
        place = TopicPartition(self.topic, number)
        reader = AIOKafkaConsumer(
            bootstrap_servers=self.options.bootstrap_servers, isolation_level="read_committed"
        )
        await reader.start()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (await reader.end_offsets([place]))[place] < offset:
                    pass
        finally:
            await reader.stop()

    async def create_again(self):
        async with topics(self.options.bootstrap_servers) as made:
            await made.create_again(self.topic)

    async def truncate(self, first, number=0):
        admin = AIOKafkaAdminClient(bootstrap_servers=self.options.bootstrap_servers)
        await admin.start()
        try:
            place = TopicPartition(self.topic, number)
            await admin.delete_records({place: RecordsToDelete(before_offset=first)})
        finally:
            await admin.close()

    async def expel(self, member):
        # In the member's name, and behind its back.
        coordinator = member.source._consumer._coordinator
        request = LeaveGroupRequest(self.group, coordinator.member_id)
        await coordinator._send_req(request)

    async def dead_letter_records(self, count):
        reader = AIOKafkaConsumer(
            self.dead_letter_topic,
            bootstrap_servers=self.options.bootstrap_servers,
            auto_offset_reset="earliest",
        )
        await reader.start()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                records = [await reader.getone() for _ in range(count)]
        finally:
            await reader.stop()
        return [(record.key, record.value, list(record.headers)) for record in records]

    async def close(self):
        await super().close()
        await self._stack.aclose()

    async def _plain(self):
        if self._producer is None:
            producer = AIOKafkaProducer(
                bootstrap_servers=self.options.bootstrap_servers, acks="all"
            )
            await producer.start()
            self._stack.push_async_callback(producer.stop)
            self._producer = producer
        return self._producer

    async def _send(self, producer, value, key, headers, number, timestamp_ms):
        return await producer.send(
            self.topic,
            value,
            key,
            partition=number,
            timestamp_ms=timestamp_ms,
            headers=list(headers),
        )
