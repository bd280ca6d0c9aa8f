"""`KafkaDeadLetters`: letters too large, and brokers that do not answer."""

import asyncio
import hashlib
from dataclasses import replace

import pytest
from aiokafka.errors import KafkaTimeoutError

from schemas.dead_letter import VALUE_BYTES, VALUE_HASH, parse_dead_letter
from tests.contracts.test_dead_letters import HEADERS, RECORDED, letter
from tests.support.kafka_worlds import KafkaWorld
from worker.adapters import kafka_dead_letters
from worker.adapters.kafka_dead_letters import KafkaDeadLetters
from worker.errors import BrokerUnavailable
from worker.ports import DeadLetters

pytestmark = pytest.mark.real


@pytest.fixture
async def world_of(kafka_options, create_topic):
    worlds = []

    async def make(max_message_bytes):
        topic = await create_topic(config={"max.message.bytes": str(max_message_bytes)})
        worlds.append(KafkaWorld(kafka_options, "unused", topic))
        return worlds[-1]

    yield make
    for world in worlds:
        await world.close()


def noise(size):
    """Bytes that no codec makes smaller."""
    return hashlib.shake_256(b"seed").digest(size)


async def test_a_letter_of_many_megabytes_is_published_whole(world_of):
    world = await world_of(20 * 1024 * 1024)
    letters: DeadLetters = world.make_dead_letters()
    value = noise(15 * 1024 * 1024)
    await letters.publish(letter(value=value), RECORDED)
    ((_, got, _),) = await world.dead_letter_records(1)
    assert got == value


async def test_a_letter_that_the_topic_refuses_becomes_a_pointer(world_of):
    world = await world_of(4000)
    letters = world.make_dead_letters()
    value = noise(10_000)
    await letters.publish(letter(value=value), RECORDED)
    ((key, got, headers),) = await world.dead_letter_records(1)
    assert (key, got) == (b"key", None)
    envelope, originals = parse_dead_letter(headers)
    assert (envelope.topic, envelope.partition, envelope.offset) == ("documents", 3, 7)
    assert originals == list(HEADERS)
    assert dict(headers)[VALUE_BYTES] == b"10000"
    digest = hashlib.blake2b(value, digest_size=32).hexdigest()
    assert dict(headers)[VALUE_HASH] == digest.encode()


async def test_a_pointer_leaves_out_keys_and_headers_that_are_too_large_themselves(world_of):
    world = await world_of(40_000)
    letters = world.make_dead_letters()
    large = letter(key=noise(50_000), value=None, headers=(("h", noise(50_000)),))
    await letters.publish(large, RECORDED)
    ((key, got, headers),) = await world.dead_letter_records(1)
    assert (key, got) == (None, None)
    assert parse_dead_letter(headers)[1] == []


async def test_a_letter_larger_than_any_request_becomes_a_pointer(world_of, monkeypatch):
    monkeypatch.setattr(kafka_dead_letters, "_MAX_REQUEST_BYTES", 20_000)
    world = await world_of(1024 * 1024)
    letters = world.make_dead_letters()
    await letters.publish(letter(value=b"x" * 30_000), RECORDED)
    ((_, got, _),) = await world.dead_letter_records(1)
    assert got is None


async def test_no_broker_is_an_unknown_outcome_at_once(kafka_options):
    letters = KafkaDeadLetters(replace(kafka_options, bootstrap_servers="127.0.0.1:1"))
    with pytest.raises(BrokerUnavailable):
        await letters.open()
    with pytest.raises(BrokerUnavailable):
        await letters.publish(letter(), RECORDED)
    await letters.close()


async def test_a_letter_without_an_answer_is_given_up(world_of, monkeypatch):
    world = await world_of(1024 * 1024)
    letters = world.make_dead_letters()
    await letters.open()
    monkeypatch.setattr(kafka_dead_letters, "_PUBLISH_SECONDS", 0.1)
    silent = asyncio.Event()
    monkeypatch.setattr(letters._producer, "send_and_wait", lambda *_, **__: silent.wait())
    with pytest.raises(BrokerUnavailable):
        await letters.publish(letter(), RECORDED)


async def test_a_letter_that_the_topic_does_not_acknowledge_is_not_published(
    kafka_options, create_topic
):
    # A compacted topic takes no record without a key.
    topic = await create_topic(config={"cleanup.policy": "compact"})
    letters = KafkaDeadLetters(replace(kafka_options, dead_letter_topic=topic))
    await letters.open()
    try:
        with pytest.raises(BrokerUnavailable):
            await letters.publish(letter(key=None, value=b"value"), RECORDED)
    finally:
        await letters.close()


async def test_after_three_failures_a_new_producer_is_made(world_of, monkeypatch):
    world = await world_of(1024 * 1024)
    letters = world.make_dead_letters()
    await letters.open()
    sick = letters._producer

    async def fail(*_, **__):
        raise KafkaTimeoutError

    monkeypatch.setattr(sick, "send_and_wait", fail)
    for _ in range(3):
        assert letters._producer is sick
        with pytest.raises(BrokerUnavailable):
            await letters.publish(letter(), RECORDED)
    await letters.publish(letter(), RECORDED)
    assert letters._producer is not sick
    assert len(await world.dead_letter_records(1)) == 1
