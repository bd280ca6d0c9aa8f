"""Several models in one worker: what is wrong with one holds up no other."""

import asyncio
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from schemas.dead_letter import Reason
from tests.support.universe import COLLECTION, GROUP, ONLY, TOPIC, live, upsert, with_options
from worker.app.observation import Observation
from worker.core.model import Partition
from worker.errors import (
    Forbidden,
    KeyRefused,
    ProviderMisconfigured,
    ProviderUnavailable,
    RateLimited,
)

OTHER = Partition(TOPIC, 1)
NARROW = with_options(
    queue={"max_documents": 200, "max_in_flight": 8},
    embedding={"concurrency": 4, "max_inputs": 1},
)
ILLS = [
    pytest.param(ProviderMisconfigured("404", status=404), id="an unknown model"),
    pytest.param(ProviderUnavailable("500", status=500), id="an outage"),
    pytest.param(RateLimited("429", status=429, retry_after_seconds=3600), id="a long hint"),
    pytest.param(Forbidden("403", status=403), id="no access"),
]


async def with_two_models(universe, error):
    """Let one model fail so, and the other answer."""
    await universe.create_collection(replace(COLLECTION, name="ill", model="ill"))

    async def script(request):
        await asyncio.sleep(0.02)
        if request.model == "ill":
            raise error

    universe.embedder.script = script


def fill(universe, count, collection, partition, start=0):
    for number in range(start, start + count):
        event = upsert(f"{collection}{number}", 1, f"{collection} {number}")
        universe.publish(replace_collection(event, collection), partition=partition)


def replace_collection(event, collection):
    return upsert(event.id, event.version, event.text, collection=collection)


@pytest.mark.parametrize("error", ILLS)
def test_documents_of_an_ill_model_hold_up_no_other_model(error):
    async def story(universe):
        await with_two_models(universe, error)
        universe.start(guarded=True)
        fill(universe, 100, "ill", partition=0)
        fill(universe, 1, "articles", partition=1)
        await asyncio.sleep(30)
        for start in range(1, 60):
            fill(universe, 1, "articles", partition=1, start=start)
            async with asyncio.timeout(15):
                await universe.broker.committed_at(GROUP, OTHER, start + 1)
            await asyncio.sleep(20)
        assert universe.letters.letters == []
        universe.embedder.script = None
        async with asyncio.timeout(3700):
            await universe.settled()
        assert len(universe.database.state.documents) == 160
        assert universe.letters.letters == []

    live(story, settings=NARROW)


def test_a_model_that_nobody_has_asked_for_yet_is_not_held_up_by_an_unknown_one():
    async def story(universe):
        await with_two_models(universe, ProviderMisconfigured("404", status=404))
        universe.start(guarded=True)
        fill(universe, 100, "ill", partition=0)
        await asyncio.sleep(3600)
        fill(universe, 10, "articles", partition=1)
        async with asyncio.timeout(30):
            await universe.broker.committed_at(GROUP, OTHER, 10)

    live(story, settings=NARROW)


def test_a_model_that_is_ill_for_hours_charges_no_document_a_pass_while_others_are_answered():
    """Five passes of five minutes would make it a dead letter."""

    async def story(universe):
        await with_two_models(universe, ProviderMisconfigured("404", status=404))
        universe.start(guarded=True)
        fill(universe, 5, "ill", partition=0)
        for start in range(400):
            fill(universe, 1, "articles", partition=1, start=start)
            await asyncio.sleep(10)
        assert universe.letters.letters == []
        assert universe.row("articles399") is not None

    live(story, settings=NARROW)


def test_a_low_rate_of_failures_of_one_model_is_not_the_fault_of_its_documents():
    """Too few calls to open a breaker, and the other model is answered all the time."""

    async def story(universe):
        await with_two_models(universe, ProviderUnavailable("500", status=500))
        universe.start(guarded=True)
        fill(universe, 1, "ill", partition=0)
        for start in range(200):
            fill(universe, 1, "articles", partition=1, start=start)
            await asyncio.sleep(5)
        assert universe.letters.letters == []

    live(story, settings=NARROW)


def test_a_wrong_key_leaves_all_models_alone_and_holds_intake():
    async def story(universe):
        await with_two_models(universe, KeyRefused("401", status=401))
        down = False

        async def script(request):
            if down:
                raise KeyRefused("401", status=401)

        universe.embedder.script = script
        member = universe.start(guarded=True)
        fill(universe, 1, "ill", partition=0)
        fill(universe, 1, "articles", partition=1)
        await universe.settled()
        down = True
        requests = universe.embedder.requests
        fill(universe, 20, "ill", partition=0, start=1)
        fill(universe, 20, "articles", partition=1, start=1)
        await asyncio.sleep(600)
        held = member.worker.dispatch.scheduler.documents
        fill(universe, 100, "articles", partition=1, start=21)
        await asyncio.sleep(60)
        assert member.worker.dispatch.scheduler.documents == held
        assert universe.embedder.requests - requests <= 8 + 2 * 660 / 30 + 2
        down = False
        await universe.settled()
        assert universe.letters.letters == []

    live(story, settings=NARROW)


def test_after_an_outage_of_all_the_width_is_that_of_before():
    async def story(universe):
        down = False

        async def script(request):
            await asyncio.sleep(0.02)
            if down:
                raise ProviderUnavailable("500", status=500)

        universe.embedder.script = script
        await universe.create_collection(replace(COLLECTION, name="ill", model="ill"))
        universe.start(guarded=True)
        (provider,) = universe.providers
        fill(universe, 10, "ill", partition=0)
        fill(universe, 10, "articles", partition=1)
        await universe.settled()
        down = True
        fill(universe, 60, "ill", partition=0, start=10)
        fill(universe, 60, "articles", partition=1, start=10)
        await asyncio.sleep(120)
        down = False
        await universe.settled()
        assert provider.state()["requests_at_once"] == 4

    live(story, settings=NARROW)


def test_after_an_outage_the_width_is_at_once_that_of_before():
    async def story(universe):
        loop, until = asyncio.get_running_loop(), None

        async def script(request):
            await asyncio.sleep(0.02)
            if until is not None and loop.time() < until:
                raise RateLimited("429", status=429, retry_after_seconds=until - loop.time())

        universe.embedder.script = script
        universe.start(guarded=True)
        (provider,) = universe.providers
        fill(universe, 10, "articles", partition=1)
        await universe.settled()
        until = loop.time() + 600
        fill(universe, 60, "articles", partition=1, start=10)
        await asyncio.sleep(300)
        assert provider.state()["requests_at_once"] < 4
        answers = universe.embedder.answers
        while universe.embedder.answers == answers:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert provider.state()["requests_at_once"] == 4
        await universe.settled()

    live(story, settings=NARROW)


def test_a_key_that_is_refused_to_everybody_is_alarmed_once():
    async def story(universe):
        refused = KeyRefused("401", status=401)
        await universe.create_collection(replace(COLLECTION, name="ill", model="ill"))

        async def script(request):
            await asyncio.sleep(0.02)
            if is_revoked:
                raise refused

        is_revoked = False
        universe.embedder.script = script
        universe.start(guarded=True)
        fill(universe, 10, "ill", partition=0)
        fill(universe, 10, "articles", partition=1)
        await universe.settled()
        is_revoked = True
        before = universe.embedder.requests
        with capture_logs() as logs:
            fill(universe, 50, "ill", partition=0, start=10)
            fill(universe, 50, "articles", partition=1, start=10)
            await asyncio.sleep(600)
        assert universe.embedder.requests - before >= 10
        told = [one for one in logs if one.get("action") == "breaker"]
        assert [one["error"] for one in told if one["log_level"] == "error"] == ["401"]

    live(story, settings=NARROW)


def test_a_model_that_comes_back_does_not_widen_what_throttling_of_another_has_narrowed():
    async def story(universe):
        is_ill = True

        async def script(request):
            await asyncio.sleep(0.02)
            if request.model == "ill" and is_ill:
                raise ProviderUnavailable("500", status=500)
            if request.model == "model" and is_ill:
                raise RateLimited("429", status=429)

        universe.embedder.script = script
        await universe.create_collection(replace(COLLECTION, name="ill", model="ill"))
        universe.start(guarded=True)
        (provider,) = universe.providers
        widths = []
        limit = provider._limit
        resume = limit.resume
        limit.resume = lambda value: (widths.append(value), resume(value))
        fill(universe, 30, "ill", partition=0)
        fill(universe, 30, "articles", partition=1)
        await asyncio.sleep(20)
        is_ill = False
        await universe.settled()
        assert widths == []

    live(story, settings=NARROW)


def test_the_state_tells_of_each_model_and_of_who_waits_for_it():
    async def story(universe):
        await with_two_models(universe, ProviderMisconfigured("404", status=404))
        member = universe.start(guarded=True)
        (provider,) = universe.providers
        observation = Observation(
            member.worker,
            clock=asyncio.get_running_loop().time,
            progress_seconds=60,
            provider=provider.state,
        )
        fill(universe, 3, "ill", partition=0)
        fill(universe, 1, "articles", partition=1)
        await universe.broker.committed_at(GROUP, OTHER, 1)
        told = observation.state()["provider"]
        assert told["documents_set_aside"] == 3
        assert told["requests_at_once"] == 4
        assert told["models"]["model"]["state"] == "closed"
        assert told["models"]["ill"]["state"] == "open"
        assert told["models"]["ill"]["error"] == "404"
        assert provider.open_models() == {("model",): 0, ("ill",): 1}

    live(story, settings=NARROW)


@pytest.mark.parametrize("together", [False, True])
def test_a_text_that_a_firewall_forbids_is_a_dead_letter_and_the_others_pass(together):
    async def story(universe):
        async def script(request):
            await asyncio.sleep(0.02)
            if "forbidden" in request.texts:
                raise Forbidden("403", status=403)

        universe.embedder.script = script
        universe.start(guarded=True)
        universe.publish(upsert("bad", 1, "forbidden"), partition=0)
        if together:
            for number in range(15):
                universe.publish(upsert(f"n{number}", 1, f"neighbour {number}"), partition=0)
        number = 0
        while not universe.letters.letters:
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=1)
            number += 1
            await asyncio.sleep(0.1)
        await universe.settled()
        (letter,) = universe.letters.letters
        assert (letter.document_id, letter.reason) == ("bad", Reason.REJECTED_INPUT)
        assert letter.facts.provider_status == 403
        assert "403" in letter.detail
        (provider,) = universe.providers
        assert provider.state()["models"]["model"]["state"] == "closed"
        assert max(universe.embedder.embedded.values()) == 1

    live(story)


@pytest.mark.parametrize("place", range(16))
def test_a_forbidden_text_is_found_where_nobody_else_asks(place):
    async def story(universe):
        async def script(request):
            if "forbidden" in request.texts:
                raise Forbidden("403", status=403)

        universe.embedder.script = script
        for number in range(16):
            text = "forbidden" if number == place else f"text {number}"
            universe.publish(upsert(f"d{number}", 1, text), partition=0)
        universe.start(guarded=True)
        async with asyncio.timeout(600):
            await universe.broker.committed_at(GROUP, ONLY, 16)
        assert [letter.document_id for letter in universe.letters.letters] == [f"d{place}"]
        assert len(universe.database.state.documents) == 15

    live(story, partitions=1)


def test_a_revoked_key_that_is_answered_with_403_parks_after_a_handful_of_calls():
    async def story(universe):
        down = False

        async def script(request):
            await asyncio.sleep(0.02)
            if down:
                raise Forbidden("403", status=403)

        universe.embedder.script = script
        universe.start(guarded=True)
        fill(universe, 100, "articles", partition=0)
        await universe.settled()
        down = True
        requests = universe.embedder.requests
        fill(universe, 100, "articles", partition=0, start=100)
        await asyncio.sleep(20)
        # Those that were under way at once, and no more.
        assert universe.embedder.requests - requests <= 4
        await asyncio.sleep(3600)
        assert universe.embedder.requests - requests <= 4 + 3600 / 30 + 1
        assert universe.letters.letters == []
        down = False
        await universe.settled()
        assert universe.letters.letters == []
        assert len(universe.database.state.documents) == 200

    live(story, settings=NARROW)
