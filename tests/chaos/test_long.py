"""
What `make chaos` does, with more of everything, for hours: `make chaos-long` runs it.

`EMBEDFLEET_TEST_KILLS` and `EMBEDFLEET_TEST_SOAK_SECONDS` say how much of the two longest.
"""

import os

import pytest

from tests.chaos import nemesis, outages, soak
from tests.chaos.production import TIMERS, production
from tests.chaos.world import run

pytestmark = [pytest.mark.long, pytest.mark.real]

KILLS = int(os.environ.get("EMBEDFLEET_TEST_KILLS", "1000"))
SOAK_SECONDS = float(os.environ.get("EMBEDFLEET_TEST_SOAK_SECONDS", "600"))
FAULT_SECONDS = 60.0
ROUNDS = 20
TIMED = "tests.chaos.timed"


async def test_the_timers_that_users_have(make_world, verdicts):
    await run(make_world(seats=3, timers=TIMERS), verdicts, production)


async def test_mixed_faults_for_long_leave_nothing_behind(make_world, verdicts):
    world = make_world(poison=0.05, module=TIMED)
    await run(world, verdicts, lambda world: soak.soak(world, SOAK_SECONDS))


async def test_every_network_fault_for_a_minute(make_world, verdicts):
    world = make_world(module=TIMED)
    await run(world, verdicts, lambda world: outages.network(world, FAULT_SECONDS))


async def test_workers_that_are_frozen_again_and_again_write_nothing(make_world, verdicts):
    await run(make_world(), verdicts, lambda world: nemesis.freezes(world, ROUNDS))


async def test_restarts_again_and_again_buy_nothing_twice(make_world, verdicts):
    world = make_world(seats=3)
    await run(world, verdicts, lambda world: nemesis.rolling_restarts(world, ROUNDS))


async def test_a_thousand_kills_cost_nothing_but_what_was_in_flight(make_world, verdicts):
    world = make_world(poison=0.05, module=TIMED)
    await run(world, verdicts, lambda world: nemesis.kill_storm(world, KILLS))
