"""Networks, databases and brokers that fail, and operators who set things back."""

import pytest

from tests.chaos import outages
from tests.chaos.world import run

pytestmark = [pytest.mark.chaos, pytest.mark.real]


async def test_every_network_fault_on_every_link(make_world, verdicts):
    await run(make_world(module="tests.chaos.timed"), verdicts, outages.network)


async def test_a_database_that_kills_refuses_and_restarts(make_world, verdicts, own_postgres):
    world = make_world(seats=3)
    await run(world, verdicts, lambda world: outages.database(world, own_postgres))


async def test_a_broker_that_freezes_dies_and_restarts(make_world, verdicts):
    await run(make_world(seats=3), verdicts, outages.broker)


async def test_a_topic_that_is_read_again_changes_nothing(make_world, verdicts):
    await run(make_world(seats=2), verdicts, outages.replayed)


async def test_partitions_that_are_added_under_running_workers(make_world, verdicts):
    await run(make_world(seats=3), verdicts, outages.partitions_added)


async def test_a_database_that_is_put_back_is_filled_again(
    make_world, verdicts, own_postgres, tmp_path
):
    def scenario(world):
        return outages.restored(world, own_postgres, tmp_path / "snapshot")

    await run(make_world(seats=2), verdicts, scenario)


async def test_what_cannot_be_made_good_is_refused(make_world, verdicts):
    await run(make_world(seats=1), verdicts, outages.refused)
