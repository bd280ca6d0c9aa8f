"""A partition whose records would flood the dead-letter topic is held instead."""

import asyncio

import pytest

from tests.support.universe import GROUP, TOPIC, live, upsert, with_options
from worker.adapters.memory_store import MemoryClaims
from worker.core.lifecycle import Phase
from worker.core.model import Partition

BAD = Partition(TOPIC, 0)
GUARDED = with_options(
    dead_letters={"sample_records": 100, "probe_records": 10, "probe_seconds": 60},
    queue={"max_documents": 400, "max_in_flight": 16},
)


def malformed(universe, count, partition=0):
    for _ in range(count):
        universe.broker.append(TOPIC, partition, key=b"tenant/articles/x", value=b"{")


def good(universe, count, start=0, partition=0):
    for number in range(start, start + count):
        universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=partition)


def life(member, partition=BAD):
    return member.worker.lives.find(partition)


async def phase(member, wanted, claims=1):
    """Wait until the partition is in a phase under its n-th claim."""

    def is_so():
        is_claimed = member.worker.counters.claims >= claims
        return is_claimed and life(member) is not None and life(member).phase is wanted

    async with asyncio.timeout(600):
        while not is_so():  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.01)


async def healthy(universe, count):
    """Start a worker that has a sample of good records already."""
    good(universe, count)
    member = universe.start()
    await universe.settled()
    return member


def test_a_flood_is_held_before_it_reaches_the_topic_and_the_other_partitions_go_on():
    async def story(universe):
        member = await healthy(universe, 200)
        malformed(universe, 2000)
        good(universe, 100, start=1000, partition=1)
        await phase(member, Phase.HELD)
        assert len(universe.letters.letters) == 5  # of the last 100
        await universe.broker.committed_at(GROUP, Partition(TOPIC, 1), 100)
        await asyncio.sleep(30)
        assert len(universe.letters.letters) == 5
        assert universe.database.state.holds[GROUP, BAD].problem == life(member).problem
        assert 200 <= universe.broker.committed[GROUP, BAD] <= 205
        assert len(universe.database.state.documents) == 300

    live(story, settings=GUARDED)


def test_each_minute_a_probe_finds_out_whether_it_is_over():
    async def story(universe):
        member = await healthy(universe, 100)
        malformed(universe, 40)
        good(universe, 300, start=100)
        await phase(member, Phase.HELD)
        loop = asyncio.get_running_loop()
        began, before = loop.time(), len(universe.letters.letters)
        await universe.settled()
        # 35 letters are left: three probes of ten of them, a fourth with five, a good fifth.
        assert 5 * 60 < loop.time() - began < 5 * 60 + 30
        assert before == 5
        assert len(universe.letters.letters) == 40
        assert len(universe.database.state.documents) == 400
        assert universe.database.state.holds == {}
        assert life(member).phase is Phase.RUNNING

    live(story, partitions=1, settings=GUARDED)


def test_a_probe_lets_no_more_than_its_records_through():
    async def story(universe):
        member = await healthy(universe, 100)
        malformed(universe, 1000)
        for probe in range(4):
            await phase(member, Phase.HELD, claims=1 + probe)
            assert len(universe.letters.letters) <= 5 + 10 * probe
            assert universe.broker.committed[GROUP, BAD] >= 100 + 10 * probe - 10

    live(story, partitions=1, settings=GUARDED)


def test_an_operator_lets_it_go_on_at_once():
    async def story(universe):
        member = await healthy(universe, 100)
        malformed(universe, 60)
        good(universe, 40, start=100)
        await phase(member, Phase.HELD)
        await asyncio.sleep(3)
        loop = asyncio.get_running_loop()
        began = loop.time()
        hold = universe.database.state.holds[GROUP, BAD]
        universe.database.state.holds[GROUP, BAD] = hold._replace(is_resumed=True)
        await universe.settled()
        assert loop.time() - began < 5
        assert len(universe.letters.letters) == 60
        assert universe.database.state.holds == {}

    live(story, partitions=1, settings=GUARDED)


def test_an_operators_word_in_a_probe_counts_as_well():
    async def story(universe):
        member = await healthy(universe, 100)
        malformed(universe, 60)
        await phase(member, Phase.HELD)
        await phase(member, Phase.HELD, claims=2)
        hold = universe.database.state.holds[GROUP, BAD]
        universe.database.state.holds[GROUP, BAD] = hold._replace(is_resumed=True)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await universe.settled()
        assert loop.time() - began < 5
        assert universe.database.state.holds == {}

    live(story, partitions=1, settings=GUARDED)


def test_a_flood_that_ends_with_the_log_is_over_at_its_next_probe():
    async def story(universe):
        member = await healthy(universe, 100)
        malformed(universe, 7)
        await phase(member, Phase.HELD)
        await universe.settled()
        await asyncio.sleep(150)
        assert universe.database.state.holds == {}
        assert life(member).phase is Phase.RUNNING

    live(story, partitions=1, settings=GUARDED)


@pytest.mark.parametrize("call", ["hold", "lift"])
def test_a_partition_that_was_claimed_when_its_hold_is_written_costs_no_worker(call):
    async def story(universe):
        claims = MemoryClaims(universe.database)
        stolen = 0

        async def hook(name, moment):
            nonlocal stolen
            if (name, moment) == (call, "before") and not stolen:
                stolen = 1
                await claims.claim(GROUP, BAD, "another")

        member = await healthy(universe, 100)
        universe.hook = hook
        malformed(universe, 20)
        good(universe, 100, start=100)
        await universe.settled()
        assert stolen
        assert not member.task.done()
        assert len(universe.database.state.documents) == 200

    live(story, partitions=1, settings=GUARDED)


def test_the_next_owner_keeps_to_the_hold():
    async def story(universe):
        first = await healthy(universe, 100)
        malformed(universe, 1000)
        await phase(first, Phase.HELD)
        await asyncio.sleep(3)
        await universe.stop(first)
        second = universe.start()
        await asyncio.sleep(30)
        assert len(universe.letters.letters) <= 5 + 10
        assert life(second).phase is Phase.HELD

    live(story, partitions=1, settings=GUARDED)


def test_what_is_in_flight_when_it_is_held_is_stored_and_met_once():
    async def story(universe):
        async def script(request):
            await asyncio.sleep(2)

        universe.embedder.script = script
        good(universe, 100)
        malformed(universe, 10)
        good(universe, 20, start=100)
        malformed(universe, 10)
        universe.start()
        await universe.settled()
        assert len(universe.letters.letters) == 20
        assert len(universe.database.state.documents) == 120
        assert set(universe.embedder.embedded.values()) == {1}

    live(story, partitions=1, settings=GUARDED)


def test_a_fleet_that_dead_letters_what_few_there_are_is_never_held():
    async def story(universe):
        for batch in range(20):
            good(universe, 25, start=25 * batch)
            malformed(universe, 1)  # 4 %
        member = universe.start()
        await universe.settled()
        assert len(universe.letters.letters) == 20
        assert member.worker.counters.claims == 1

    live(story, partitions=1, settings=GUARDED)
