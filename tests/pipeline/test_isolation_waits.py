"""Partitions that run one by one hold nobody up; who only waits is blamed for nothing."""

import asyncio
from dataclasses import replace

import pytest

from tests.pipeline.test_isolation import (  # noqa: F401 - the fixtures
    KILLER,
    Died,
    dies_of_cutting,
    reasons,
    supervise,
)
from tests.support.universe import COLLECTION, GROUP, ONLY, TOPIC, live, upsert
from worker.core.lifecycle import Phase
from worker.core.model import Partition
from worker.errors import (
    BadOutput,
    BrokerUnavailable,
    Forbidden,
    PermanentError,
    ProviderMisconfigured,
    StoreUnavailable,
)
from worker.pipeline import prepare

ELSEWHERE = replace(COLLECTION, name="elsewhere", model="of another spelling")


async def isolate(universe):
    """Kill two workers that have begun and done nothing."""
    for _ in range(2):
        member = universe.start()
        await running(member)
        await universe.kill(member)


async def running(member):
    while not member.worker.lives.in_phase(Phase.RUNNING):  # noqa: ASYNC110 - virtual time
        await asyncio.sleep(0.01)


def test_a_document_that_waits_for_its_model_holds_up_no_other_isolated_partition():
    async def story(universe):
        async def script(request):
            if request.model == ELSEWHERE.model:
                raise ProviderMisconfigured("404", status=404)

        universe.embedder.script = script
        await universe.create_collection(ELSEWHERE)
        await isolate(universe)
        universe.publish(upsert("waits", 1, "x", collection="elsewhere"), partition=1)
        for number in range(20):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=number % 3)
        universe.start(guarded=True)
        for partition in (0, 2):
            end = universe.broker.log(Partition(TOPIC, partition)).end
            await universe.broker.committed_at(GROUP, Partition(TOPIC, partition), end)
        await asyncio.sleep(100)
        assert len(universe.database.state.documents) == 20
        assert universe.letters.letters == []

    live(story, partitions=3)


@pytest.mark.parametrize("error", [BadOutput("NaN"), Forbidden("403", status=403)])
def test_a_text_that_waits_for_answers_to_others_has_them_in_an_isolated_partition(
    dies_of_cutting,  # noqa: F811
    error,
):
    async def story(universe):
        async def script(request):
            if "bad" in request.texts:
                raise error

        universe.embedder.script = script
        for number in range(40):
            text = {2: KILLER, 10: "bad"}.get(number, f"text {number}")
            universe.publish(upsert(f"d{number}", 1, text), partition=0)
        await supervise(universe)
        assert reasons(universe).total() == 2
        assert len(universe.database.state.documents) == 38

    live(story, partitions=1)


@pytest.mark.parametrize("call", ["apply", "read", "collection"])
def test_workers_that_are_killed_while_they_wait_for_the_database_blame_nobody(call):
    async def story(universe):
        is_away = True

        async def hook(name, moment):
            if is_away and (name, moment) == (call, "before"):
                await asyncio.sleep(30)
                raise StoreUnavailable("canceling statement due to lock timeout")

        universe.hook = hook
        for number in range(5):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
        for _ in range(6):
            member = universe.start()
            await asyncio.sleep(20)
            await universe.kill(member)
        is_away = False
        universe.start()
        await universe.settled()
        assert universe.letters.letters == []
        assert len(universe.database.state.documents) == 5

    live(story, partitions=1)


def test_workers_that_are_killed_while_they_wait_for_a_collection_blame_nobody():
    async def story(universe):
        universe.publish(upsert("a", 1, "x", collection="elsewhere"), partition=0)
        for _ in range(6):
            member = universe.start()
            await asyncio.sleep(20)
            await universe.kill(member)
        await universe.create_collection(ELSEWHERE)
        universe.start()
        await universe.settled()
        assert universe.letters.letters == []

    live(story, partitions=1)


def test_orderly_stops_are_no_crashes_also_where_the_last_commit_fails():
    async def story(universe):
        for number in range(50):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
        for _ in range(3):
            member = universe.start()
            await running(member)
            universe.broker.fail("commit", *[BrokerUnavailable()] * 5)
            await universe.stop(member)
            universe.broker._faults["commit"].clear()
        entry = universe.database.state.crashes[GROUP, ONLY]
        assert (entry.ended, entry.unclean_ends) == (True, 0)

    live(story, partitions=1)


def test_a_partition_that_goes_away_while_it_begins_has_no_unclean_end():
    async def story(universe):
        first = universe.start()
        await running(first)
        await universe.stop(first)
        loop = asyncio.get_running_loop()

        async def hook(name, moment):
            if (name, moment) == ("crashes begin", "committed"):
                loop.call_soon(universe.members[-1].worker.runner.stop.set)
                await asyncio.sleep(0.05)

        universe.hook = hook
        for _ in range(3):
            member = universe.start()
            await member.task
            universe.members.remove(member)
        entry = universe.database.state.crashes[GROUP, ONLY]
        assert (entry.ended, entry.unclean_ends) == (True, 0)

    live(story, partitions=1)


def test_workers_that_die_of_every_text_give_up_three_records_of_a_partition(monkeypatch):
    cut = prepare.split

    def die(*_):
        raise Died

    async def story(universe):
        monkeypatch.setattr(prepare, "split", die)
        for number in range(30):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
        for _ in range(40):
            member = universe.start()
            await asyncio.wait({member.task})
            assert isinstance(member.task.exception(), ExceptionGroup)
            universe.members.remove(member)
        assert reasons(universe) == {"worker_killer": 3}
        monkeypatch.setattr(prepare, "split", cut)
        universe.start()
        await universe.settled()
        assert reasons(universe) == {"worker_killer": 3}
        assert len(universe.database.state.documents) == 27

    live(story, partitions=1)


def test_a_batch_whose_header_says_nothing_that_fits_halts_its_partition_alone(monkeypatch):
    async def story(universe):
        async def doubt(*_):
            raise PermanentError("unreadable_batch", "the header does not fit")

        monkeypatch.setattr("worker.adapters.memory_kafka.MemorySource.batch", doubt)
        for number in range(20):
            document = upsert(f"d{number}", 1, f"text {number}")
            universe.publish(document, partition=number % 2)
        universe.broker.log(ONLY).spoil(4, 5)
        member = universe.start()
        await universe.broker.committed_at(GROUP, Partition(TOPIC, 1), 10)
        await asyncio.sleep(600)
        life = member.worker.lives.find(ONLY)
        assert life.phase is Phase.HALTED
        assert life.progress.next_offset <= 4
        assert life.problem == "corrupt_record; the header does not fit"
        assert universe.letters.letters == []
        assert not member.task.done()

    live(story, partitions=2)


def test_a_record_that_was_polled_when_its_turn_was_over_is_polled_again(
    dies_of_cutting,  # noqa: F811
):
    """The last batch of the log cannot be read; more is published while it is given up."""

    async def story(universe, delay_seconds):
        for number in range(6):
            text = KILLER if number == 2 else f"text {number}"
            universe.publish(upsert(f"d{number}", 1, text), partition=0)
        universe.broker.log(ONLY).spoil(5, 5)
        await supervise(universe)
        universe.broker.log(ONLY).spoil(6, 6)
        universe.publish(upsert("broken", 1, "x"), partition=0)
        await universe.broker.committed_at(GROUP, ONLY, 7)
        await asyncio.sleep(delay_seconds)
        universe.publish(upsert("last", 1, "last"), partition=0)
        await universe.settled()
        assert universe.text("last") == "last"

    for delay in (0.0, 0.01, 0.03, 0.1, 0.19, 0.3):
        live(lambda universe, delay=delay: story(universe, delay), partitions=1)
