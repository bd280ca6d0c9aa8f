"""Workers that are killed, frozen and restarted, and commits of which nobody hears."""

import pytest

from tests.chaos import nemesis
from tests.chaos.world import run

pytestmark = [pytest.mark.chaos, pytest.mark.real]


async def test_fifty_kills_at_all_places_cost_nothing_but_what_was_in_flight(
    make_world, verdicts
):
    world = make_world(poison=0.05, module="tests.chaos.timed")
    await run(world, verdicts, lambda world: nemesis.kill_storm(world, 50))


async def test_two_hundred_commits_of_which_nobody_hears_are_found_done(make_world, verdicts):
    await run(make_world(seats=1), verdicts, lambda world: nemesis.unknown_commits(world, 200))


async def test_workers_that_were_frozen_in_a_transaction_write_nothing(make_world, verdicts):
    await run(make_world(), verdicts, lambda world: nemesis.freezes(world, 2))


async def test_rolling_restarts_buy_nothing_twice(make_world, verdicts):
    await run(make_world(seats=3), verdicts, lambda world: nemesis.rolling_restarts(world, 2))
