"""A harness that finds nothing has to find what is planted: one broken promise a run."""

import signal

import pytest

from tests.chaos.world import World
from tests.planted.table import ON_A_FLEET
from tests.planted.worker import VARIABLE

pytestmark = [pytest.mark.chaos, pytest.mark.real]


async def seen(world: World, bug: str) -> set[str]:
    """Let two workers with a bug live through a freeze and a restart; what the oracle says."""
    world.module = "tests.planted.worker"
    first, second = world.seats
    await world.start(first, "after_answer:stop:#10", **{VARIABLE: bug})
    await world.start(second, **{VARIABLE: bug})
    await world.shared()
    async with world.load():
        await first.worker.logged("failpoint")
        await world.shared(second)
        first.worker.signal(signal.SIGCONT)
        await first.worker.logged("assigned", 2)
        await world.fleet.crash(second.worker)
        await world.start(second, **{VARIABLE: bug})
        await world.fleet.pass_time(5)
    await world.fleet.pass_time(5)
    await world.judge()
    return set(world.report.anomalies)


@pytest.mark.parametrize("bug", ON_A_FLEET, ids=lambda bug: bug.__name__)
async def test_a_broken_promise_turns_a_run_red(make_world, verdicts, bug):
    async with make_world(seats=2, poison=0.05) as world:
        found = await seen(world, bug.__name__)
    assert found & ON_A_FLEET[bug], found
