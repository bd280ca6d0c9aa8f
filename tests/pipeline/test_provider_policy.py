"""The provider fails, throttles or refuses: what a whole worker makes of it."""

import asyncio
from math import log2

import pytest

from tests.support.universe import GROUP, live, upsert, with_options
from worker.errors import ProviderUnavailable, QuotaExhausted, RateLimited, RejectedInput

BUSY = with_options(queue={"max_documents": 400}, embedding={"max_inputs": 1})


def fill(universe, count, start=0):
    for number in range(start, start + count):
        universe.publish(upsert(f"d{number}", 1, f"text {number}"))


def test_an_outage_of_ten_minutes_costs_a_probe_now_and_then_and_no_document():
    async def story(universe):
        loop = asyncio.get_running_loop()
        down = False

        async def script(request):
            await asyncio.sleep(0.02)
            if down:
                raise ProviderUnavailable("503", status=503)

        universe.embedder.script = script
        member = universe.start(guarded=True)
        fill(universe, 200)
        await universe.settled()
        down = True
        fill(universe, 1000, start=200)
        await asyncio.sleep(30)
        before, began = universe.embedder.requests, loop.time()
        await asyncio.sleep(600)
        probes = universe.embedder.requests - before
        assert 0 < probes <= loop.time() - began
        assert member.worker.counters.rebalances == 1
        down = False
        back = loop.time()
        await universe.settled()
        assert loop.time() - back < 5 + 2 + 1000 / 8 * 0.02 + 2
        assert universe.letters.letters == []
        assert len(universe.database.state.documents) == 1200
        assert universe.broker.group(GROUP).members == [member.worker.runner.source]

    live(story, settings=BUSY)


def test_an_answer_to_others_before_its_first_failure_blames_no_document_for_an_outage():
    """Too few requests for the breaker: only what was answered since can tell."""

    async def story(universe):
        down = False

        async def script(request):
            await asyncio.sleep(1.0 if request.texts == ["text 0"] else 0.5)
            if down:
                raise ProviderUnavailable("gone")

        universe.embedder.script = script
        universe.start(guarded=True)
        fill(universe, 2)
        await universe.embedder.in_flight(2)
        await asyncio.sleep(0.75)
        assert len(universe.database.state.documents) == 1
        down = True
        await asyncio.sleep(60)
        down = False
        await universe.settled()
        assert universe.letters.letters == []
        assert len(universe.database.state.documents) == 2

    live(story, settings=BUSY)


def test_while_the_provider_is_left_alone_nothing_more_is_polled():
    async def story(universe):
        async def script(request):
            raise QuotaExhausted("insufficient_quota", status=429)

        universe.embedder.script = script
        member = universe.start(guarded=True)
        fill(universe, 50)
        await universe.embedder.in_flight(1)
        await asyncio.sleep(60)
        held = member.worker.dispatch.scheduler.documents
        fill(universe, 200, start=50)
        requests = universe.embedder.requests
        await asyncio.sleep(300)
        assert member.worker.dispatch.scheduler.documents == held
        assert universe.embedder.requests - requests <= 300 / 30 + 1
        universe.embedder.script = None
        await universe.settled()
        assert universe.letters.letters == []

    live(story, settings=BUSY)


def test_a_throttled_request_costs_no_document_an_attempt():
    async def story(universe):
        throttled = 0

        async def script(request):
            nonlocal throttled
            if throttled < 40:
                throttled += 1
                raise RateLimited(status=429, retry_after_seconds=1)

        universe.embedder.script = script
        universe.start(guarded=True)
        fill(universe, 60)
        await universe.settled()
        assert universe.letters.letters == []
        assert throttled == 40

    live(story, settings=BUSY)


@pytest.mark.parametrize(
    "poisons", [{0}, {63}, {5, 6}, {0, 21, 42, 63}, {1, 2, 3, 5, 8, 13, 21, 34}]
)
def test_exactly_the_poisoned_documents_are_dead_letters_within_the_bound(poisons):
    async def story(universe):
        async def script(request):
            if any(text.startswith("poison") for text in request.texts):
                raise RejectedInput(status=400)

        universe.embedder.script = script
        for number in range(64):
            text = f"{'poison' if number in poisons else 'text'} {number}"
            universe.publish(upsert(f"d{number}", 1, text), partition=0)
        universe.start(guarded=True)
        await universe.settled()
        dead = {letter.document_id for letter in universe.letters.letters}
        assert dead == {f"d{number}" for number in poisons}
        assert len(universe.database.state.documents) == 64 - len(poisons)
        k = len(poisons)
        # Whatever the documents were packed into: each refused request keeps to the bound.
        assert universe.embedder.requests <= 64 / 16 + 2 * k * log2(64 / k) + 2 * k + k
        assert all(count == 1 for count in universe.embedder.embedded.values())

    live(story, settings=with_options(embedding={"max_inputs": 64}))
