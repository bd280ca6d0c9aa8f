"""The publisher's own decisions, on a producer that acknowledges when the test says so."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata, TopicPartition

from schemas import delivery
from schemas.codec import Limits, decode_record
from schemas.events import DocumentDeleted, DocumentUpserted, ScopeDeleted
from schemas.publisher import (
    DeliveryFailed,
    EventTooLarge,
    InvalidEvent,
    Publisher,
    SyncPublisher,
)

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SOON = 0.05


class Broker:
    """What the producers of a test sent, and how it is answered."""

    def __init__(self):
        self.producers = []
        self.sent = []
        self.answers_at_once = True
        self.refuse_next = None
        self.is_down = False
        self.changed = asyncio.Condition()

    def answer(self, index):
        """Acknowledge one record, or refuse it."""
        future = self.sent[index].future
        if not future.done():
            future.set_result(RecordMetadata("t", 0, TopicPartition("t", 0), index, 9, 0, 0))

    async def until_sent(self, count):
        """Wait until so many records were sent."""
        async with self.changed:
            await self.changed.wait_for(lambda: len(self.sent) >= count)


class ScriptedProducer:
    def __init__(self, broker, options):
        self.broker, self.options = broker, options
        self.state = "new"
        self.client = SimpleNamespace(close=self._nothing, _conns={})
        broker.producers.append(self)

    async def _nothing(self):
        return None

    async def start(self):
        if self.broker.is_down:
            raise KafkaConnectionError("Unable to bootstrap")
        self.state = "started"

    async def stop(self):
        self.state = "stopped"

    async def send(self, topic, value, key, *, headers):
        assert self.state == "started"
        future = asyncio.get_running_loop().create_future()
        record = SimpleNamespace(
            topic=topic, value=value, key=key, headers=headers, future=future, producer=self
        )
        async with self.broker.changed:
            self.broker.sent.append(record)
            self.broker.changed.notify_all()
        if self.broker.refuse_next is not None:
            future.set_exception(self.broker.refuse_next)
            self.broker.refuse_next = None
        elif self.broker.answers_at_once:
            self.broker.answer(len(self.broker.sent) - 1)
        return future


@pytest.fixture
def broker(monkeypatch):
    broker = Broker()
    monkeypatch.setattr(
        delivery, "AIOKafkaProducer", lambda **options: ScriptedProducer(broker, options)
    )
    return broker


def documents(count):
    return [
        DocumentUpserted(tenant="acme", collection="docs", id=str(number), version=1, text="x")
        for number in range(count)
    ]


def event_of(record):
    return decode_record(record.key, record.value, (), Limits()).event


async def test_the_calls_publish_the_events_of_the_contract(broker):
    async with Publisher("b:1", "documents") as publisher:
        await publisher.upsert("a", "c", "1", version=7, text="x", metadata={"k": 1})
        await publisher.delete("a", "c", "1", version=8)
        await publisher.delete_scope("a", "c", version=9)
        delivered = await publisher.delete_scope("a", version=10)

    assert [event_of(record) for record in broker.sent] == [
        DocumentUpserted(
            tenant="a", collection="c", id="1", version=7, text="x", metadata={"k": 1}
        ),
        DocumentDeleted(tenant="a", collection="c", id="1", version=8),
        ScopeDeleted(tenant="a", collection="c", version=9),
        ScopeDeleted(tenant="a", version=10),
    ]
    assert [record.key for record in broker.sent] == [b"a/c/1", b"a/c/1", b"a/c", b"a"]
    assert {record.topic for record in broker.sent} == {"documents"}
    assert (delivered.topic, delivered.partition, delivered.offset) == ("t", 0, 3)


async def test_the_producer_is_safe_and_gets_the_connection_as_it_is(broker):
    async with Publisher("b:1", "t", security_protocol="SSL", max_record_bytes=5000):
        pass

    options = broker.producers[0].options
    assert options["acks"] == "all"
    assert options["enable_idempotence"] is True
    assert options["compression_type"] == "lz4"
    assert options["security_protocol"] == "SSL"
    assert options["max_request_size"] == 5000
    assert "partitioner" not in options
    assert broker.producers[0].state == "stopped"


async def test_the_version_must_be_given():
    with pytest.raises(TypeError, match="version"):
        Publisher("b:1", "t").upsert("a", "c", "1", text="x")


async def test_what_cannot_be_right_is_not_sent(broker):
    async with Publisher("b:1", "t", max_record_bytes=2000) as publisher:
        with pytest.raises(EventTooLarge, match="limit is 2000"):
            await publisher.upsert("a", "c", "1", version=1, text="x" * 2000)
        with pytest.raises(InvalidEvent, match="version"):
            await publisher.upsert("a", "c", "1", version=-1, text="x")
        with pytest.raises(ValueError, match="traceparent"):
            await publisher.delete("a", "c", "1", version=1, traceparent="x")

    assert broker.sent == []


async def test_the_limits_of_the_workers_can_be_told(broker):
    async with Publisher("b:1", "t", limits=Limits(max_text_bytes=3)) as publisher:
        with pytest.raises(InvalidEvent, match="oversize"):
            await publisher.upsert("a", "c", "1", version=1, text="four")


async def test_no_acknowledgement_in_time_is_an_error_that_says_what_to_do(broker):
    broker.answers_at_once = False
    async with Publisher("b:1", "docs", delivery_timeout_seconds=SOON) as publisher:
        with pytest.raises(DeliveryFailed, match=r"'a/c/1'.*'docs'.*same version") as failed:
            await publisher.delete("a", "c", "1", version=1)

    assert failed.value.event == DocumentDeleted(tenant="a", collection="c", id="1", version=1)


async def test_no_broker_is_an_error_and_leaves_nothing_open(broker):
    broker.is_down = True

    with pytest.raises(DeliveryFailed, match="Unable to bootstrap"):
        async with Publisher("b:1", "t"):
            pass

    assert broker.producers[0].state == "stopped"


async def test_a_refused_batch_costs_its_events_and_not_the_later_ones(broker):
    """aiokafka's producer is of no use after it: see test_publisher_on_kafka."""
    async with Publisher("b:1", "t") as publisher:
        await publisher.delete("a", "c", "1", version=1)
        broker.refuse_next = MessageSizeTooLargeError()
        with pytest.raises(DeliveryFailed, match="MessageSizeTooLarge"):
            await publisher.delete("a", "c", "2", version=1)
        async with asyncio.TaskGroup() as group:
            for number in "34":
                group.create_task(publisher.delete("a", "c", number, version=1))

    first, second = broker.producers
    assert (first.state, second.state) == ("stopped", "stopped")
    assert [record.producer for record in broker.sent] == [first, first, second, second]


async def test_a_publisher_that_is_not_open_says_so(broker):
    with pytest.raises(RuntimeError, match="context manager"):
        await Publisher("b:1", "t").delete("a", "c", "1", version=1)


async def test_many_are_sent_in_order_and_reported_in_order(broker):
    reported = []
    events = documents(50)
    async with Publisher("b:1", "t") as publisher:
        count = await publisher.publish_many(
            events, on_delivered=lambda event, place: reported.append((event, place.offset))
        )

    assert count == 50
    assert [event_of(record) for record in broker.sent] == events
    assert reported == [(event, offset) for offset, event in enumerate(events)]


async def test_many_can_come_from_an_asynchronous_source(broker):
    async def source():
        for event in documents(3):
            await asyncio.sleep(0)
            yield event

    async with Publisher("b:1", "t") as publisher:
        assert await publisher.publish_many(source()) == 3


async def test_no_more_than_the_window_is_read_from_the_source(broker):
    broker.answers_at_once = False
    read = []

    def source():
        for event in documents(20):
            read.append(event)
            yield event

    async with Publisher("b:1", "t", window=4) as publisher, asyncio.TaskGroup() as group:
        many = group.create_task(publisher.publish_many(source()))
        await broker.until_sent(4)
        for _ in range(50):
            await asyncio.sleep(0)
        assert (len(broker.sent), len(read)) == (4, 5)

        broker.answer(0)
        await broker.until_sent(5)
        broker.answers_at_once = True
        for index in range(5):
            broker.answer(index)
        assert await many == 20


async def test_an_event_is_reported_while_the_source_waits(broker):
    more = asyncio.Event()
    reported = asyncio.Event()

    async def source():
        yield documents(1)[0]
        await more.wait()

    async with Publisher("b:1", "t") as publisher, asyncio.TaskGroup() as group:
        many = group.create_task(
            publisher.publish_many(source(), on_delivered=lambda *_: reported.set())
        )
        await reported.wait()
        more.set()
        assert await many == 1


async def test_a_failed_delivery_ends_a_source_that_waits_and_reports_the_others(broker):
    reported = []

    async def source():
        for event in documents(3):
            if event.id == "1":
                broker.refuse_next = MessageSizeTooLargeError()
            yield event
        await asyncio.Event().wait()

    async with Publisher("b:1", "t") as publisher:
        with pytest.raises(DeliveryFailed, match="acme/docs/1"):
            await publisher.publish_many(
                source(), on_delivered=lambda event, _: reported.append(event.id)
            )

    assert reported == ["0", "2"]


async def test_an_invalid_event_ends_it_after_what_was_sent_before(broker):
    broker.answers_at_once = False
    reported = []
    bad = DocumentDeleted(tenant="", collection="c", id="1", version=1)

    async with Publisher("b:1", "t") as publisher, asyncio.TaskGroup() as group:
        many = group.create_task(
            _caught(
                publisher.publish_many(
                    [*documents(2), bad, *documents(1)],
                    on_delivered=lambda event, _: reported.append(event.id),
                )
            )
        )
        await broker.until_sent(2)
        broker.answer(0)
        broker.answer(1)
        error = await many

    assert isinstance(error, InvalidEvent)
    assert error.event is bad
    assert (reported, len(broker.sent)) == (["0", "1"], 2)


async def test_an_error_of_the_source_or_of_the_callback_reaches_the_caller(broker):
    def broken():
        yield documents(1)[0]
        raise LookupError("source")

    def callback(*_):
        raise LookupError("callback")

    async with Publisher("b:1", "t") as publisher:
        with pytest.raises(LookupError, match="source"):
            await publisher.publish_many(broken())
        with pytest.raises(LookupError, match="callback"):
            await publisher.publish_many(documents(3), on_delivered=callback)


async def test_a_cancelled_call_leaves_no_task_behind(broker):
    broker.answers_at_once = False
    async with Publisher("b:1", "t", window=2) as publisher:
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SOON):
                await publisher.publish_many(documents(5))

        assert asyncio.all_tasks() == before
        assert all(record.future.cancelled() for record in broker.sent)


async def _caught(call):
    try:
        return await call
    except Exception as error:  # noqa: BLE001 handed to the test
        return error


async def test_an_explicit_trace_context_is_sent(broker):
    async with Publisher("b:1", "t") as publisher:
        await publisher.delete("a", "c", "1", version=1, traceparent=TRACE)

    assert broker.sent[0].headers == [("traceparent", TRACE.encode())]


@pytest.fixture
def active_span():
    from opentelemetry import baggage, context, trace

    parent = trace.NonRecordingSpan(
        trace.SpanContext(
            int(TRACE[3:35], 16),
            int(TRACE[36:52], 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(1),
        )
    )
    token = context.attach(baggage.set_baggage("user", "x", trace.set_span_in_context(parent)))
    yield
    context.detach(token)


def test_the_active_trace_context_is_sent_without_baggage(active_span):
    record = Publisher("b:1", "t").prepare(documents(1)[0])

    assert record.headers == (("traceparent", TRACE.encode()),)


def test_without_a_span_no_trace_header_is_sent():
    assert Publisher("b:1", "t").prepare(documents(1)[0]).headers == ()


def test_without_opentelemetry_no_trace_header_is_sent(active_span, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.propagate", None)

    assert Publisher("b:1", "t").prepare(documents(1)[0]).headers == ()


def test_the_blocking_publisher_sends_from_a_thread_of_its_own(broker, active_span):
    threads = threading.active_count()
    with SyncPublisher("b:1", "t") as publisher:
        assert publisher.upsert("a", "c", "1", version=1, text="x").offset == 0
        assert publisher.delete("a", "c", "1", version=2, traceparent=TRACE).offset == 1
        assert publisher.delete_scope("a", version=3).offset == 2

    assert {tuple(record.headers) for record in broker.sent} == {
        (("traceparent", TRACE.encode()),)
    }
    assert broker.producers[0].state == "stopped"
    assert threading.active_count() == threads


def test_the_blocking_publisher_reads_and_reports_in_the_callers_thread(broker):
    seen = []

    def source():
        for event in documents(10):
            seen.append(threading.get_ident())
            yield event

    with SyncPublisher("b:1", "t", window=4) as publisher:
        count = publisher.publish_many(
            source(), on_delivered=lambda *_: seen.append(threading.get_ident())
        )

    assert count == 10
    assert seen == [threading.get_ident()] * 20


def test_the_blocking_publisher_reports_what_was_sent_before_an_error(broker):
    reported = []
    bad = DocumentDeleted(tenant="", collection="c", id="1", version=1)

    with SyncPublisher("b:1", "t", window=4) as publisher, pytest.raises(InvalidEvent):
        publisher.publish_many(
            [*documents(6), bad], on_delivered=lambda event, _: reported.append(event.id)
        )

    assert reported == ["0", "1", "2", "3", "4", "5"]


def test_the_blocking_publisher_ends_its_thread_where_no_broker_is(broker):
    broker.is_down = True
    threads = threading.active_count()

    with pytest.raises(DeliveryFailed), SyncPublisher("b:1", "t"):
        pass

    assert threading.active_count() == threads


def test_a_blocking_publisher_that_is_not_open_says_so(broker):
    with pytest.raises(RuntimeError, match="context manager"):
        SyncPublisher("b:1", "t").delete("a", "c", "1", version=1)
