"""`KafkaSource`: what only a real broker does, with a broker that may be killed and frozen."""

import asyncio
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import NoOffsetForPartitionError, TopicAuthorizationFailedError
from aiokafka.structs import BrokerMetadata

from tests.support.kafka_facts import PATIENCE_SECONDS, Member, values_of
from tests.support.kafka_own import frozen
from worker.adapters import kafka_flow, kafka_internals
from worker.adapters.kafka_source import KafkaSource
from worker.config import KafkaOptions
from worker.core.model import Partition
from worker.errors import BrokerUnavailable, FencedError
from worker.ports import Source

pytestmark = pytest.mark.real


def seconds_passed(seconds):
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    return lambda _: loop.time() > end


def test_it_is_a_source():
    source: Source = KafkaSource(KafkaOptions())
    assert source


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
async def test_batches_of_every_codec_are_read(world, codec):
    producer = AIOKafkaProducer(
        bootstrap_servers=world.options.bootstrap_servers, compression_type=codec, linger_ms=5
    )
    await producer.start()
    try:
        sent = [
            await producer.send(world.topic, b"%d" % index * 50, partition=0)
            for index in range(100)
        ]
        await asyncio.wait(sent)
    finally:
        await producer.stop()
    member = await world.join(begin_at=0)
    records = await member.take_records(100)
    assert values_of(records) == [b"%d" % index * 50 for index in range(100)]


async def test_polling_nothing_for_long_keeps_the_membership(world):
    world.options = replace(world.options, max_poll_interval_seconds=0.5)
    member = await world.join()
    await member.until(seconds_passed(2))
    assert [name for name, _, _ in member.events] == ["assigned"]
    assert await member.source.confirm() == (1, member.partitions)


async def test_a_member_without_partitions_keeps_its_membership(world):
    world.options = replace(world.options, max_poll_interval_seconds=1)
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    members, polling = [], []
    for _ in range(3):
        members.append(await world.join())
        polling.append(loop.create_task(members[-1].until(lambda _: done.is_set())))
    # Each has been through the round that the third one began.
    await members[0].until(
        lambda _: all(
            one.number >= least for one, least in zip(members, (3, 2, 1), strict=True)
        )
    )
    assert sorted(len(one.partitions) for one in members) == [0, 1, 1]
    numbers = [one.number for one in members]
    await members[0].until(seconds_passed(2))
    done.set()
    await asyncio.wait(polling)
    assert [task.exception() for task in polling] == [None] * 3
    assert [one.number for one in members] == numbers


async def test_a_member_whose_poll_loop_is_dead_is_expelled_also_after_errors(world):
    world.options = replace(world.options, max_poll_interval_seconds=1)
    dead = await world.join()
    assert dead.source.begin(1, world.partition(), 100)
    await dead.take(lambda _: bool(dead.failures))
    await dead.source.poll([])
    alive = await world.join()
    await dead.until(lambda one: one.number == 2)
    await alive.until(lambda one: len(one.partitions) == 2)


async def test_what_is_wrong_with_a_partition_is_no_batch_that_cannot_be_read(
    world, monkeypatch
):
    await world.append_many(2, number=0)
    member = await world.join(begin_at=0)
    consumer = member.source._consumer
    getmany = consumer.getmany
    sick = {
        TopicPartition(world.topic, 1): TopicAuthorizationFailedError(world.topic),
    }

    async def failing(*partitions, **how):
        for partition in partitions:
            if partition in sick:
                raise sick[partition]
        return await getmany(*partitions, **how)

    monkeypatch.setattr(consumer, "getmany", failing)
    assert values_of(await member.take_records(2)) == [b"0", b"1"]
    assert member.failures == {world.partition(1): "not_authorized"}
    sick[TopicPartition(world.topic, 0)] = NoOffsetForPartitionError("none")
    await member.take(lambda _: len(member.failures) == 2)
    assert member.failures[world.partition(0)] == "no_offset"
    assert member.unreadables == []


async def test_an_idle_wait_ends_when_a_record_arrives(world, monkeypatch):
    member = await world.join(begin_at=0)
    await member.source.poll(sorted(member.partitions))
    monkeypatch.setattr(kafka_flow, "_ARRIVAL_SECONDS", 600)
    polling = asyncio.get_running_loop().create_task(member.take_records(1))
    await world.append(b"value")
    assert values_of(await polling) == [b"value"]


async def test_nothing_is_fetched_before_begin(world):
    first = await world.join()
    await first.source.commit({world.partition(0): 0, world.partition(1): 0})
    await first.source.close()
    second = await world.join()
    assert {Partition(*place) for place in second.source._consumer.paused()} == (
        second.partitions
    )


async def test_a_member_without_a_generation_commits_nothing_into_an_empty_group(world):
    member = await world.join()
    await world.expel(member)
    for _ in range(2):  # Kafka takes the second one: the group is empty, the generation -1
        with pytest.raises(FencedError):
            await member.source.commit({world.partition(): 1})
    assert await member.source.committed(world.partition()) is None


async def test_a_source_resumes_by_itself_after_the_broker_was_killed(world, broker):
    await world.append_many(10)
    member = await world.join(begin_at=0)
    got = values_of(await member.take_records(10))
    broker.kill()
    restart = asyncio.get_running_loop().run_in_executor(None, broker.start)
    # Nothing comes out of poll but nothing.
    while not restart.done():
        assert await member.source.poll(sorted(member.partitions)) == []
    await restart
    await world.append_many(10, start=10)
    async with asyncio.timeout(30):
        while len(got) < 20:
            got += values_of(
                record
                for batch in await member.source.poll(sorted(member.partitions))
                for record in batch.records
            )
        while True:
            try:
                await member.source.commit({world.partition(): 20})
                break
            except BrokerUnavailable:
                continue
    assert got == [b"%d" % index for index in range(20)]
    assert await member.source.committed(world.partition()) == 20
    assert [name for name, _, _ in member.events] == ["assigned"]


async def test_closing_with_the_broker_frozen_takes_seconds_and_leaves_no_task(
    world, broker, monkeypatch
):
    monkeypatch.setattr(kafka_internals, "_GENTLE_SECONDS", 0.5)
    await world.append_many(10)
    before = asyncio.all_tasks()
    source = KafkaSource(world.options)
    member = Member(source, begin_at=0)
    await source.open(member)
    await member.take(bool)
    loop = asyncio.get_running_loop()
    with frozen(broker):
        began = loop.time()
        await source.close()
        took = loop.time() - began
        left = asyncio.all_tasks() - before
    assert took < 4
    assert left == set()


async def test_closing_leaves_no_task_and_cuts_nothing_where_the_broker_answers(
    world, monkeypatch
):
    monkeypatch.setattr(kafka_internals, "_GENTLE_SECONDS", PATIENCE_SECONDS)
    before = asyncio.all_tasks()
    source = KafkaSource(world.options)
    await source.open(Member(source, begin_at=0))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await source.close()
    assert loop.time() - began < PATIENCE_SECONDS  # else the connections were cut
    assert asyncio.all_tasks() - before == set()


async def test_opening_where_nobody_listens_fails_at_once_and_leaves_no_task(broker):
    before = asyncio.all_tasks()
    source = KafkaSource(KafkaOptions(bootstrap_servers="127.0.0.1:1"))
    with pytest.raises(BrokerUnavailable, match="bootstrap"):
        await source.open(Member(source))
    assert asyncio.all_tasks() - before == set()
    await source.close()


async def test_opening_may_be_given_up_while_others_drain(world):
    before = asyncio.all_tasks()
    still = asyncio.Event()
    first = await world.join(drain=still.wait)
    source = KafkaSource(world.options)
    joining = asyncio.get_running_loop().create_task(source.open(Member(source)))
    await first.until(lambda one: one.events[-1][0] == "revoked")
    joining.cancel()
    await asyncio.wait({joining})
    assert joining.cancelled()
    still.set()
    await first.until(lambda one: one.events[-1][0] == "assigned")
    await first.source.close()
    assert asyncio.all_tasks() - before == set()


async def test_a_commit_that_was_given_up_is_not_overtaken_by_the_next(
    world, broker, monkeypatch
):
    member = await world.join()
    await member.source.commit({world.partition(): 1})
    sent = []
    commit = member.source._consumer.commit

    async def counted(offsets):
        sent.extend(offsets.values())
        await commit(offsets)

    monkeypatch.setattr(member.source._consumer, "commit", counted)
    monkeypatch.setattr(member.source, "_limit_seconds", 0.3)
    with frozen(broker):
        for offset in (2, 3):
            with pytest.raises(BrokerUnavailable):
                await member.source.commit({world.partition(): offset})
    monkeypatch.setattr(member.source, "_limit_seconds", 10)
    await member.source.commit({world.partition(): 4})
    assert await member.source.committed(world.partition()) == 4
    assert sent == [2, 4]


async def test_a_commit_that_waits_over_a_rebalance_is_never_sent(world):
    """The library would send it with the new generation, and rewind whoever is further."""
    first = await world.join()
    old = first.number
    coordinator = first.source._consumer._coordinator
    async with coordinator._commit_lock:
        offsets = dict.fromkeys(first.partitions, 1)
        late = asyncio.get_running_loop().create_task(first.source.commit(offsets))
        second = await world.join()
        await first.until(lambda one: one.number > old)
        await second.source.commit(dict.fromkeys(second.partitions, 5))
    with pytest.raises(FencedError):
        await late
    (theirs,) = second.partitions
    assert await second.source.committed(theirs) == 5


@pytest.mark.parametrize(
    "call", ["commit", "committed", "bounds", "landmark", "batch", "confirm", "topic_ids"]
)
async def test_a_question_to_a_frozen_broker_is_given_up(world, broker, monkeypatch, call):
    await world.append_many(1)
    member = await world.join()
    monkeypatch.setattr(member.source, "_limit_seconds", 0.3)
    partition = world.partition()
    arguments = {
        "commit": ({partition: 1},),
        "landmark": (partition, 0),
        "topic_ids": (),
        "batch": (partition, 0),
        "confirm": (),
    }
    with frozen(broker):
        async with asyncio.timeout(PATIENCE_SECONDS):
            with pytest.raises(BrokerUnavailable):
                await getattr(member.source, call)(*arguments.get(call, (partition,)))


async def test_a_broker_that_is_silent_holds_up_no_question_for_the_ids_of_topics(world):
    member = await world.join()
    cluster = member.source._consumer._client.cluster

    async def say_nothing(reader, writer):
        await reader.read()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        cluster._brokers |= {
            number: BrokerMetadata(number, "127.0.0.1", port, None)
            for number in range(100, 109)
        }
        for _ in range(5):
            assert set(await member.source.topic_ids()) == {world.topic}


async def test_landmarks_asked_for_at_once_share_one_connection(world, monkeypatch):
    await world.append_many(3, number=0)
    await world.append_many(3, number=1)
    member = await world.join()
    lookup = member.source._lookup
    starts = []
    start = lookup._start

    async def counted():
        starts.append(1)
        return await start()

    monkeypatch.setattr(lookup, "_start", counted)
    loop = asyncio.get_running_loop()
    tasks = [
        loop.create_task(member.source.landmark(world.partition(number), offset))
        for number in range(2)
        for offset in range(3)
    ]
    await asyncio.wait(tasks)
    assert [task.result().offset for task in tasks] == [0, 1, 2, 0, 1, 2]
    assert len(starts) == 1
    assert lookup._consumer is None
