"""What the provider has refused once is not asked for again, until there is a reason to."""

import asyncio
from dataclasses import replace

import pytest

from schemas.dead_letter import Origin, Reason, with_origin
from tests.pipeline.test_counterexamples import replay, replaying
from tests.pipeline.test_floods import good, healthy, phase
from tests.support.universe import (
    COLLECTION,
    GROUP,
    ONLY,
    live,
    upsert,
    with_options,
)
from worker.core.lifecycle import Phase
from worker.core.model import ChunkingOptions
from worker.errors import BadOutput, ProviderUnavailable, RejectedInput, StoreUnavailable

LINES = replace(COLLECTION, name="lines", chunking=ChunkingOptions("fixed", size=10))


def refuse(universe, text="poison", reason=Reason.CONTENT_FILTER):
    async def script(request):
        if text in request.texts:
            raise RejectedInput("the provider answered 400", status=400, reason=reason)

    universe.embedder.script = script


def reasons(universe):
    return [(letter.document_id, letter.reason) for letter in universe.letters.letters]


async def read_again(universe, member):
    """Let another worker begin at the first record."""
    await universe.stop(member)
    universe.broker.committed[GROUP, ONLY] = 0
    return universe.start()


def told_once(story, **options):
    live(story, partitions=1, **options)


@pytest.mark.parametrize("reason", [Reason.CONTENT_FILTER, Reason.INPUT_TOO_LONG])
def test_a_topic_that_is_read_again_makes_no_call(reason):
    async def story(universe):
        refuse(universe, reason=reason)
        member = universe.start()
        for number in range(30):
            text = "poison" if number == 7 else f"text {number}"
            universe.publish(upsert(f"d{number}", 1, text))
        await universe.settled()
        requests = universe.embedder.requests
        await read_again(universe, member)
        await universe.settled()
        assert universe.embedder.requests == requests
        assert reasons(universe) == [("d7", reason)]
        (row,) = universe.database.state.letters.values()
        assert row.recorded.attempts == 2
        again = row.letter.detail
        assert "1970-01-01 00:1" in again
        assert "a replay asks" in again
        assert "the provider answered 400" in again

    told_once(story)


def test_nothing_of_a_document_with_a_known_poison_is_bought():
    async def story(universe):
        await universe.create_collection(LINES)
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        await universe.settled()
        requests = universe.embedder.requests
        universe.publish(upsert("b", 1, "0123456789poison    9876543210", collection="lines"))
        await universe.settled()
        assert universe.embedder.requests == requests
        assert [name for name, _ in reasons(universe)] == ["a", "b"]

    told_once(story)


def test_another_version_and_another_document_with_the_chunk_make_no_call():
    async def story(universe):
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        await universe.settled()
        requests = universe.embedder.requests
        universe.publish(upsert("a", 2, "poison"))
        universe.publish(upsert("b", 1, "poison"))
        await universe.settled()
        assert universe.embedder.requests == requests
        assert sorted(name for name, _ in reasons(universe)) == ["a", "a", "b"]

    told_once(story)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"tenant": "other"}, id="another tenant"),
        pytest.param({"collection": "others"}, id="another model"),
        pytest.param({"text": "poison, changed"}, id="a changed text"),
    ],
)
def test_what_is_not_known_to_be_refused_is_asked_for(other):
    async def story(universe):
        await universe.create_collection(replace(COLLECTION, name="others", model="other"))
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        await universe.settled()
        universe.embedder.script = None
        event = {"text": "poison", "tenant": "tenant", "collection": "articles"} | other
        universe.publish(upsert("b", 1, **event))
        await universe.settled()
        where = {name: event[name] for name in ("tenant", "collection")}
        assert universe.text("b", **where) == event["text"]

    told_once(story)


def test_a_replay_asks_again_and_once_it_passes_all_do():
    async def story(universe):
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        await universe.settled()
        universe.embedder.script = None  # the provider's filter was changed
        universe.publish(upsert("b", 1, "poison"))
        await universe.settled()
        assert [name for name, _ in reasons(universe)] == ["a", "b"]
        replay(universe, 0)
        await universe.settled()
        assert universe.text("a") == "poison"
        assert universe.database.state.poisons == {}
        universe.publish(upsert("c", 1, "poison"))
        await universe.settled()
        assert universe.text("c") == "poison"
        assert len(universe.letters.letters) == 2

    replaying(story)


def test_a_replay_that_is_refused_again_is_remembered_again():
    async def story(universe):
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        await universe.settled()
        (before,) = universe.database.state.poisons.values()
        await asyncio.sleep(600)
        requests = universe.embedder.requests
        replay(universe, 0)
        await universe.settled()
        (after,) = universe.database.state.poisons.values()
        assert universe.embedder.requests == requests + 1
        assert (after.seen_at - before.seen_at).total_seconds() >= 600
        assert len(universe.letters.letters) == 2

    replaying(story)


def test_a_record_that_only_claims_to_be_a_replay_is_stopped():
    async def story(universe):
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "text"))
        universe.publish(upsert("b", 1, "poison"))
        await universe.settled()
        requests = universe.embedder.requests
        claimed = with_origin([], Origin(*ONLY, 0, 0, 0))
        universe.publish(upsert("c", 1, "poison"), headers=claimed)
        await universe.settled()
        assert universe.embedder.requests == requests
        assert reasons(universe)[-1] == ("c", Reason.CONTENT_FILTER)

    told_once(story)


@pytest.mark.parametrize("is_replay", [False, True])
def test_only_of_a_replay_that_the_ledger_vouches_for_anything_is_forgotten(is_replay):
    async def story(universe):
        calls = []

        async def hook(call, moment):
            if moment == "before":
                calls.append(call)

        universe.hook = hook
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        await universe.settled()
        universe.embedder.script = None
        if is_replay:
            replay(universe, 0)
        else:
            claimed = with_origin([], Origin(*ONLY, 99, 0, 0))
            universe.publish(upsert("b", 1, "text"), headers=claimed)
        await universe.settled()
        assert calls.count("forget") == is_replay
        assert universe.database.state.documents

    replaying(story)


@pytest.mark.parametrize(
    "error", [BadOutput(status=200), ProviderUnavailable(status=500)], ids=repr
)
def test_only_refusals_are_remembered(error):
    async def story(universe):
        async def script(request):
            if "bad" in request.texts:
                raise error

        universe.embedder.script = script
        universe.start()
        universe.publish(upsert("bad", 1, "bad"), partition=0)
        number = 0
        while not universe.letters.letters:
            number += 1
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=1)
            await asyncio.sleep(0.2)
        assert universe.database.state.poisons == {}

    live(story)


def test_a_memory_that_fails_holds_nobody_up():
    async def story(universe):
        async def hook(call, moment):
            if call == "remember":
                raise StoreUnavailable

        universe.hook = hook
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        await universe.settled()
        assert reasons(universe) == [("a", Reason.CONTENT_FILTER)]
        assert universe.database.state.poisons == {}

    told_once(story)


def test_a_memory_that_hangs_holds_nobody_up_for_long():
    async def story(universe):
        never = asyncio.get_running_loop().create_future()

        async def hook(call, moment):
            if call == "remember":
                await never

        universe.hook = hook
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        async with asyncio.timeout(10):
            await universe.settled()
        assert reasons(universe) == [("a", Reason.CONTENT_FILTER)]

    told_once(story)


def test_it_is_remembered_before_its_letter_is_written():
    async def story(universe):
        seen = []

        async def hook(call, moment):
            if call == "record" and moment == "before":
                seen.append(len(universe.database.state.poisons))

        universe.hook = hook
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        await universe.settled()
        assert seen == [1]

    told_once(story)


def test_a_tenant_without_poison_costs_no_statement_more():
    async def story(universe):
        calls = []

        async def hook(call, moment):
            if moment == "before":
                calls.append(call)

        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison", tenant="other"))
        await universe.settled()
        universe.hook = hook
        for number in range(20):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"))
        await universe.settled()
        assert "known" not in calls
        universe.publish(upsert("b", 1, "new", tenant="other"))
        await universe.settled()
        assert calls.count("known") == 1
        assert universe.text("b", tenant="other") == "new"

    told_once(story)


def test_a_replay_is_forgotten_before_it_is_stored_also_where_postgresql_fails():
    async def story(universe):
        failures = iter(range(3))

        async def hook(call, moment):
            if call == "forget" and moment == "before" and next(failures, None) is not None:
                raise StoreUnavailable

        universe.hook = hook
        refuse(universe)
        universe.start()
        universe.publish(upsert("a", 1, "poison"))
        await universe.settled()
        universe.embedder.script = None
        replay(universe, 0)
        await universe.settled()
        assert universe.text("a") == "poison"
        assert universe.database.state.poisons == {}
        assert universe.embedder.embedded["poison"] == 1

    replaying(story)


GUARDED = with_options(
    dead_letters={"sample_records": 100, "probe_records": 10, "probe_seconds": 60},
    queue={"max_documents": 400, "max_in_flight": 16},
)


@pytest.mark.parametrize("probes", [0, 1, 2])
def test_a_provider_that_refuses_everybody_for_a_while_marks_no_text_that_is_no_dead_letter(
    probes,
):
    async def story(universe):
        refuses = False

        async def script(request):
            await asyncio.sleep(0.1)
            if refuses:
                raise RejectedInput("the provider answered 400", status=400)

        universe.embedder.script = script
        member = await healthy(universe, 100)
        refuses = True
        good(universe, 200, start=100)
        await phase(member, Phase.HELD, claims=1 + probes)
        await asyncio.sleep(1)
        dead = {name for name, _ in reasons(universe)}
        assert len(dead) <= 5 + 10 * probes
        assert len(universe.database.state.poisons) <= len(dead)
        refuses = False
        await universe.settled()
        assert {name for name, _ in reasons(universe)} == dead
        stored = {key.id for key in universe.database.state.documents}
        missing = {f"d{number}" for number in range(300)} - stored
        assert missing <= dead
        # What has passed in a probe although it was known to be refused is known no more.
        assert len(universe.database.state.poisons) == len(missing)
        assert member.worker.counters.claims == 2 + probes

    told_once(story, settings=GUARDED)
