"""Two topics for one collection, two groups, clocks that jump, strangers in the group."""

import pytest

from tests.chaos import circumstances
from tests.chaos.world import run
from tests.support.kafka import topics

pytestmark = [pytest.mark.chaos, pytest.mark.real]


async def test_two_topics_that_feed_one_collection(make_world, verdicts, proxied_kafka):
    world = make_world(seats=2)
    async with topics(proxied_kafka.bootstrap_servers) as made:
        world.fleet.more_topics = (await made.create(partitions=12),)
        await run(world, verdicts, circumstances.two_topics)


async def test_two_groups_that_write_one_table(make_world, verdicts):
    await run(make_world(seats=2), verdicts, circumstances.two_groups)


async def test_clocks_that_jump_by_an_hour_change_nothing(make_world, verdicts):
    world = make_world(seats=2, module="tests.chaos.wrong_clock")
    await run(world, verdicts, circumstances.clocks)


async def test_a_stranger_with_another_table_is_refused(make_world, verdicts):
    await run(make_world(seats=2), verdicts, circumstances.strange_table)


async def test_a_stranger_with_another_model_is_refused(make_world, verdicts):
    await run(make_world(seats=2), verdicts, circumstances.strange_dimensions)


async def test_a_stranger_without_the_model_says_so_and_loses_nothing(make_world, verdicts):
    await run(make_world(seats=2), verdicts, circumstances.strange_provider)
