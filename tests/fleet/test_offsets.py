"""What Kafka is told of a group: never ahead of the table, and shown by Kafka's own tools."""

import asyncio
import signal
from itertools import count

from tests.support.fleet import upsert
from tests.support.kafka_tools import describe_group

SAMPLES = 200


def endless():
    return (upsert(f"d{number}", 1, f"text {number}") for number in count())


async def test_the_group_is_never_ahead_of_the_table_and_kafka_s_own_tools_show_it(make_fleet):
    fleet = await make_fleet(partitions=4)
    fleet.environment["EMBEDFLEET_KAFKA_COMMIT_INTERVAL_SECONDS"] = "0.05"
    samples = 0

    async def sample_until(fact):
        """Read Kafka first: what it says must stand in the table already."""

        async def sample():
            nonlocal samples
            samples += 1
            kafka = await fleet.committed()
            table = await fleet.progress()
            assert all(offset <= table.get(place, 0) for place, offset in kafka.items())
            return samples % 10 == 0 and await fact()

        await fleet.until(sample, pause_seconds=0)

    async def enough():
        return samples >= SAMPLES

    async def settled():
        return await fleet.committed() == await fleet.ends()

    first = await fleet.start()
    await first.works_on(4)
    async with fleet.flow(endless()):
        second = await fleet.start()
        await sample_until(lambda: fleet.is_shared_by(first, second))
        third = await fleet.start()
        await sample_until(lambda: fleet.is_shared_by(first, second, third))
        first.signal(signal.SIGTERM)
        await sample_until(lambda: fleet.is_shared_by(second, third))
        await sample_until(enough)
    assert second.actions()["assigned"] >= 3
    await sample_until(settled)
    shown = await describe_group(fleet.kafka.bootstrap_servers, fleet.kafka.group)
    assert {
        place: offset.committed for place, offset in shown.items()
    } == await fleet.progress()
    assert [offset.lag for offset in shown.values()] == [0] * 4
    assert await fleet.stored() == await fleet.expected()
    assert await first.ended() == 0


async def test_workers_that_are_stopped_as_they_work_leave_the_group_where_the_table_is(
    make_fleet,
):
    fleet = await make_fleet(partitions=4)
    workers = [await fleet.start(), await fleet.start()]

    async def all_move():
        progress = await fleet.progress()
        return len(progress) == 4 and all(progress.values())

    async with fleet.flow(endless()):
        await fleet.until(lambda: fleet.is_shared_by(*workers))
        await fleet.until(all_move)
        async with asyncio.TaskGroup() as group:
            stops = [group.create_task(fleet.stop(worker)) for worker in workers]
    assert [stop.result() for stop in stops] == [0, 0]
    assert await fleet.committed() == await fleet.progress()
