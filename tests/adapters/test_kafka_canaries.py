"""
What we rely on in aiokafka that it does not promise, defects included.

A test that fails here after an upgrade says which work-around to look at.
"""

import asyncio

import pytest
from aiokafka import (
    AIOKafkaConsumer,
    AIOKafkaProducer,
    ConsumerRebalanceListener,
    TopicPartition,
)
from aiokafka.consumer import fetcher
from aiokafka.errors import (
    ConsumerStoppedError,
    KafkaError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
)
from aiokafka.record._crecords import default_records

from tests.support.kafka_batches import batch_of, with_a_header_that_is_no_text
from tests.support.kafka_facts import PATIENCE_SECONDS
from tests.support.kafka_worlds import KafkaWorld
from worker.adapters import kafka_internals
from worker.errors import BrokerUnavailable

pytestmark = pytest.mark.real


@pytest.fixture
async def world(kafka_options, create_topic):
    world = KafkaWorld(kafka_options, await create_topic(partitions=2))
    yield world
    await world.close()


@pytest.fixture
async def consumer(world):
    """A consumer that was given both partitions by hand, without positions."""
    servers = world.options.bootstrap_servers
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers,
        auto_offset_reset="none",
        isolation_level="read_committed",
        enable_auto_commit=False,
    )
    consumer.assign([TopicPartition(world.topic, number) for number in range(2)])
    await consumer.start()
    yield consumer
    await consumer.stop()


async def arrived(consumer, *places):
    """Wait until something was fetched for each of these."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not consumer._fetcher._records.keys() >= set(places):
            await kafka_internals.arrival(consumer, 1)


async def test_an_exception_out_of_getmany_leaves_the_count_of_polls_raised(world, consumer):
    with pytest.raises(NoOffsetForPartitionError):
        await consumer.getmany(TopicPartition(world.topic, 0), timeout_ms=5000)
    assert consumer._subscription._fetch_count == 1
    assert consumer._subscription.fetcher_idle_time == 0
    kafka_internals.mark_polled(consumer)
    assert consumer._subscription._fetch_count == 0
    assert 0 < consumer._subscription.fetcher_idle_time < 1


async def test_getmany_without_a_timeout_never_waits(world, consumer):
    place = TopicPartition(world.topic, 0)
    consumer.seek(place, 0)
    await world.append_many(3)
    await arrived(consumer, place)
    with pytest.raises(StopIteration) as returned:
        consumer.getmany(place, timeout_ms=0, max_records=2).send(None)
    assert len(returned.value.value[place]) == 2


async def test_getmany_of_no_partition_means_all(world, consumer):
    places = [TopicPartition(world.topic, number) for number in range(2)]
    for number, place in enumerate(places):
        consumer.seek(place, 0)
        await world.append(b"value", number=number)
    await arrived(consumer, *places)
    assert (await consumer.getmany(timeout_ms=0)).keys() == set(places)


async def test_the_position_is_behind_what_was_handed_out_at_once(world, consumer):
    place = TopicPartition(world.topic, 0)
    assert kafka_internals.position(consumer, place) is None
    consumer.seek(place, 0)
    await world.append_many(3)
    await arrived(consumer, place)
    await consumer.getmany(place, timeout_ms=0, max_records=2)
    assert kafka_internals.position(consumer, place) == 2
    assert kafka_internals.stable_end(consumer, place) == 3


async def test_markers_move_the_position_and_hand_out_nothing(world, consumer):
    place = TopicPartition(world.topic, 0)
    consumer.seek(place, 0)
    await world.transaction([b"x"], commit=False)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while kafka_internals.position(consumer, place) < 2:
            await arrived(consumer, place)
            assert await consumer.getmany(place, timeout_ms=0) == {}


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_a_batch_is_unpacked_when_its_first_record_is_asked_for(
    world, consumer, monkeypatch, codec
):
    place = TopicPartition(world.topic, 0)
    consumer.seek(place, 0)
    unpacked = []
    unpack = getattr(default_records, f"{codec}_decode")

    def counted(packed):
        unpacked.append(len(packed))
        return unpack(packed)

    monkeypatch.setattr(default_records, f"{codec}_decode", counted)
    # Both arrive in one fetch: what is in the log by then is returned with it.
    consumer.pause(place)
    for _ in range(2):
        await world.send(batch_of([b"one", b"two"], codec=codec))
    consumer.resume(place)
    await arrived(consumer, place)
    counts = []
    for _ in range(4):
        counts.append(len(unpacked))
        assert len((await consumer.getmany(place, timeout_ms=0, max_records=1))[place]) == 1
    assert counts == [0, 1, 1, 2]
    assert len(unpacked) == 2


async def test_an_exception_out_of_getmany_takes_the_records_before_it_along(world, consumer):
    place = TopicPartition(world.topic, 0)
    consumer.seek(place, 0)
    await world.send(with_a_header_that_is_no_text([b"0", b"1", b"2"], from_record=2))
    await arrived(consumer, place)
    assert kafka_internals.read_up_to(consumer, place) == 0
    with pytest.raises(UnicodeDecodeError):
        await consumer.getmany(place, timeout_ms=0)
    assert kafka_internals.position(consumer, place) == 0
    assert kafka_internals.read_up_to(consumer, place) == 2
    assert await consumer.getmany(place, timeout_ms=0) == {}
    await arrived(consumer, place)
    for offset in range(2):
        polled = await consumer.getmany(place, timeout_ms=0, max_records=1)
        assert [record.offset for record in polled[place]] == [offset]
    with pytest.raises(UnicodeDecodeError):
        await consumer.getmany(place, timeout_ms=0, max_records=1)
    assert kafka_internals.position(consumer, place) == 2
    assert kafka_internals.read_up_to(consumer, place) == 2


async def test_what_is_no_whole_batch_moves_the_position_by_one(world, consumer, monkeypatch):
    whole = fetcher.MemoryRecords
    monkeypatch.setattr(fetcher, "MemoryRecords", lambda data: whole(data[:-1]))
    place = TopicPartition(world.topic, 0)
    consumer.seek(place, 0)
    await world.send(batch_of([b"0", b"1"]))
    await arrived(consumer, place)
    with pytest.raises(RecordTooLargeError):
        await consumer.getmany(place, timeout_ms=0)
    assert kafka_internals.position(consumer, place) == 1
    assert kafka_internals.read_up_to(consumer, place) is None


async def test_raw_batches_are_the_first_one_whole_and_no_more_than_was_asked_for(
    world, consumer
):
    place = TopicPartition(world.topic, 0)
    small, large = batch_of([b"0", b"1"]), batch_of([b"2" * 5000, b"3"])
    for batch in (large, small, large):
        await world.send(batch)
    first = await kafka_internals.raw_batches(consumer, place, 1, 1024)
    second = await kafka_internals.raw_batches(consumer, place, 2, 1024)
    assert len(first) == len(large)  # it holds offset 1, and begins below it
    assert first[61:] == large[61:]
    assert len(small) < len(second) <= 1024
    assert second[61 : len(small)] == small[61:]
    assert await kafka_internals.raw_batches(consumer, place, 6, 1024) == b""
    with pytest.raises(OffsetOutOfRangeError):
        await kafka_internals.raw_batches(consumer, place, 7, 1024)


async def test_an_arrival_is_noticed_without_taking_anything(world, consumer):
    place = TopicPartition(world.topic, 0)
    consumer.seek(place, 0)
    waiting = asyncio.get_running_loop().create_task(kafka_internals.arrival(consumer, 60))
    await world.append(b"value")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await waiting
    assert kafka_internals.position(consumer, place) == 0


async def test_an_arrival_that_does_not_come_is_given_up(consumer):
    async with asyncio.timeout(PATIENCE_SECONDS):
        await kafka_internals.arrival(consumer, 0.01)
    assert not consumer._fetcher._fetch_waiters


async def test_a_stopped_consumer_raises_without_letting_others_run(consumer):
    await consumer.stop()
    with pytest.raises(ConsumerStoppedError):
        consumer.getmany(timeout_ms=1000).send(None)


async def test_a_dead_fetcher_is_noticed(world):
    consumer = (await world.join()).source._consumer
    kafka_internals.check(consumer)
    consumer._fetcher._fetch_task.cancel()
    await asyncio.wait({consumer._fetcher._fetch_task})
    with pytest.raises(KafkaError, match="background"):
        kafka_internals.check(consumer)


async def test_a_dead_coordination_comes_out_of_getmany_as_if_we_were_cancelled(world):
    member = await world.join()
    consumer = member.source._consumer
    consumer._coordinator._coordination_task.cancel()
    await asyncio.wait({consumer._coordinator._coordination_task})
    with pytest.raises(asyncio.CancelledError):
        consumer.getmany(timeout_ms=0).send(None)
    with pytest.raises(KafkaError, match="background"):
        kafka_internals.check(consumer)
    with pytest.raises(BrokerUnavailable):
        await member.source.poll([])


async def test_a_pause_is_forgotten_at_a_rebalance(world):
    first = await world.join()
    consumer = first.source._consumer
    assert len(consumer.paused()) == 2
    first.source._consumer.pause = lambda *_: None  # what `assigned` does first
    await world.join()
    await first.until(lambda one: one.number == 2)
    assert consumer.paused() == set()


async def test_what_a_listener_raises_is_swallowed(world):
    class Raises(ConsumerRebalanceListener):
        def on_partitions_revoked(self, revoked):
            raise ZeroDivisionError

        def on_partitions_assigned(self, assigned):
            raise ZeroDivisionError

    consumer = AIOKafkaConsumer(
        bootstrap_servers=world.options.bootstrap_servers, group_id=world.group
    )
    consumer.subscribe([world.topic], listener=Raises())
    await consumer.start()
    try:
        assert len(consumer.assignment()) == 2
    finally:
        await consumer.stop()


async def test_the_coordinator_shows_membership_and_sends_heartbeats(world):
    member = await world.join()
    consumer = member.source._consumer
    assert kafka_internals.is_member(consumer)
    assert not kafka_internals.must_rejoin(consumer)
    assert await kafka_internals.heartbeat(consumer)
    await world.expel(member)
    assert not await kafka_internals.heartbeat(consumer)
    assert kafka_internals.must_rejoin(consumer)
    assert not kafka_internals.is_member(consumer)


async def test_the_coordinator_is_known_by_its_number_until_it_is_lost(world):
    consumer = (await world.join()).source._consumer
    brokers = {broker.nodeId for broker in consumer._client.cluster.brokers()}
    assert consumer._coordinator.coordinator_id in brokers
    consumer._coordinator.coordinator_dead()
    assert consumer._coordinator.coordinator_id is None


async def test_a_record_of_neither_key_nor_value_is_refused_by_send(world):
    producer = AIOKafkaProducer(bootstrap_servers=world.options.bootstrap_servers)
    await producer.start()
    try:
        with pytest.raises(AssertionError):
            await producer.send(world.topic)
    finally:
        await producer.stop()
