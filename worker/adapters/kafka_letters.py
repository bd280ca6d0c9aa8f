"""
The records of dead letters, out of Kafka and into it again.

Reads a record out of the dead-letter topic, found by the place that its envelope names; where
that is a pointer, or gone by retention, from the place where the record first met us, if that
still is the same record. Of letters that are there twice the first counts; letters nobody asks
for, as a zombie's, are passed over. Sends records to a partition of the caller's choice.

Never joins a group, never commits. What is sent may be there twice after a time-out.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from hashlib import blake2b
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    RecordListTooLargeError,
    UnknownTopicOrPartitionError,
)

from schemas.dead_letter import Header, NotADeadLetter, Reason, parse_dead_letter, value_hash
from worker.adapters import kafka_internals
from worker.adapters.kafka_client import client_arguments, milliseconds
from worker.adapters.kafka_errors import translated
from worker.config import KafkaOptions
from worker.core.letters import Letter, Original
from worker.core.model import Partition
from worker.errors import ConfigError, PermanentError

# A broker that hands out nothing for longer, below the end of its log, is away.
_SILENCE_SECONDS = 30.0
_POLL_SECONDS = 0.2
# The ledger's clock and the brokers' may differ; a letter is published after its row.
_SLACK_MS = 24 * 3600 * 1000
_SEND_SECONDS = 15.0
_STOP_SECONDS = 3.0
# As the dead letters themselves are sent: whatever a topic of ours takes.
_MAX_REQUEST_BYTES = 16 * 1024 * 1024 + 64 * 1024

_TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)

_Name = tuple[str, str, int, int, int]
"""What names a letter: group, topic, partition, incarnation, offset."""


class KafkaLetters:
    """The dead-letter topic of `options`, and the topics that its letters came from."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options

    async def read(
        self, letters: Sequence[Letter]
    ) -> AsyncGenerator[tuple[Letter, Original | None], None]:
        """
        Yield the record of each letter, in no order; None of one that is gone.

        Raises:
            BrokerUnavailable: nobody answers, or no more.
            ConfigError: there is no dead-letter topic.
        """
        missing = {_name(letter): letter for letter in letters}
        hashes: dict[_Name, str] = {}
        if missing:
            async with aclosing(self._scan(missing, hashes)) as found:
                async for one in found:
                    yield one
        if missing:
            async with self._consumer(auto_offset_reset="none") as consumer:
                for name, letter in missing.items():
                    yield letter, await _first_met(consumer, letter, hashes.get(name))

    async def _scan(
        self, missing: dict[_Name, Letter], hashes: dict[_Name, str]
    ) -> AsyncGenerator[tuple[Letter, Original | None], None]:
        """Yield what the dead-letter topic holds, and take it out of `missing`."""
        oldest = min(letter.first_seen for letter in missing.values())
        topic = self._options.dead_letter_topic
        async with self._consumer(topic, auto_offset_reset="earliest") as consumer:
            ends = await _seek(consumer, milliseconds(oldest.timestamp()) - _SLACK_MS)
            while missing and (records := await _next(consumer, ends)):
                for record in records:
                    name = _named(record)
                    if name not in missing:
                        continue
                    if (digest := value_hash(record.headers)) is not None:
                        hashes[name] = digest
                    else:
                        yield missing.pop(name), _original(record)

    @asynccontextmanager
    async def _consumer(self, *topics: str, **arguments: Any) -> AsyncIterator[Any]:
        consumer = AIOKafkaConsumer(
            *topics,
            **client_arguments(self._options),
            **arguments,
            group_id=None,
            enable_auto_commit=False,
            max_partition_fetch_bytes=self._options.max_partition_fetch_bytes,
            fetch_max_wait_ms=milliseconds(_POLL_SECONDS),
        )
        try:
            try:
                with translated():
                    await consumer.start()
            except Exception as error:
                if isinstance(error.__cause__, UnknownTopicOrPartitionError):
                    raise ConfigError(f"there is no topic {topics[0]!r}") from error
                raise
            yield consumer
        finally:
            await kafka_internals.close(consumer)


class Sender:
    """Puts records into the topics that they came from."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    @classmethod
    @asynccontextmanager
    async def open(cls, options: KafkaOptions) -> AsyncIterator[Self]:
        """
        Connect for the length of a block.

        Raises:
            BrokerUnavailable: nobody answers.
        """
        producer = AIOKafkaProducer(
            **client_arguments(options),
            acks="all",
            enable_idempotence=False,
            max_request_size=_MAX_REQUEST_BYTES,
            compression_type="zstd",
        )
        try:
            with translated():
                await producer.start()
            yield cls(producer)
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_STOP_SECONDS):
                    await producer.stop()

    async def send(
        self, partition: Partition, key: bytes, value: bytes | None, headers: Sequence[Header]
    ) -> None:
        """
        Send a record and wait until all replicas in sync have it.

        Raises:
            PermanentError: it is larger than the topic takes.
            BrokerUnavailable: whether it was written is unknown.
        """
        try:
            with translated():
                async with asyncio.timeout(_SEND_SECONDS):
                    await self._producer.send_and_wait(
                        partition.topic,
                        value,
                        key,
                        partition=partition.number,
                        headers=list(headers),
                    )
        except ConfigError as error:
            if isinstance(error.__cause__, _TOO_LARGE):
                message = f"{partition.topic} does not take a record of this size"
                raise PermanentError(Reason.OVERSIZE, message) from error
            raise


def _name(letter: Letter) -> _Name:
    return letter.group, *letter.partition, letter.incarnation, letter.position.offset


def _named(record: ConsumerRecord) -> _Name | None:
    try:
        said, _ = parse_dead_letter(record.headers)
    except NotADeadLetter:
        return None
    return said.group, said.topic, said.partition, said.incarnation, said.offset


def _original(record: ConsumerRecord) -> Original:
    return Original(record.key, record.value, tuple(parse_dead_letter(record.headers)[1]))


async def _seek(consumer: AIOKafkaConsumer, timestamp_ms: int) -> Mapping[TopicPartition, int]:
    """Go to the first records of a time; return where each partition ends now."""
    with translated():
        places = consumer.assignment()
        ends: Mapping[TopicPartition, int] = await consumer.end_offsets(places)
        starts = await consumer.offsets_for_times(dict.fromkeys(places, max(0, timestamp_ms)))
        for place in places:
            found = starts.get(place)
            consumer.seek(place, ends[place] if found is None else found.offset)
    return ends


async def _next(
    consumer: AIOKafkaConsumer, ends: Mapping[TopicPartition, int]
) -> list[ConsumerRecord]:
    """Return some records below the ends, none where there are none left."""
    with translated():
        async with asyncio.timeout(_SILENCE_SECONDS):
            while any([await consumer.position(place) < end for place, end in ends.items()]):
                polled = await consumer.getmany(timeout_ms=milliseconds(_POLL_SECONDS))
                if polled:
                    return [record for batch in polled.values() for record in batch]
    return []


async def _first_met(
    consumer: AIOKafkaConsumer, letter: Letter, digest: str | None
) -> Original | None:
    """Return the record where the letter says that it stood, if it is the same one."""
    place = TopicPartition(*letter.partition)
    with translated():
        async with asyncio.timeout(_SILENCE_SECONDS):
            record = await _at(consumer, place, letter.position.offset)
    if record is None or record.timestamp != letter.timestamp_ms:
        return None
    if letter.key is not None and record.key != letter.key:
        return None
    if digest is not None and _digest(record.value) != digest:
        return None
    return Original(record.key, record.value, tuple(record.headers))


async def _at(
    consumer: AIOKafkaConsumer, place: TopicPartition, offset: int
) -> ConsumerRecord | None:
    consumer.assign([place])
    if offset >= (await consumer.end_offsets([place]))[place]:
        return None  # the topic was created again
    consumer.seek(place, offset)
    while True:
        try:
            polled = await consumer.getmany(
                place, timeout_ms=milliseconds(_POLL_SECONDS), max_records=1
            )
        except OffsetOutOfRangeError:
            return None
        for record in polled.get(place, ()):
            return record if record.offset == offset else None
        # Markers and compacted batches move the position and hand out nothing.
        if (kafka_internals.position(consumer, place) or 0) > offset:
            return None


def _digest(value: bytes | None) -> str:
    return blake2b(value or b"", digest_size=32).hexdigest()
