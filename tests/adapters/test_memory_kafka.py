"""The broker in memory: the faults that can be ordered, and the facts that can be awaited."""

import asyncio
import doctest

import pytest

from tests.contracts.test_dead_letters import RECORDED, letter
from tests.support.kafka_facts import values_of
from tests.support.kafka_worlds import MemoryWorld
from tests.support.virtual_time import run
from worker.adapters import memory_broker
from worker.adapters.memory_kafka import MemoryBroker, MemoryDeadLetters, MemorySource
from worker.core.model import Partition
from worker.errors import BrokerUnavailable
from worker.ports import DeadLetters, Source

ZERO = Partition("documents", 0)


@pytest.fixture
async def world():
    world = MemoryWorld(partitions=2)
    yield world
    await world.close()


def test_they_are_the_ports():
    broker = MemoryBroker()
    source: Source = MemorySource(broker, "group")
    letters: DeadLetters = MemoryDeadLetters(broker)
    assert source
    assert letters


def test_the_examples_are_true():
    assert doctest.testmod(memory_broker).failed == 0


async def test_a_held_commit_is_unknown_and_arrives_late(world):
    member = await world.join()
    world.broker.hold_commits()
    with pytest.raises(BrokerUnavailable):
        await member.source.commit({ZERO: 3})
    assert await member.source.committed(ZERO) is None
    world.broker.apply_held_commits()
    assert await member.source.committed(ZERO) == 3
    await member.source.commit({ZERO: 9})
    assert await member.source.committed(ZERO) == 9


async def test_a_late_commit_rewinds_a_newer_one_as_in_kafka(world):
    member = await world.join()
    world.broker.hold_commits()
    with pytest.raises(BrokerUnavailable):
        await member.source.commit({ZERO: 3})
    held, world.broker._held = world.broker._held, None
    await member.source.commit({ZERO: 9})
    world.broker._held = held
    world.broker.apply_held_commits()
    assert await member.source.committed(ZERO) == 3


@pytest.mark.parametrize("call", ["commit", "committed", "bounds", "landmark", "confirm"])
async def test_a_call_fails_as_often_as_it_was_ordered(world, call):
    member = await world.join()
    arguments = {"commit": ({ZERO: 1},), "landmark": (ZERO, 0), "confirm": ()}.get(
        call, (ZERO,)
    )
    world.broker.fail(call, BrokerUnavailable("first"), BrokerUnavailable("second"))
    for message in ("first", "second"):
        with pytest.raises(BrokerUnavailable, match=message):
            await getattr(member.source, call)(*arguments)
    await getattr(member.source, call)(*arguments)


async def test_a_poll_that_fails_loses_nothing(world):
    await world.append_many(2)
    member = await world.join(begin_at=0)
    world.broker.fail("poll")
    with pytest.raises(BrokerUnavailable):
        await member.source.poll([ZERO])
    assert values_of(await member.take_records(2)) == [b"0", b"1"]


async def test_while_the_broker_is_down_calls_fail_and_poll_returns_nothing(world):
    await world.append_many(1)
    member = await world.join(begin_at=0)
    world.broker.stop()
    assert await member.source.poll([ZERO]) == []
    with pytest.raises(BrokerUnavailable):
        await member.source.commit({ZERO: 1})
    with pytest.raises(BrokerUnavailable):
        await MemorySource(world.broker, "group").open(member)
    world.broker.start()
    assert values_of(await member.take_records(1)) == [b"0"]


async def test_an_expelled_member_that_does_not_poll_is_told_nothing(world):
    first = await world.join()
    second = await world.join()
    await world.broker.stable_at(world.group, 2)
    told = list(first.events)
    world.broker.expel(first.source)
    await world.broker.stable_at(world.group, 1)
    assert len(second.partitions) == 2
    assert first.events == told
    await first.source.poll([])
    await world.broker.stable_at(world.group, 2)
    assert [name for name, _, _ in first.events[len(told) :]] == [
        "revoked",
        "drained",
        "assigned",
    ]


async def test_a_commit_can_be_awaited(world):
    member = await world.join()
    waiting = asyncio.get_running_loop().create_task(
        world.broker.committed_at(world.group, ZERO, 5)
    )
    await member.source.commit({ZERO: 4})
    await asyncio.sleep(0)
    assert not waiting.done()
    await member.source.commit({ZERO: 5})
    await waiting


async def test_a_compacted_record_leaves_a_gap(world):
    await world.append_many(4)
    world.broker.log(ZERO).remove([1, 3])
    member = await world.join(begin_at=0)
    records, next_offset = await member.take_until_offset(ZERO, 4)
    assert (values_of(records), next_offset) == ([b"0", b"2"], 4)
    assert await member.source.landmark(ZERO, 1) is None


async def test_a_sick_partition_is_told(world):
    world.broker.log(ZERO).sick = "corrupt_record"
    member = await world.join(begin_at=0)
    await member.source.poll([ZERO])
    assert member.failures == {ZERO: "corrupt_record"}


async def test_a_letter_may_be_written_and_yet_reported_as_failed(world):
    letters = world.make_dead_letters()
    world.broker.fail("publish acknowledgement")
    with pytest.raises(BrokerUnavailable):
        await letters.publish(letter(), RECORDED)
    assert letters.letters == []
    assert len(await world.dead_letter_records(1)) == 1


def test_in_virtual_time_a_run_repeats_exactly():
    async def story():
        world = MemoryWorld(partitions=4)
        members = [await world.join(begin_at=0) for _ in range(3)]
        await world.append_many(20, number=0)
        await world.append_many(20, number=3)
        world.broker.expel(members[1].source)
        for _ in range(10):
            for member in members:
                await member.source.poll(sorted(member.partitions))
        events = [member.events for member in members]
        await world.close()
        return events

    assert run(story(), seed=7) == run(story(), seed=7)
