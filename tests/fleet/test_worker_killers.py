"""A record of which real worker processes die is found and dead-lettered; nothing else is."""

import pytest

from tests.support import dying_worker
from tests.support.fleet import QUICK_TIMERS, upsert

pytestmark = pytest.mark.real

KILLERS = {0: (dying_worker.EXIT, dying_worker.ABORT), 1: (dying_worker.EAT,)}


async def test_records_of_which_workers_die_are_dead_letters_and_all_others_are_stored(
    make_fleet,
):
    fleet = await make_fleet(partitions=2)
    for partition, killers in KILLERS.items():
        events = [upsert(f"d{partition}-{number}", 1, f"text {number}") for number in range(40)]
        for number, killer in enumerate(killers):
            events.insert(20 * number, upsert(f"killer {partition} {number}", 1, killer))
        await fleet.publish(events, partition=partition)
    module = "tests.support.dying_worker"
    deaths = await fleet.supervise(at_most=20, module=module, **QUICK_TIMERS)
    assert deaths >= 4
    letters = await fleet.letters()
    assert {letter.reason for letter in letters} == {"worker_killer"}
    positions = sorted(letter.position[1:] for letter in letters)
    assert positions == [(0, 0), (0, 20), (1, 0)]
    assert len(await fleet.stored()) == 80
