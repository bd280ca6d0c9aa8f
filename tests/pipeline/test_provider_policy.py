"""The provider fails, throttles or refuses: what a whole worker makes of it."""

import asyncio
from dataclasses import replace
from math import log2

import pytest

from tests.support.universe import COLLECTION, GROUP, live, upsert, with_options
from worker.core.model import ChunkingOptions
from worker.errors import ProviderUnavailable, QuotaExhausted, RateLimited, RejectedInput

LINES = replace(COLLECTION, name="lines", chunking=ChunkingOptions("fixed", size=10))
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

    # Sixty times as long as a document may take: passes that were charged would show.
    live(story, settings=with_options(BUSY, ingest={"document_timeout_seconds": 10}))


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
        assert universe.embedder.requests <= 1 + 2 * k * log2(64 / k) + 2 * k
        assert all(count == 1 for count in universe.embedder.embedded.values())

    live(story, settings=with_options(embedding={"max_inputs": 64}))


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("inputs", [1, 16])
def test_an_outage_after_others_were_answered_charges_nobody(guarded, inputs):
    """Too few calls to open the breaker; and every request has seen others being answered."""

    async def story(universe):
        down = False

        async def script(request):
            await asyncio.sleep(1)
            if down:
                raise ProviderUnavailable("503", status=503)

        universe.embedder.script = script
        universe.start(guarded=guarded)
        for start in range(0, 40, 4):
            fill(universe, 4, start=start)
            await asyncio.sleep(0.7)
        down = True
        await asyncio.sleep(3600)
        assert universe.letters.letters == []
        down = False
        await universe.settled()
        assert universe.letters.letters == []
        assert len(universe.database.state.documents) == 40

    live(story, settings=with_options(BUSY, embedding={"max_inputs": inputs}))


def test_a_hint_of_more_than_two_minutes_is_waited_for_without_a_call():
    async def story(universe):
        loop = asyncio.get_running_loop()
        until = loop.time() + 500

        async def script(request):
            if loop.time() < until:
                raise RateLimited(status=429, retry_after_seconds=until - loop.time())

        universe.embedder.script = script
        universe.start(guarded=True)
        fill(universe, 200)
        await asyncio.sleep(499)
        assert universe.embedder.requests <= 8
        await universe.settled()
        assert loop.time() - until < 5 + 2
        assert universe.letters.letters == []

    live(story, settings=BUSY)


def test_a_throttled_request_is_neither_parted_nor_made_smaller():
    async def story(universe):
        await universe.create_collection(LINES)
        universe.pieces = lambda text: [text[at : at + 10] for at in range(0, len(text), 10)]
        sizes, loop = [], asyncio.get_running_loop()
        until = loop.time() + 20

        async def script(request):
            sizes.append(len(request.texts))
            if loop.time() < until:
                raise RateLimited("429", status=429, retry_after_seconds=1)

        universe.embedder.script = script
        universe.start(guarded=True)
        text = "".join(f"{number:010d}" for number in range(6 * 16))
        universe.publish(upsert("d", 1, text, collection="lines"))
        await universe.settled()
        assert len(sizes) > 6 + 5
        assert set(sizes) == {16}
        assert universe.embedder.answers == 6

    live(story)


@pytest.mark.parametrize("first", [None, ProviderUnavailable("503", status=503)], ids=repr)
def test_who_is_throttled_again_and_again_comes_back_ever_later(first):
    async def story(universe):
        answers = iter([] if first is None else [first])

        async def script(request):
            raise next(answers, RateLimited("429", status=429))

        universe.embedder.script = script
        universe.start()
        fill(universe, 1)
        await asyncio.sleep(300)
        before = universe.embedder.requests
        await asyncio.sleep(600)
        # Half of a minute on average; it was less than a second at the first time.
        assert 5 <= universe.embedder.requests - before <= 60

    live(story, settings=BUSY)


@pytest.mark.parametrize("inputs", [1, 16])
def test_where_every_other_call_fails_no_more_is_sent_than_a_fifth_above_what_it_takes(inputs):
    """Requests that were sent, over those that nobody could do without at that rate."""

    async def story(universe):
        async def script(request):
            await asyncio.sleep(0.05)
            if universe.random.random() < 0.5:
                raise ProviderUnavailable("500", status=500)

        universe.embedder.script = script
        universe.start(guarded=True)
        fill(universe, 1500)
        await universe.settled()
        # One good answer a request, and where half of the calls fail each takes two of them.
        unavoidable = 2 * universe.embedder.answers
        assert universe.embedder.requests <= 1.2 * unavoidable
        assert universe.letters.letters == []

    live(story, settings=with_options(BUSY, embedding={"max_inputs": inputs}))


def test_what_fails_first_spends_the_budget_of_retries_and_everybody_else_waits_for_long():
    """500 tokens at 14 are 35 quick retries; then each waits 5 s on average."""

    async def story(universe):
        async def script(request):
            raise ProviderUnavailable("503", status=503)

        universe.embedder.script = script
        universe.start()
        fill(universe, 100)
        await universe.embedder.in_flight(1)
        await asyncio.sleep(2)
        assert 100 + 35 <= universe.embedder.requests <= 100 + 35 + 2 * (100 * 2 / 10)

    queue = {"max_in_flight": 100}
    embedding = {"concurrency": 100, "connections_per_host": 100}
    live(story, settings=with_options(BUSY, queue=queue, embedding=embedding))


class Quota:
    """A provider that takes so many requests in each window, and tells when the next begins."""

    def __init__(self, per_window, window_seconds):
        self.loop = asyncio.get_running_loop()
        self.per_window = per_window
        self.window_seconds = window_seconds
        self.taken = {}
        self.ends = []

    async def __call__(self, request):
        await asyncio.sleep(0.02)
        window, past = divmod(self.loop.time(), self.window_seconds)
        taken = self.taken[window] = self.taken.get(window, 0) + 1
        if taken > self.per_window:
            self.ends.append((self.loop.time(), 429))
            raise RateLimited(status=429, retry_after_seconds=self.window_seconds - past)
        self.ends.append((self.loop.time(), 200))

    def share_of_429(self, since):
        ends = [status for at, status in self.ends if at >= since]
        return ends.count(429) / len(ends)


@pytest.mark.parametrize(
    ("concurrency", "configured", "per_window", "window_seconds"),
    [(8, None, 600, 60), (4, None, 300, 30), (50, 300, 300, 60)],
)
def test_a_storm_of_429_drains_at_the_rate_of_the_quota(
    concurrency, configured, per_window, window_seconds
):
    async def story(universe):
        loop = asyncio.get_running_loop()
        quota = universe.embedder.script = Quota(per_window, window_seconds)
        count = 4 * per_window
        fill(universe, count)
        began = loop.time()
        universe.start(guarded=True)
        await universe.settled()
        # The windows are the provider's: the first one may have begun before we did.
        ideal = count / per_window * window_seconds
        assert loop.time() - began <= 1.1 * ideal
        assert quota.share_of_429(since=began + 60) <= 0.02
        assert universe.letters.letters == []
        assert len(universe.database.state.documents) == count

    options = {"concurrency": concurrency, "requests_per_minute": configured}
    live(story, settings=with_options(BUSY, embedding={"max_inputs": 1} | options))


def test_after_the_first_good_probe_the_full_rate_is_back_within_two_seconds():
    async def story(universe):
        loop = asyncio.get_running_loop()
        down, goods = False, []

        async def script(request):
            await asyncio.sleep(0.1)
            if down:
                raise ProviderUnavailable("503", status=503)
            goods.append(loop.time())

        universe.embedder.script = script
        universe.start(guarded=True)
        fill(universe, 5000)
        await asyncio.sleep(5)
        full = sum(at > loop.time() - 1 for at in goods)
        assert full >= 300
        down = True
        await asyncio.sleep(300)
        goods.clear()
        down = False
        await asyncio.sleep(5 + 2 + 2)
        first = goods[0]
        assert sum(first + 2 <= at < first + 3 for at in goods) >= 0.95 * full

    options = {"max_documents": 1000, "max_in_flight": 200}
    live(story, settings=with_options(BUSY, queue=options, embedding={"concurrency": 40}))


def test_one_or_two_poisons_cost_no_more_than_the_bound_wherever_they_stand():
    async def story(universe, poisons):
        async def script(request):
            if any(text.startswith("poison") for text in request.texts):
                raise RejectedInput(status=400)

        universe.embedder.script = script
        for number in range(64):
            text = f"{'poison' if number in poisons else 'text'} {number}"
            universe.publish(upsert(f"d{number}", 1, text), partition=0)
        universe.start()
        await universe.settled()
        dead = {letter.document_id for letter in universe.letters.letters}
        assert dead == {f"d{number}" for number in poisons}
        k = len(poisons)
        assert universe.embedder.requests <= 1 + 2 * k * log2(64 / k) + 2 * k

    places = [{one} for one in range(0, 64, 9)] + [{0, 63}, {31, 32}, {1, 2}]
    for poisons in places:
        live(
            lambda universe, poisons=poisons: story(universe, poisons),
            settings=with_options(embedding={"max_inputs": 64}),
            partitions=1,
        )


def test_a_small_tenant_does_not_wait_behind_the_backlog_of_a_large_one():
    async def story(universe):
        loop = asyncio.get_running_loop()
        asked = {}

        async def script(request):
            await asyncio.sleep(1)
            asked.update(dict.fromkeys(request.texts, loop.time()))

        universe.embedder.script = script
        universe.start()
        fill(universe, 300)
        await asyncio.sleep(5)
        began = loop.time()
        universe.publish(upsert("small", 1, "of a small tenant", tenant="small"))
        await universe.settled()
        # The requests that are under way end, and the next ones are its turn.
        assert asked["of a small tenant"] - began <= 2 + 0.5
        assert max(asked.values()) - began > 20

    one_by_one = {"concurrency": 8, "max_inputs": 1}
    live(story, settings=with_options(embedding=one_by_one, queue={"max_in_flight": 200}))
