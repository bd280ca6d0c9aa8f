"""The records of dead letters, read from a real broker and sent to it."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas.dead_letter import Reason
from tests.contracts.test_dead_letters import RECORDED
from tests.support.kafka_worlds import KafkaWorld
from tests.support.works import claim as claim_of
from worker.adapters.kafka_letters import KafkaLetters, Sender
from worker.core.letters import Letter, Original, State
from worker.core.model import Order, Partition, Position, Record
from worker.errors import BrokerUnavailable, ConfigError, PermanentError
from worker.ports import DeadLetter

pytestmark = pytest.mark.real

QUICK = {"drain_seconds": 0.1, "rebalance_seconds": 5.2, "request_seconds": 5.3}
"""A topic that is not there is waited for as long as a request may take."""
HEADERS = (("a", b"1"), ("a", None))


class Topics:
    """A topic of documents, one of dead letters, and who writes to them."""

    def __init__(self, options, documents, letters, world):
        self.options, self.documents, self.letters = options, documents, letters
        self.publisher = world.make_dead_letters()

    async def put(self, value=b"value", key=b"key", headers=HEADERS) -> Record:
        """Publish a record, as the worker would poll it."""
        servers = self.options.bootstrap_servers
        async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
            sent = await producer.send_and_wait(
                self.documents, value, key, partition=0, headers=list(headers)
            )
        position = Position(self.documents, 0, sent.offset)
        return Record(position, sent.timestamp, key, value, headers)

    async def publish(self, record: Record, *, group="group") -> None:
        """Put its letter into the dead-letter topic."""
        claim = claim_of(topic=record.position.topic)._replace(group=group)
        letter = DeadLetter(record, claim, Reason.OVERSIZE, "intake")
        await self.publisher.publish(letter, RECORDED)

    async def read(self, *letters: Letter) -> dict[int, Original | None]:
        found = KafkaLetters(self.options).read(letters)
        return {one.position.offset: original async for one, original in found}


@pytest.fixture
async def make(kafka_options, create_topic):
    worlds = []

    async def make(max_message_bytes=1024 * 1024):
        letters = await create_topic(
            partitions=2, config={"max.message.bytes": str(max_message_bytes)}
        )
        documents = await create_topic()
        worlds.append(KafkaWorld(kafka_options, documents, letters))
        options = replace(kafka_options, dead_letter_topic=letters)
        return Topics(options, documents, letters, worlds[-1])

    yield make
    for world in worlds:
        await world.close()


def letter(record: Record, **facts) -> Letter:
    now = datetime.now(UTC)
    nothing = dict.fromkeys(("tenant", "collection", "document_id", "version", "traceparent"))
    counts = dict.fromkeys(("incarnation", "passes", "attempts", "replays"), 0)
    known = {
        "group": "group",
        "position": record.position,
        "timestamp_ms": record.timestamp_ms,
        "state": State.PUBLISHED,
        "reason": "oversize",
        "stage": "intake",
        "detail": "",
        "fingerprint": "f",
        "origin": Order(*record.position, record.timestamp_ms),
        "key": record.key,
        "first_seen": now,
        "last_seen": now,
    }
    return Letter(**nothing | counts | known | facts)


def noise(size):
    return hashlib.shake_256(b"seed").digest(size)


async def test_a_record_is_read_out_of_its_letter_exactly_as_it_was(make):
    topics = await make()
    record = Record(Position("gone", 0, 7), 5, b"\xff", b"\x00", HEADERS)
    await topics.publish(record)
    assert await topics.read(letter(record)) == {7: Original(b"\xff", b"\x00", HEADERS)}


async def test_only_letters_that_are_asked_for_are_read_and_each_once(make):
    """A zombie's letter, another group's, and the second copy after a lost answer."""
    topics = await make()
    wanted = [Record(Position("gone", 0, n), 5, b"k", b"%d" % n, ()) for n in (1, 2)]
    foreign = Record(Position("gone", 0, 9), 5, b"k", b"foreign", ())
    others = replace(wanted[1], value=b"of another group")
    await topics.publish(others, group="other")
    for record in (foreign, wanted[0], wanted[0], wanted[1], wanted[0]):
        await topics.publish(record)
    found = [
        (one.position.offset, original.value)
        async for one, original in KafkaLetters(topics.options).read(list(map(letter, wanted)))
    ]
    assert sorted(found) == [(1, b"1"), (2, b"2")]


async def test_what_is_no_dead_letter_is_passed_over(make, kafka_options):
    topics = await make()
    record = Record(Position("gone", 0, 1), 5, b"k", b"v", ())
    async with AIOKafkaProducer(bootstrap_servers=kafka_options.bootstrap_servers) as producer:
        await producer.send_and_wait(topics.letters, b"no letter", partition=0)
    await topics.publish(record)
    assert (await topics.read(letter(record)))[1] is not None


async def test_a_letter_of_long_ago_is_found(make):
    """The scan begins a day before the oldest of the letters, by the ledger's clock."""
    topics = await make()
    old = Record(Position("gone", 0, 1), 5, b"k", b"v", ())
    await topics.publish(old)
    late = letter(old, first_seen=datetime.now(UTC) + timedelta(hours=20))
    assert (await topics.read(late))[1] is not None


async def test_a_pointer_leads_to_the_record_itself(make):
    topics = await make(max_message_bytes=4000)
    record = await topics.put(noise(10_000))
    await topics.publish(record)
    assert await topics.read(letter(record)) == {
        record.position.offset: Original(record.key, record.value, HEADERS)
    }


async def test_a_letter_that_is_gone_is_looked_for_where_the_record_stood(make):
    topics = await make()
    await topics.put(b"before")
    record = await topics.put()
    assert await topics.read(letter(record)) == {1: Original(b"key", b"value", HEADERS)}


@pytest.mark.parametrize(
    "facts",
    [
        {"timestamp_ms": 1},
        {"key": b"of another"},
        {"position": 1},
        {"position": 99},
    ],
    ids=str,
)
async def test_another_record_at_that_place_is_not_taken_for_it(facts, make):
    topics = await make()
    record = await topics.put()
    if offset := facts.get("position"):
        facts = {"position": record.position._replace(offset=offset)}
    assert list((await topics.read(letter(record, **facts))).values()) == [None]


async def test_another_value_than_the_pointers_is_not_taken_for_it(make):
    topics = await make(max_message_bytes=4000)
    record = await topics.put(b"small")
    other = Record(record.position, record.timestamp_ms, b"key", noise(10_000), HEADERS)
    await topics.publish(other)
    assert await topics.read(letter(record)) == {0: None}


async def test_nothing_asked_for_asks_nobody(kafka_options):
    nowhere = KafkaLetters(replace(kafka_options, bootstrap_servers="127.0.0.1:1"))
    assert [found async for found in nowhere.read([])] == []


async def test_a_topic_that_is_not_there_and_a_broker_that_is_not_are_told(kafka_options):
    one = letter(Record(Position("t", 0, 0), 0, None, None))
    kafka_options = replace(kafka_options, **QUICK)
    for options, error in (
        (replace(kafka_options, dead_letter_topic="nowhere"), ConfigError),
        (replace(kafka_options, bootstrap_servers="127.0.0.1:1"), BrokerUnavailable),
    ):
        with pytest.raises(error):
            [found async for found in KafkaLetters(options).read([one])]


async def test_a_record_is_sent_to_the_partition_that_is_named(make, kafka_options):
    topics = await make()
    async with Sender.open(kafka_options) as sender:
        for number in (1, 0, 1):
            await sender.send(Partition(topics.letters, number), b"same key", None, HEADERS)
    servers = kafka_options.bootstrap_servers
    places = [TopicPartition(topics.letters, number) for number in (0, 1)]
    async with AIOKafkaConsumer(bootstrap_servers=servers) as consumer:
        ends = await consumer.end_offsets(places)
        assert [ends[place] for place in places] == [1, 2]
        consumer.assign(places)
        await consumer.seek_to_beginning()
        sent = await consumer.getone()
    assert (sent.key, sent.value, sent.headers) == (b"same key", None, HEADERS)


async def test_a_record_too_large_for_its_topic_is_refused_for_good(make, kafka_options):
    topics = await make(max_message_bytes=2000)
    async with Sender.open(kafka_options) as sender:
        with pytest.raises(PermanentError, match="size"):
            await sender.send(Partition(topics.letters, 0), b"k", noise(5000), ())
