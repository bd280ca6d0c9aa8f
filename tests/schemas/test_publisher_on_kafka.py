"""What only a real broker can say about the publisher and the headers of dead letters."""

import asyncio
import gc
import os
import random
import signal
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas.codec import Limits, decode_record
from schemas.dead_letter import DeadLetterEnvelope, dead_letter_headers, parse_dead_letter
from schemas.events import DocumentDeleted, DocumentUpserted
from schemas.publisher import DeliveryFailed, EventTooLarge, Publisher, SyncPublisher

pytestmark = pytest.mark.real

KAFKA_DEFAULT_MAX_MESSAGE_BYTES = 1024 * 1024 + 12
CLOSE_SECONDS = 4


@pytest.fixture
def servers(kafka_server):
    return kafka_server.bootstrap_servers


@asynccontextmanager
async def reading(servers, topic, partitions=1):
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, number) for number in range(partitions)])
        yield consumer
    finally:
        await consumer.stop()


def document(number, text="Hello"):
    return DocumentUpserted(
        tenant="acme", collection="docs", id=str(number), version=number, text=text
    )


def event_of(record):
    return decode_record(record.key, record.value, record.headers, Limits()).event


def incompressible(size):
    return random.Random(0).randbytes(size // 2).hex()


async def test_a_published_event_is_what_a_worker_reads(servers, topic):
    event = document(1)
    async with Publisher(servers, topic) as publisher:
        delivered = await publisher.publish(event)

    async with reading(servers, topic) as consumer:
        record = await consumer.getone()

    assert event_of(record) == event
    assert (delivered.topic, delivered.offset, delivered.timestamp_ms) == (
        topic,
        record.offset,
        record.timestamp,
    )


async def test_many_arrive_once_and_each_documents_events_in_order(servers, create_topic):
    topic = await create_topic(partitions=3)
    events = [
        DocumentDeleted(tenant="acme", collection="docs", id=str(number % 7), version=number)
        for number in range(2000)
    ]
    delivered = []
    async with Publisher(servers, topic, window=100) as publisher:
        count = await publisher.publish_many(
            iter(events), on_delivered=lambda event, _: delivered.append(event)
        )

    async with reading(servers, topic, partitions=3) as consumer:
        records = [await consumer.getone() for _ in events]
    arrived = [(record.partition, event_of(record)) for record in records]

    assert (count, delivered) == (len(events), events)
    assert sorted(event.version for _, event in arrived) == list(range(2000))
    for id_ in map(str, range(7)):
        own = [(partition, event.version) for partition, event in arrived if event.id == id_]
        assert len({partition for partition, _ in own}) == 1
        assert own == sorted(own)


async def test_the_blocking_publisher_delivers(servers, topic):
    def publish():
        with SyncPublisher(servers, topic) as publisher:
            publisher.upsert("acme", "docs", "0", version=0, text="Hello")
            return publisher.publish_many(document(number) for number in range(1, 50))

    assert await asyncio.to_thread(publish) == 49

    async with reading(servers, topic) as consumer:
        records = [await consumer.getone() for _ in range(50)]
    assert [event_of(record) for record in records] == [document(n) for n in range(50)]


async def test_the_largest_record_that_is_let_through_is_taken_by_the_topic(servers, topic):
    """The size is reckoned so that the topic's default limit never meets a record of ours."""
    largest = KAFKA_DEFAULT_MAX_MESSAGE_BYTES
    async with Publisher(servers, topic, max_record_bytes=largest) as publisher:
        rest = publisher.prepare(document(1, text="")).size_bytes
        text = incompressible(largest - rest)
        await publisher.publish(document(1, text=text))
        with pytest.raises(EventTooLarge):
            await publisher.publish(document(1, text=text + "xx"))


async def test_a_record_that_the_topic_refuses_does_not_stop_the_later_ones(
    servers, create_topic
):
    """
    The publisher replaces its producer then.

    aiokafka's own, once it has delivered something, is refused ever after (OutOfOrderSequence,
    its issue 1017).
    """
    topic = await create_topic(config={"max.message.bytes": "20000"})
    async with Publisher(servers, topic) as publisher:
        for number in range(2):
            await publisher.publish(document(number))
            with pytest.raises(DeliveryFailed, match="MessageSizeTooLarge"):
                await publisher.publish(document(number, text=incompressible(60_000)))
        delivered = await publisher.publish(document(2))

    assert delivered.offset == 2


async def test_an_unknown_topic_is_named(servers):
    async with Publisher(servers, "there-is-none", delivery_timeout_seconds=2) as publisher:
        with pytest.raises(DeliveryFailed, match=r"there-is-none.*UnknownTopic"):
            await publisher.publish(document(1))


async def test_a_silent_broker_cannot_hold_the_publisher(kafka_server, topic, caplog):
    if kafka_server.embedded is None:
        pytest.skip("only a broker of our own can be frozen")
    loop = asyncio.get_running_loop()
    limit = 3  # what a busy machine needs for the first record, which arrives
    publisher = Publisher(kafka_server.bootstrap_servers, topic, delivery_timeout_seconds=limit)
    before = asyncio.all_tasks()
    await publisher.__aenter__()
    await publisher.publish(document(0))
    os.kill(kafka_server.embedded.pid, signal.SIGSTOP)
    try:
        began = loop.time()
        with pytest.raises(DeliveryFailed, match="within 3 s"):
            await publisher.publish(document(1))
        with pytest.raises(DeliveryFailed, match="within 3 s"):
            await publisher.publish_many(document(n, "x" * 1000) for n in range(3000))
        assert loop.time() - began < 2 * limit + 1
        began = loop.time()
        await publisher.__aexit__(None, None, None)
        assert loop.time() - began < limit + CLOSE_SECONDS
    finally:
        os.kill(kafka_server.embedded.pid, signal.SIGCONT)
    assert asyncio.all_tasks() == before
    gc.collect()
    assert [record for record in caplog.records if record.name == "asyncio"] == []

    async with Publisher(kafka_server.bootstrap_servers, topic) as publisher:
        await publisher.publish(document(1))


async def test_the_headers_of_a_dead_letter_survive_the_broker(servers, topic):
    originals = [("traceparent", b"t"), ("twice", b"1"), ("twice", None), ("", b"")]
    envelope = DeadLetterEnvelope(
        reason="undecodable",
        stage="decode",
        topic="documents",
        partition=0,
        offset=1,
        timestamp_ms=2,
        group="fleet",
        first_seen_ms=3,
    )
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        headers = dead_letter_headers(originals, envelope)
        await producer.send_and_wait(topic, b"\xff", b"key", headers=headers)

    async with reading(servers, topic) as consumer:
        letter = await consumer.getone()

    assert parse_dead_letter(letter.headers) == (envelope, originals)
    assert (letter.key, letter.value) == (b"key", b"\xff")
