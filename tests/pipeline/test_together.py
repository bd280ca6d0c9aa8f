"""Works that go together: one coroutine for many, and whoever stumbles goes on alone."""

import asyncio
import gc
from dataclasses import replace

import pytest

from tests.pipeline.test_poison import refuse
from tests.support.universe import COLLECTION, delete, live, tombstone, upsert, with_options
from worker.core.model import ChunkingOptions, Work
from worker.errors import StoreUnavailable
from worker.pipeline.dispatch import Dispatch

LINES = replace(COLLECTION, name="lines", chunking=ChunkingOptions("fixed", size=6))
COUNT = 40


@pytest.fixture
def carried(monkeypatch):
    """How many works went in each company, and which ones alone."""
    companies, alone = [], []
    carry, carry_together = Dispatch._carry, Dispatch._carry_together

    async def note_alone(self, work, stumbled=None):
        alone.append(work.document_key.id)
        await carry(self, work, stumbled)

    async def note_company(self, works):
        companies.append(len(works))
        carrying = carry_together(self, works)
        del works  # it keeps nobody either
        await carrying

    monkeypatch.setattr(Dispatch, "_carry", note_alone)
    monkeypatch.setattr(Dispatch, "_carry_together", note_company)
    return companies, alone


async def start(universe):
    """Start a worker that has met its collection."""
    member = universe.start()
    universe.publish(upsert("first", 1, "first"))
    await universe.settled()
    return member


def publish_many(universe, text="text {}"):
    for number in range(COUNT):
        universe.publish(upsert(f"d{number}", 1, text.format(number)))


def together(story, carried, *, alone, **options):
    live(story, partitions=1, **options)
    companies, by_itself = carried
    assert companies[0] == COUNT
    assert set(by_itself) == {"first", *alone}


def test_documents_of_a_known_collection_need_no_coroutine_each(carried):
    async def story(universe):
        await start(universe)
        publish_many(universe)
        await universe.settled()
        assert {universe.text(f"d{number}") for number in range(COUNT)} == {
            f"text {number}" for number in range(COUNT)
        }
        assert set(universe.embedder.embedded.values()) == {1}

    together(story, carried, alone=[])


def test_deletes_and_unchanged_documents_go_along(carried):
    async def story(universe):
        await start(universe)
        for number in range(COUNT):
            event = (delete, tombstone)[number % 2]
            universe.publish(event(f"d{number}", *([1] if event is delete else [])))
        await universe.settled()
        assert universe.embedder.requests == 1

    together(story, carried, alone=[])


def test_a_refused_text_is_one_documents_matter(carried):
    async def story(universe):
        await start(universe)
        refuse(universe, "text 7")
        publish_many(universe)
        await universe.settled()
        assert [one.document_id for one in universe.letters.letters] == ["d7"]
        stored = [number for number in range(COUNT) if universe.text(f"d{number}")]
        assert stored == [number for number in range(COUNT) if number != 7]
        assert set(universe.embedder.embedded.values()) == {1}

    together(story, carried, alone=["d7"])


def test_a_text_refused_with_another_documents_is_found_out_for_each(carried):
    async def story(universe):
        await start(universe)
        refuse(universe)
        for number in range(COUNT):
            text = "poison" if number in {3, 4, 5} else f"text {number}"
            universe.publish(upsert(f"d{number}", 1, text))
        await universe.settled()
        assert {one.document_id for one in universe.letters.letters} == {"d3", "d4", "d5"}
        assert universe.text("d6") == "text 6"

    together(story, carried, alone=["d3", "d4", "d5"])


def test_a_document_of_several_chunks_is_stored_when_the_last_has_come(carried):
    async def story(universe):
        await universe.create_collection(LINES)
        universe.pieces = lambda text: [text[at : at + 6] for at in range(0, len(text), 6)]
        held, written = asyncio.Event(), asyncio.Event()

        async def script(request):
            if "line 9" in request.texts:
                await held.wait()

        async def hook(call, moment):
            if (call, moment) == ("apply", "committed"):
                written.set()

        await start(universe)
        universe.publish(upsert("other", 1, "words", collection="lines"))
        await universe.settled()
        universe.embedder.script, universe.hook = script, hook
        written.clear()
        # More chunks than a request takes: those of one document go in several.
        for number in range(COUNT):
            text = "".join(f"line {line}" for line in range(10)) if number == 0 else "line 0"
            universe.publish(upsert(f"d{number}", 1, text, collection="lines"))
        await written.wait()
        assert universe.row("d1", collection="lines") is not None
        assert universe.row("d0", collection="lines") is None
        held.set()
        await universe.settled()
        assert len(universe.row("d0", collection="lines").chunks) == 10

    settings = with_options(embedding={"max_inputs": 5})
    together(story, carried, alone=["other"], settings=settings)


def test_a_look_up_without_an_end_is_begun_again_alone(carried):
    async def story(universe):
        hangs = True

        async def hook(call, moment):
            if call == "read" and hangs:
                await asyncio.sleep(10_000)

        await start(universe)
        universe.hook = hook
        publish_many(universe)
        await asyncio.sleep(45)
        hangs = False
        await universe.settled()
        assert all(universe.text(f"d{number}") for number in range(COUNT))

    settings = with_options(ingest={"document_timeout_seconds": 30, "prepare_slots": 100})
    together(story, carried, alone=[f"d{number}" for number in range(COUNT)], settings=settings)


def test_a_database_that_is_away_for_a_while_costs_nothing_twice(carried):
    async def story(universe):
        failures = 1

        async def hook(call, moment):
            nonlocal failures
            if call == "apply" and moment == "before" and failures:
                failures -= 1
                raise StoreUnavailable("away")

        await start(universe)
        universe.hook = hook
        publish_many(universe)
        await universe.settled()
        assert all(universe.text(f"d{number}") for number in range(COUNT))
        assert set(universe.embedder.embedded.values()) == {1}

    together(story, carried, alone=[f"d{number}" for number in range(COUNT)])


def test_a_collection_that_is_forgotten_before_its_works_set_out_is_looked_up(
    carried, monkeypatch
):
    async def story(universe):
        await start(universe)
        carry_together = Dispatch._carry_together

        async def forget_first(self, works):
            self._ingest._prepare.forget(works[0])
            await carry_together(self, works)

        monkeypatch.setattr(Dispatch, "_carry_together", forget_first)
        publish_many(universe)
        await universe.settled()
        assert all(universe.text(f"d{number}") for number in range(COUNT))

    together(story, carried, alone=[f"d{number}" for number in range(COUNT)])


def works_in_memory() -> int:
    gc.collect()
    return sum(type(one) is Work for one in gc.get_objects())


def test_who_has_ended_is_not_kept_until_the_last_one_has(carried):
    async def story(universe):
        held = asyncio.Event()

        async def script(request):
            if "text 7" in request.texts:
                await held.wait()

        member = await start(universe)
        before = works_in_memory()
        universe.embedder.script = script
        publish_many(universe)
        await asyncio.sleep(60)
        assert 1 <= member.worker.dispatch.in_flight <= 5
        assert works_in_memory() - before <= 5
        held.set()
        await universe.settled()

    settings = with_options(embedding={"max_inputs": 5})
    together(story, carried, alone=[], settings=settings)


def test_a_drain_waits_for_those_that_stumble_meanwhile(carried):
    """Side by side: many that wait for the database again wait no longer than one."""

    async def story(universe):
        written = asyncio.Event()
        failures = 1

        async def hook(call, moment):
            nonlocal failures
            if (call, moment) == ("apply", "before") and failures:
                failures -= 1
                written.set()
                await asyncio.sleep(1)
                raise StoreUnavailable("away")

        member = await start(universe)
        universe.hook = hook
        publish_many(universe)
        await written.wait()
        began = asyncio.get_running_loop().time()
        await universe.stop(member)
        assert asyncio.get_running_loop().time() - began < 5
        universe.start()
        await universe.settled()
        assert all(universe.text(f"d{number}") for number in range(COUNT))

    live(story, partitions=1)
    companies, _ = carried
    assert companies[0] == COUNT
