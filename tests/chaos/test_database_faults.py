"""Databases whose disk is full, and that end transactions to resolve deadlocks."""

import pytest

from tests.chaos import database_faults
from tests.chaos.world import run

pytestmark = [pytest.mark.chaos, pytest.mark.real]


async def test_a_database_whose_disk_is_full_costs_nothing_but_time(make_world, verdicts):
    await run(make_world(seats=2), verdicts, database_faults.disk_full)


async def test_deadlocks_cost_nothing_but_time(make_world, verdicts):
    await run(make_world(seats=2), verdicts, lambda world: database_faults.deadlocks(world, 20))
