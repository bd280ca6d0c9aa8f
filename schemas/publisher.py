"""
Publish events to Kafka, for upstream services written in Python.

Every event is judged before it is sent, by the worker's own codec (`schemas.records`). A call
returns when all in-sync replicas have the record, or raises within its time limit. A call that
failed may have delivered all the same: publish the event again with the same version, which
changes nothing where it had arrived. The records of one document keep the order of the calls;
the partitioner is that of Kafka's Java client (murmur2).

The version has no default: only the source of truth knows which of two states is newer. Take
the row's version, or its change time in microseconds; never the time of publishing.

Needs the extra `kafka`. The trace context of OpenTelemetry is sent along where its API is
installed and a span is active.
"""

import asyncio
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from datetime import datetime
from itertools import islice
from typing import Any, Generic, Self, TypeVar, Unpack

from msgspec import UNSET

from .bounds import Limits
from .codec import is_traceparent
from .delivery import Connection, Delivered, Delivery, DeliveryFailed, OnDelivered
from .events import DocumentDeleted, DocumentUpserted, JsonEvent, ScopeDeleted
from .records import (
    DEFAULT_MAX_RECORD_BYTES,
    EventTooLarge,
    InvalidEvent,
    NewRecord,
    new_record,
)

__all__ = [
    "Connection",
    "Delivered",
    "DeliveryFailed",
    "EventTooLarge",
    "InvalidEvent",
    "Options",
    "Publisher",
    "SyncPublisher",
]

Result = TypeVar("Result")


class Options(Connection, total=False):
    """
    What a publisher may be told, with its defaults.

    `max_record_bytes` (1 MiB): the topic's `max.message.bytes`. `limits`: those of the workers.
    `delivery_timeout_seconds` (30): the time limit of every delivery, and of closing.
    `window` (1,000): how many records of `publish_many` may wait for their acknowledgement.
    """

    max_record_bytes: int
    limits: Limits
    delivery_timeout_seconds: float
    window: int


class _Events(Generic[Result]):
    """The events as calls; what a call returns is the publisher's choice."""

    def publish(self, event: JsonEvent, *, traceparent: str | None = None) -> Result:
        """Publish one event."""
        raise NotImplementedError

    def upsert(
        self,
        tenant: str,
        collection: str,
        id: str,  # noqa: A002 the contract's word
        *,
        version: int,
        text: str,
        content_type: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | None = None,
        traceparent: str | None = None,
    ) -> Result:
        """Publish that a document has this text and metadata as of this version."""
        event = DocumentUpserted(
            tenant=tenant,
            collection=collection,
            id=id,
            version=version,
            text=text,
            content_type=UNSET if content_type is None else content_type,
            metadata=UNSET if metadata is None else dict(metadata),
            occurred_at=occurred_at or UNSET,
        )
        return self.publish(event, traceparent=traceparent)

    def delete(
        self,
        tenant: str,
        collection: str,
        id: str,  # noqa: A002 the contract's word
        *,
        version: int,
        occurred_at: datetime | None = None,
        traceparent: str | None = None,
    ) -> Result:
        """Publish that a document is gone as of this version."""
        event = DocumentDeleted(
            tenant=tenant,
            collection=collection,
            id=id,
            version=version,
            occurred_at=occurred_at or UNSET,
        )
        return self.publish(event, traceparent=traceparent)

    def delete_scope(
        self,
        tenant: str,
        collection: str | None = None,
        *,
        version: int,
        occurred_at: datetime | None = None,
        traceparent: str | None = None,
    ) -> Result:
        """Publish that a tenant, or its part of a collection, is gone as of this version."""
        event = ScopeDeleted(
            tenant=tenant,
            collection=UNSET if collection is None else collection,
            version=version,
            occurred_at=occurred_at or UNSET,
        )
        return self.publish(event, traceparent=traceparent)


class Publisher(_Events[Coroutine[Any, Any, Delivered]]):
    """
    Publishes events to one topic; an async context manager.

    `async with Publisher("localhost:9092", "documents") as publisher:` connects; the end of the
    block flushes and disconnects. Calls may run concurrently. Many events go faster through
    `publish_many` than one after the other.
    """

    def __init__(self, bootstrap_servers: str, topic: str, **options: Unpack[Options]) -> None:
        self._max_record_bytes = options.pop("max_record_bytes", DEFAULT_MAX_RECORD_BYTES)
        self._limits = options.pop("limits", Limits())
        self._inject = _trace_injector()
        self.window = options.pop("window", 1000)
        self._delivery = Delivery(
            bootstrap_servers,
            topic,
            max_record_bytes=self._max_record_bytes,
            timeout_seconds=options.pop("delivery_timeout_seconds", 30),
            window=self.window,
            connection=options,
        )

    async def __aenter__(self) -> Self:
        """Connect, as `open` does."""
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Flush and disconnect, as `close` does."""
        await self.close()

    async def open(self) -> None:
        """
        Connect.

        Raises:
            DeliveryFailed: no broker answers, or they refuse us.
        """
        await self._delivery.open()

    async def close(self) -> None:
        """Flush and disconnect, within the time limit of a delivery. Safe to call twice."""
        await self._delivery.close()

    async def publish(self, event: JsonEvent, *, traceparent: str | None = None) -> Delivered:
        """
        Publish one event and wait until Kafka has it.

        Raises:
            EventTooLarge, InvalidEvent: nothing was sent.
            DeliveryFailed: no acknowledgement in time, or a refusal.
        """
        return await self._delivery.deliver(self.prepare(event, traceparent=traceparent))

    async def publish_many(
        self,
        events: Iterable[JsonEvent] | AsyncIterable[JsonEvent],
        *,
        on_delivered: OnDelivered | None = None,
    ) -> int:
        """
        Publish events in their order and return how many Kafka has.

        At most `window` of them wait for their acknowledgement; the source is read no further
        meanwhile. `on_delivered` is called for each in order. The first error ends it: what was
        sent before is still waited for and reported, then the error is raised.

        Raises:
            EventTooLarge, InvalidEvent, DeliveryFailed: of the first event that failed.
        """
        return await self._delivery.deliver_many(self._prepared(events), on_delivered)

    def prepare(self, event: JsonEvent, *, traceparent: str | None = None) -> NewRecord:
        """
        Return the record of an event, with the trace context of the caller.

        Raises:
            EventTooLarge, InvalidEvent: the topic, or a worker, would refuse it.
        """
        return new_record(
            event,
            headers=_trace_headers(traceparent, self._inject),
            limits=self._limits,
            max_record_bytes=self._max_record_bytes,
        )

    async def _prepared(
        self, events: Iterable[JsonEvent] | AsyncIterable[JsonEvent]
    ) -> AsyncGenerator[NewRecord, None]:
        if isinstance(events, AsyncIterable):
            async for event in events:
                yield self.prepare(event)
        else:
            for event in events:
                yield self.prepare(event)


class SyncPublisher(_Events[Delivered]):
    """
    `Publisher` for code without an event loop; a context manager, safe to share by threads.

    Runs a loop in a thread of its own. Open it after a fork, not before.
    """

    def __init__(self, bootstrap_servers: str, topic: str, **options: Unpack[Options]) -> None:
        self._publisher = Publisher(bootstrap_servers, topic, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """
        Start the thread and connect.

        Raises:
            DeliveryFailed: no broker answers, or they refuse us.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="embedfleet-publisher", daemon=True
        )
        self._thread.start()
        try:
            self._run(self._publisher.open())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Flush, disconnect and end the thread."""
        try:
            self._run(self._publisher.close())
        finally:
            self._stop()

    def publish(self, event: JsonEvent, *, traceparent: str | None = None) -> Delivered:
        """Publish one event and wait until Kafka has it; raises as `Publisher.publish`."""
        return self._run(self._publisher.publish(event, traceparent=traceparent))

    def publish_many(
        self, events: Iterable[JsonEvent], *, on_delivered: OnDelivered | None = None
    ) -> int:
        """
        Publish events in their order and return how many Kafka has.

        They are taken from the source in groups of `window`, and `on_delivered` is called after
        each group, both in the caller's thread (a database cursor may need that). Errors are
        those of `Publisher.publish_many`.
        """
        source = iter(events)
        count = 0
        while group := list(islice(source, self._publisher.window)):
            count += self._publish_group(group, on_delivered)
        return count

    def _publish_group(self, group: list[JsonEvent], on_delivered: OnDelivered | None) -> int:
        delivered: list[tuple[JsonEvent, Delivered]] = []
        try:
            return self._run(
                self._publisher.publish_many(
                    group, on_delivered=lambda event, place: delivered.append((event, place))
                )
            )
        finally:
            if on_delivered is not None:
                for event, place in delivered:
                    on_delivered(event, place)

    def _run(self, call: Coroutine[Any, Any, Result]) -> Result:
        if self._loop is None:
            call.close()
            raise RuntimeError("the publisher is not open: use it as a context manager")
        # It runs in a copy of the caller's context, and so under the caller's span.
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _stop(self) -> None:
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
        self._loop = self._thread = None


Inject = Callable[[dict[str, str]], None]


def _trace_injector() -> Inject | None:
    # The light distribution does not depend on OpenTelemetry.
    try:
        from opentelemetry.propagate import inject
    except ImportError:
        return None
    return inject


def _trace_headers(
    traceparent: str | None, inject: Inject | None
) -> tuple[tuple[str, bytes], ...]:
    carrier: dict[str, str] = {}
    if traceparent is not None:
        if not is_traceparent(traceparent.encode()):
            raise ValueError("traceparent is no W3C trace context of version 00")
        carrier["traceparent"] = traceparent
    elif inject is not None:
        inject(carrier)
    # Not the baggage: it may hold what does not belong into a log that others read.
    names = ("traceparent", "tracestate")
    return tuple((name, carrier[name].encode()) for name in names if name in carrier)
