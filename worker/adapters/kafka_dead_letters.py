"""
The port `DeadLetters` on aiokafka.

Owns one producer, made at the first use and made anew after repeated failures. Not idempotent:
an idempotent producer never gives a batch up while the broker is away. So a letter may be
there twice; readers tell by its position. A letter that is larger than the topic takes is
published without its value, as a pointer to the record, rather than failing for ever.
"""

import asyncio
import contextlib
from hashlib import blake2b
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError

from schemas.dead_letter import VALUE_BYTES, VALUE_HASH, Header
from worker.adapters.dead_letter_headers import headers_of
from worker.adapters.kafka_client import client_arguments, milliseconds
from worker.adapters.kafka_errors import translated
from worker.config import KafkaOptions
from worker.errors import BrokerUnavailable, WorkerError
from worker.ports import DeadLetter, Recorded

# The library gives an unanswered batch up after this; the outer limit is only for what it
# does not bound.
_REQUEST_SECONDS = 10.0
_PUBLISH_SECONDS = 15.0
_STOP_SECONDS = 3.0
_FAILURES_BEFORE_A_NEW_PRODUCER = 3
# The original met the broker's limit; the envelope comes on top.
_MAX_REQUEST_BYTES = 16 * 1024 * 1024 + 64 * 1024
_MAX_POINTER_PART_BYTES = 16 * 1024


def producer_arguments(options: KafkaOptions) -> dict[str, Any]:
    """Return what the producer of dead letters is made with."""
    return client_arguments(options) | {
        "acks": "all",
        "enable_idempotence": False,
        "request_timeout_ms": milliseconds(min(_REQUEST_SECONDS, options.request_seconds)),
        "max_request_size": _MAX_REQUEST_BYTES,
        "compression_type": "zstd",
    }


class KafkaDeadLetters:
    """The dead-letter topic of `options`."""

    def __init__(self, options: KafkaOptions) -> None:
        self._options = options
        self._topic = options.dead_letter_topic
        self._starting = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None
        self._failures = 0

    async def open(self) -> None:
        """
        Connect now instead of at the first letter.

        Raises:
            BrokerUnavailable: no broker answered, or refused the log-in.
            ConfigError: a secret is missing.
        """
        with translated():
            await self._started()

    async def publish(self, letter: DeadLetter, recorded: Recorded) -> None:
        """Publish one letter and wait for the acknowledgement of all replicas in sync."""
        try:
            with translated():
                async with asyncio.timeout(_PUBLISH_SECONDS):
                    await self._publish(await self._started(), letter, recorded)
        except WorkerError as error:
            await self._count_failure()
            raise BrokerUnavailable(str(error)) from error
        self._failures = 0

    async def close(self) -> None:
        """Release the connection. Safe to call twice."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = AIOKafkaProducer(**producer_arguments(self._options))
                try:
                    await producer.start()
                except BaseException:
                    await _stop(producer)
                    raise
                self._producer = producer
            return self._producer

    async def _publish(
        self, producer: AIOKafkaProducer, letter: DeadLetter, recorded: Recorded
    ) -> None:
        record = letter.record
        headers = headers_of(letter, recorded)
        try:
            await self._send(producer, record.key, record.value, headers)
        except (MessageSizeTooLargeError, RecordListTooLargeError):
            await self._send(producer, *_pointer(letter, recorded))

    async def _send(
        self,
        producer: AIOKafkaProducer,
        key: bytes | None,
        value: bytes | None,
        headers: list[Header],
    ) -> None:
        if key is None and value is None:
            await self._send_empty(producer, headers)
        else:
            await producer.send_and_wait(self._topic, value, key, headers=headers)

    async def _send_empty(self, producer: AIOKafkaProducer, headers: list[Header]) -> None:
        # `send` refuses what has neither key nor value; Kafka does not.
        batch = producer.create_batch()
        batch.append(key=None, value=None, timestamp=None, headers=headers)
        partition = min(await producer.partitions_for(self._topic))
        await (await producer.send_batch(batch, self._topic, partition=partition))

    async def _count_failure(self) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_BEFORE_A_NEW_PRODUCER:
            self._failures = 0
            await self.close()


def _pointer(
    letter: DeadLetter, recorded: Recorded
) -> tuple[bytes | None, bytes | None, list[Header]]:
    record = letter.record
    value = record.value or b""
    size = sum(len(name) + len(content or b"") for name, content in record.headers)
    headers = headers_of(
        letter, recorded, record.headers if size <= _MAX_POINTER_PART_BYTES else ()
    )
    headers += [
        (VALUE_BYTES, str(len(value)).encode()),
        (VALUE_HASH, blake2b(value, digest_size=32).hexdigest().encode()),
    ]
    fits = record.key is not None and len(record.key) <= _MAX_POINTER_PART_BYTES
    return record.key if fits else None, None, headers


async def _stop(producer: AIOKafkaProducer) -> None:
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_STOP_SECONDS):
            await producer.stop()
