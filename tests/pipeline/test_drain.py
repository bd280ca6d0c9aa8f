"""Rebalances, stops and crashes: what is in flight finishes, what waits is left to the next."""

import asyncio
from collections import Counter

import pytest

from tests.support.universe import GROUP, ONLY, TOPIC, live, upsert, with_options
from worker.core.model import Partition


def slow(universe, seconds=1.0):
    async def script(request):
        await asyncio.sleep(seconds * universe.random.random())

    universe.embedder.script = script


def publish_many(universe, count, *, start=0):
    for number in range(start, start + count):
        universe.publish(upsert(f"d{number}", 1, f"text {number}"))


def test_a_stop_finishes_what_is_in_flight_and_commits_it():
    async def story(universe):
        slow(universe, 2.0)
        publish_many(universe, 40)
        member = universe.start()
        await universe.embedder.in_flight(2)
        await universe.stop(member)
        paid = universe.embedder.embedded
        assert paid
        stored = {row.stored.version for row in universe.database.state.documents.values()}
        assert stored == {1}
        assert len(universe.database.state.documents) == len(paid)
        committed = sum(universe.broker.committed.values())
        assert committed <= len(paid)
        assert universe.broker.group(GROUP).members == []

    live(story)


@pytest.mark.parametrize("seed", range(10))
def test_a_third_worker_joins_and_one_stops_and_nothing_is_embedded_twice(seed):
    async def story(universe):
        slow(universe)
        first = universe.start()
        universe.start()
        await universe.broker.stable_at(GROUP, 2)
        publish_many(universe, 120)
        await universe.embedder.in_flight(4)
        universe.start()
        publish_many(universe, 120, start=120)
        await universe.broker.stable_at(GROUP, 3)
        await universe.embedder.in_flight(4)
        await universe.stop(first)
        await universe.settled()
        assert len(universe.database.state.documents) == 240
        assert universe.embedder.embedded == Counter(f"text {n}" for n in range(240))

    live(story, seed=seed, partitions=4)


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_worker_s_records_are_read_again_by_the_others(seed):
    async def story(universe):
        slow(universe)
        first = universe.start()
        universe.start()
        await universe.broker.stable_at(GROUP, 2)
        publish_many(universe, 100)
        await universe.embedder.in_flight(3)
        await universe.kill(first)
        await universe.settled()
        assert len(universe.database.state.documents) == 100
        assert all(universe.text(f"d{n}") == f"text {n}" for n in range(100))

    live(story, seed=seed)


def test_a_drain_ends_at_its_deadline_though_the_provider_never_answers():
    async def story(universe):
        loop = asyncio.get_running_loop()

        async def never(request):
            await loop.create_future()

        universe.embedder.script = never
        publish_many(universe, 20)
        member = universe.start()
        await universe.embedder.in_flight(1)
        began = loop.time()
        await universe.stop(member)
        assert 20 <= loop.time() - began <= 26
        assert set(universe.broker.committed.values()) <= {0}
        assert member.worker.dispatch.scheduler.documents == 0
        assert universe.database.state.documents == {}

    live(story)


def test_an_expelled_worker_comes_back_and_goes_on():
    async def story(universe):
        slow(universe)
        member = universe.start()
        await universe.broker.stable_at(GROUP, 1)
        publish_many(universe, 50)
        await universe.embedder.in_flight(2)
        universe.broker.expel(member.worker.runner.source)
        await universe.settled()
        assert len(universe.database.state.documents) == 50

    live(story)


def test_a_partition_that_cannot_be_read_does_not_hold_up_the_others():
    async def story(universe):
        universe.broker.log(Partition(TOPIC, 1)).sick = "corrupt"
        universe.publish(upsert("a"), partition=0)
        universe.publish(upsert("b"), partition=1)
        member = universe.start()
        await universe.broker.committed_at(GROUP, ONLY, 1)
        assert universe.text("a") == "text"
        problems = [life.problem for life in member.worker.lives if life.problem]
        assert problems == ["corrupt"]

    live(story)


def test_a_provider_that_answers_nobody_holds_the_work_and_costs_no_dead_letter():
    async def story(universe):
        from worker.errors import ProviderUnavailable

        down = True

        async def script(request):
            if down:
                raise ProviderUnavailable("503", status=503)

        universe.embedder.script = script
        publish_many(universe, 30)
        member = universe.start()
        await asyncio.sleep(3600)
        assert universe.letters.letters == []
        assert universe.database.state.documents == {}
        assert universe.broker.group(GROUP).members == [member.worker.runner.source]
        down = False
        await universe.settled()
        assert len(universe.database.state.documents) == 30
        assert universe.letters.letters == []

    live(story)


def test_a_document_that_fails_alone_while_others_pass_is_a_dead_letter():
    async def story(universe):
        from worker.errors import ProviderUnavailable

        async def script(request):
            if "bad" in request.texts:
                raise ProviderUnavailable("500", status=500)

        universe.embedder.script = script
        universe.start()
        universe.publish(upsert("bad", 1, "bad"), partition=0)
        for number in range(2000):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=1)
            if number % 20 == 0:
                await asyncio.sleep(0.2)
        await universe.settled()
        assert [letter.document_id for letter in universe.letters.letters] == ["bad"]
        assert len(universe.database.state.documents) == 2000

    live(story)


def silent_for(universe, text):
    never = asyncio.get_running_loop().create_future()

    async def script(request):
        if text in request.texts:
            await never

    universe.embedder.script = script


def test_a_document_that_never_comes_to_an_end_while_others_do_is_a_dead_letter():
    async def story(universe):
        silent_for(universe, "bad")
        universe.start()
        universe.publish(upsert("bad", 1, "bad"), partition=0)
        await universe.embedder.in_flight(1)  # alone in its request
        for number in range(100):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=1)
            await asyncio.sleep(1)
        await universe.settled()
        (letter,) = universe.letters.letters
        assert (letter.document_id, letter.reason) == ("bad", "deadline_exceeded")
        assert letter.passes == 5

    live(story, settings=with_options(ingest={"document_timeout_seconds": 10}))


def test_passes_in_which_nobody_was_answered_cost_nothing():
    async def story(universe):
        silent_for(universe, "bad")
        universe.start()
        universe.publish(upsert("bad", 1, "bad"), partition=0)
        await asyncio.sleep(1000)
        assert universe.letters.letters == []

    live(story, settings=with_options(ingest={"document_timeout_seconds": 10}))


def test_a_database_that_is_away_holds_the_work():
    async def story(universe):
        from worker.errors import StoreUnavailable

        away = True

        async def hook(call, moment):
            if away:
                raise StoreUnavailable

        member = universe.start()
        await universe.broker.stable_at(GROUP, 1)
        publish_many(universe, 20)
        universe.hook = hook
        await asyncio.sleep(600)
        assert not member.task.done()
        away = False
        await universe.settled()
        assert len(universe.database.state.documents) == 20

    live(story)


def test_a_dead_letter_topic_that_fails_holds_its_partition_and_drops_nothing():
    async def story(universe):
        from worker.errors import BrokerUnavailable

        universe.broker.fail("publish", *[BrokerUnavailable()] * 10)
        universe.broker.append(TOPIC, 0, key=b"tenant/articles/a", value=b"{")
        universe.start()
        await universe.settled()
        assert len(universe.letters.letters) == 1

    live(story)


def test_the_queue_s_books_balance_after_any_end():
    async def story(universe):
        slow(universe)
        publish_many(universe, 200)
        member = universe.start()
        await universe.embedder.in_flight(2)
        worker = member.worker
        await universe.stop(member)
        scheduler = worker.dispatch.scheduler
        assert (scheduler.documents, scheduler.bytes, scheduler.in_flight) == (0, 0, 0)
        assert worker.dispatch.in_flight == 0

    live(story, settings=with_options(kafka={"drain_seconds": 0.5}))
