"""Partitions that are hard to take over, that come and go, and that are claimed too late."""

import pytest

from tests.chaos import moves
from tests.chaos.world import run

pytestmark = [pytest.mark.chaos, pytest.mark.real]


async def test_a_job_that_is_stuck_in_a_copy_holds_nobody_up(make_world, verdicts):
    await run(make_world(seats=2), verdicts, lambda world: moves.stuck_copies(world, 2))


async def test_partitions_that_move_away_and_back_are_neither_stale_nor_behind(
    make_world, verdicts
):
    await run(make_world(seats=2), verdicts, lambda world: moves.away_and_back(world, 4))


async def test_who_is_fenced_by_a_claim_that_came_too_late_claims_again(make_world, verdicts):
    await run(make_world(seats=3), verdicts, lambda world: moves.late_claims(world, 4))
