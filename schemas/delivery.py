"""
Prepared records to Kafka: acknowledged by all in-sync replicas, or failed within a time limit.

Owns one aiokafka producer, replaces it when it is spent, and bounds every wait, because the
library does not: the batches of an idempotent producer never expire, so that in an outage its
`send` and `stop` hang. Only `schemas.publisher` uses this; nobody who only reads events needs
aiokafka.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from ssl import SSLContext
from typing import Any, Literal, NamedTuple, TypedDict

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError

from .events import JsonEvent
from .records import NewRecord, describe

# One request is in flight per broker: larger batches are what raises the rate.
_MAX_BATCH_BYTES = 128 * 1024
_LINGER_MILLISECONDS = 5
_REQUEST_SECONDS = 10
# A refused connection is logged at every retry: 9 lines a second at 1,000 ms, 78 at 100.
_RETRY_MILLISECONDS = 1000
_SPENT_CLOSE_SECONDS = 5
_CUT_SECONDS = 2
# Records between two turns of the event loop: 1 ms of work at 1 KB each.
_UNINTERRUPTED = 16


class Connection(TypedDict, total=False):
    """How to reach the brokers, in aiokafka's words; passed to its producer as it is."""

    client_id: str
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"]
    ssl_context: SSLContext
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI", "OAUTHBEARER"]
    sasl_plain_username: str
    sasl_plain_password: str
    sasl_oauth_token_provider: object


class DeliveryFailed(Exception):
    """Kafka did not acknowledge the event; it may have it all the same."""

    def __init__(self, message: str, event: JsonEvent | None = None) -> None:
        super().__init__(message if event is None else f"{describe(event)}: {message}")
        self.event = event


class Delivered(NamedTuple):
    """Where an event stands in the log."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


OnDelivered = Callable[[JsonEvent, Delivered], object]


class _Sent(NamedTuple):
    record: NewRecord
    acknowledgement: asyncio.Future[Any]
    producer: AIOKafkaProducer
    deadline: float


class Delivery:
    """
    The way of records to one topic.

    `window` records of one `deliver_many` may wait for their acknowledgement at once.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        connection: Connection,
        *,
        max_record_bytes: int,
        timeout_seconds: float,
        window: int,
    ) -> None:
        self._window = window
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._connection = connection
        self._max_record_bytes = max_record_bytes
        self._timeout_seconds = timeout_seconds
        # Below the limit of the whole delivery, so that the error says more than "too late".
        self._request_seconds = min(_REQUEST_SECONDS, timeout_seconds / 2)
        self._renewing = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None
        self._spent: AIOKafkaProducer | None = None

    async def open(self) -> None:
        """
        Connect.

        Raises:
            DeliveryFailed: no broker answers, or they refuse us.
        """
        with self._translated(None):
            async with asyncio.timeout(self._timeout_seconds):
                self._producer = await self._connected()

    async def close(self) -> None:
        """Flush and disconnect, within the time limit of a delivery. Safe to call twice."""
        if self._producer is not None:
            await _close(self._producer, self._timeout_seconds)
            self._producer = None

    async def deliver(self, record: NewRecord) -> Delivered:
        """
        Send a record and wait until Kafka has it.

        Raises:
            DeliveryFailed: no acknowledgement in time, or a refusal.
        """
        return await self._settle(await self._send(record))

    async def deliver_many(
        self, records: AsyncGenerator[NewRecord, None], on_delivered: OnDelivered | None
    ) -> int:
        """
        Send records in their order and return how many Kafka has.

        The first error ends it: what was sent before is still waited for and reported, then
        the error is raised, be it of a delivery, of `records` or of `on_delivered`.
        """
        sent: asyncio.Queue[_Sent | None] = asyncio.Queue()
        window = asyncio.Semaphore(self._window)
        failure: Exception | None = None
        count = 0
        try:
            async with asyncio.TaskGroup() as group:
                feeding = group.create_task(self._feed(records, window, sent))
                while (item := await sent.get()) is not None:
                    try:
                        await self._report(item, on_delivered)
                        count += 1
                    except Exception as error:  # noqa: BLE001 raised below, when all is settled
                        failure = failure or error
                        feeding.cancel()
                    window.release()
        finally:
            _forget(sent)
        failure = failure or feeding.result()
        if failure is not None:
            raise failure
        return count

    async def _feed(
        self,
        records: AsyncGenerator[NewRecord, None],
        window: asyncio.Semaphore,
        sent: "asyncio.Queue[_Sent | None]",
    ) -> Exception | None:
        try:
            async with aclosing(records):
                async for record in records:
                    await window.acquire()
                    sent.put_nowait(await self._send(record))
                    if sent.qsize() % _UNINTERRUPTED == 0:
                        await asyncio.sleep(0)  # no step above waits while there is room
        except Exception as error:  # noqa: BLE001 raised by the caller, when all is settled
            return error
        finally:
            sent.put_nowait(None)
        return None

    async def _report(self, item: _Sent, on_delivered: OnDelivered | None) -> None:
        delivered = await self._settle(item)
        if on_delivered is not None:
            on_delivered(item.record.event, delivered)

    async def _send(self, record: NewRecord) -> _Sent:
        deadline = asyncio.get_running_loop().time() + self._timeout_seconds
        with self._translated(record.event):
            async with asyncio.timeout_at(deadline):
                producer = await self._usable()
                with self._judged(producer):
                    acknowledgement = await producer.send(
                        self._topic, record.value, record.key, headers=list(record.headers)
                    )
        return _Sent(record, acknowledgement, producer, deadline)

    async def _settle(self, sent: _Sent) -> Delivered:
        with self._translated(sent.record.event), self._judged(sent.producer):
            async with asyncio.timeout_at(sent.deadline):
                place = await sent.acknowledgement
        return Delivered(place.topic, place.partition, place.offset, place.timestamp)

    @contextmanager
    def _judged(self, producer: AIOKafkaProducer) -> Iterator[None]:
        # aiokafka does not take back the sequence numbers of a batch that was refused, so the
        # broker may refuse all later batches of this producer (its issue 1017).
        try:
            yield
        except KafkaError as error:
            if not error.retriable:
                self._spent = producer
            raise

    @contextmanager
    def _translated(self, event: JsonEvent | None) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise DeliveryFailed(
                f"topic {self._topic!r} did not answer within {self._timeout_seconds:g} s; the "
                "event may still arrive, so publish it again with the same version",
                event,
            ) from error
        except KafkaError as error:
            message = f"topic {self._topic!r}: {error or type(error).__name__}"
            raise DeliveryFailed(message, event) from error

    async def _usable(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise RuntimeError("the publisher is not open: use it as a context manager")
        if self._spent is self._producer:
            async with self._renewing:
                if self._spent is self._producer:
                    await _close(self._producer, _SPENT_CLOSE_SECONDS)
                    self._producer = await self._connected()
        return self._producer

    async def _connected(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._bootstrap_servers,
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            linger_ms=_LINGER_MILLISECONDS,
            max_batch_size=min(_MAX_BATCH_BYTES, self._max_record_bytes),
            max_request_size=self._max_record_bytes,
            request_timeout_ms=int(1000 * self._request_seconds),
            retry_backoff_ms=_RETRY_MILLISECONDS,
            **self._connection,
        )
        try:
            await producer.start()
        except BaseException:
            await _close(producer, _CUT_SECONDS)
            raise
        return producer


async def _close(producer: AIOKafkaProducer, gentle_seconds: float) -> None:
    # In a task of its own: a stop() that is cancelled half-way leaves tasks behind.
    stopping = asyncio.create_task(producer.stop())  # noqa: TID251 awaited right here
    try:
        await asyncio.wait({stopping}, timeout=gentle_seconds)
    finally:
        if not stopping.done():
            _cut(producer)
    await asyncio.wait({stopping}, timeout=_CUT_SECONDS)
    if stopping.cancel():
        await asyncio.wait({stopping}, timeout=_CUT_SECONDS)
    if stopping.done() and not stopping.cancelled():
        stopping.exception()  # taken, or asyncio logs it; callers have their own errors
    with suppress(Exception):
        async with asyncio.timeout(_CUT_SECONDS):
            await producer.client.close()


def _cut(producer: AIOKafkaProducer) -> None:
    """Let all that stop() waits for fail; aiokafka has no public way."""
    # Else its sender calls a method that only a transactional producer survives.
    producer._sender._txn_manager = None  # noqa: SLF001
    accumulator = producer._message_accumulator  # noqa: SLF001
    accumulator._pending_batches = _Forgiving(accumulator._pending_batches)  # noqa: SLF001
    accumulator.fail_all(KafkaTimeoutError("the publisher was closed"))
    for batches in accumulator._batches.values():  # noqa: SLF001
        for batch in batches:
            batch._drain_waiter.exception()  # noqa: SLF001 taken, or asyncio logs it
    for connection in list(producer.client._conns.values()):  # noqa: SLF001
        connection.close()


class _Forgiving(set[Any]):
    """aiokafka 0.14 takes a batch out of this set twice where it ends while it is retried."""

    remove = set.discard


def _forget(sent: "asyncio.Queue[_Sent | None]") -> None:
    while not sent.empty():
        item = sent.get_nowait()
        if item is not None:
            item.acknowledgement.cancel()
