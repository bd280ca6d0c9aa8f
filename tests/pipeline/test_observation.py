"""What a worker shows: alive while it goes on, ready while it works on all it has."""

import asyncio
import sys

import pytest

from tests.pipeline.test_floods import GUARDED, good, malformed, phase
from tests.support.universe import GROUP, live, upsert
from worker.app.observation import Observation
from worker.app.process import _loop_factory
from worker.core.lifecycle import Phase
from worker.core.model import Partition


def observe(member, *, progress_seconds=60):
    loop = asyncio.get_running_loop()
    return Observation(member.worker, clock=loop.time, progress_seconds=progress_seconds)


def test_a_worker_is_ready_once_it_has_claimed_all_it_was_given():
    async def story(universe):
        member = universe.start()
        observation = observe(member)
        assert observation.ready()[0] is False
        universe.publish(upsert("a"), partition=0)
        await universe.settled()
        is_ready, reasons = observation.ready()
        assert is_ready, reasons
        assert reasons["partitions"] == 2
        member.worker.runner.stop.set()
        assert observation.ready()[0] is False

    live(story)


def test_a_held_partition_lags_by_all_that_is_not_settled_and_its_worker_is_ready():
    async def story(universe):
        good(universe, 200)
        member = universe.start()
        await universe.settled()
        malformed(universe, 2000)
        await phase(member, Phase.HELD)
        await asyncio.sleep(5)
        observation = observe(member)
        held = observation.state()["partitions"][0]
        assert (held["phase"], held["lag"]) == ("held", 2200 - held["next_offset"])
        assert observation._lags()["documents", "0"] == held["lag"]
        is_ready, reasons = observation.ready()
        assert (is_ready, reasons["not_running"]) == (True, [])

    live(story, settings=GUARDED)


def test_a_partition_that_is_not_polled_is_counted_by_what_it_does():
    async def story(universe):
        good(universe, 200)
        member = universe.start()
        await universe.settled()
        paused = observe(member)._paused()
        assert paused == dict.fromkeys(("claiming", "draining", "fenced", "held", "halted"), 0)
        malformed(universe, 2000)
        await phase(member, Phase.HELD)
        assert observe(member)._paused() == {**paused, "held": 1}

    live(story, settings=GUARDED)


def test_the_age_of_the_oldest_record_in_work_grows_until_it_is_settled():
    async def story(universe):
        answer = asyncio.get_running_loop().create_future()

        async def script(request):
            await answer

        universe.embedder.script = script
        member = universe.start()
        observation = observe(member)
        universe.publish(upsert("a"), partition=0)
        await universe.embedder.in_flight(1)
        before = observation._ages()
        await asyncio.sleep(7)
        after = observation._ages()
        assert after["documents", "0"] == pytest.approx(before["documents", "0"] + 7)
        assert after["documents", "1"] == 0
        answer.set_result(None)
        await universe.settled()
        assert observation._ages() == {("documents", "0"): 0, ("documents", "1"): 0}

    live(story)


def test_a_provider_that_is_away_is_no_reason_to_restart():
    async def story(universe):
        never = asyncio.get_running_loop().create_future()

        async def script(request):
            await never

        universe.embedder.script = script
        member = universe.start()
        observation = observe(member)
        universe.publish(upsert("a"), partition=0)
        await universe.embedder.in_flight(1)
        for _ in range(20):
            assert observation.live()[0]
            await asyncio.sleep(30)
        never.cancel()

    live(story)


def test_a_partition_that_has_records_and_takes_none_is_stuck():
    async def story(universe):
        member = universe.start()
        observation = observe(member, progress_seconds=20)
        await universe.broker.stable_at(GROUP, 1)
        await asyncio.sleep(1)
        # The client delivers nothing of it any more, and says nothing either.
        member.worker.runner.source.pause(Partition("documents", 0))
        universe.publish(upsert("a"), partition=0)
        assert observation.live()[0]
        await asyncio.sleep(15)
        assert observation.live()[0]
        await asyncio.sleep(10)
        is_live, reasons = observation.live()
        assert (is_live, reasons["stuck"]) == (False, ["documents/0"])

    live(story)


def test_the_state_tells_queue_partitions_and_outcomes():
    async def story(universe):
        member = universe.start()
        observation = observe(member)
        universe.publish(upsert("a"), partition=0)
        await universe.settled()
        state = observation.state()
        assert state["queue"] == {"documents": 0, "bytes": 0, "waiting": 0, "in_flight": 0}
        assert state["outcomes"] == {"stored": 1}
        first = state["partitions"][0]
        assert (first["partition"], first["phase"]) == ("documents/0", "running")
        assert (first["next_offset"], first["lag"], first["problem"]) == (1, 0, None)

    live(story)


def test_the_loop_is_uvloop_s_where_there_is_one(monkeypatch):
    import uvloop

    assert _loop_factory() is uvloop.new_event_loop
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert _loop_factory() is asyncio.new_event_loop


@pytest.mark.parametrize("silent_seconds", [100, 140])
def test_a_poll_loop_that_stands_still_is_not_alive(silent_seconds):
    async def story(universe):
        member = universe.start()
        await universe.broker.stable_at(GROUP, 1)
        observation = observe(member)
        member.worker.intake.turned_at -= silent_seconds
        assert observation.live()[0] is (silent_seconds < 120)

    live(story)
