"""
What an attacker of the pipeline would try: each story is one way to lose, stop, starve or pay.

Sick partitions, long outages, stops at bad moments, poisoned neighbours and floods, in memory
under virtual time.
"""

import asyncio
from dataclasses import replace

import pytest

from schemas.dead_letter import Reason
from tests.support.universe import (
    COLLECTION,
    GROUP,
    ONLY,
    TOPIC,
    live,
    upsert,
    with_options,
)
from tests.support.virtual_time import run
from worker.adapters.memory_store import MemoryCatalog, MemoryStore
from worker.app.observation import Observation
from worker.core.lifecycle import PartitionLife
from worker.core.model import ChunkingOptions, Partition
from worker.errors import (
    BrokerUnavailable,
    PermanentError,
    ProviderUnavailable,
    RateLimited,
    RejectedInput,
    UnknownCollection,
)
from worker.pipeline.batcher import Batcher
from worker.pipeline.prepare import Collections

OTHER = Partition(TOPIC, 1)
LINES = replace(COLLECTION, name="lines", chunking=ChunkingOptions("fixed", size=10))


# ---- neighbours ----


@pytest.mark.parametrize("seed", range(5))
def test_a_text_shared_with_a_poisoned_document_is_not_refused_with_it(seed):
    """Whoever asked first pays for a shared chunk; its other chunks are no fault of ours."""

    async def story(universe):
        await universe.create_collection(LINES)

        async def script(request):
            await asyncio.sleep(1)
            if any("poison" in text for text in request.texts):
                raise RejectedInput("content")

        universe.embedder.script = script
        universe.publish(
            upsert("bad", text="0123456789poison    ", collection="lines"), partition=0
        )
        universe.publish(upsert("good", text="0123456789", collection="lines"), partition=1)
        universe.start()
        await universe.settled()
        assert [letter.document_id for letter in universe.letters.letters] == ["bad"]
        assert universe.text("good", collection="lines") == "0123456789"

    live(story, seed=seed)


# ---- outages ----


def test_an_outage_of_the_provider_does_not_make_the_queues_grow():
    """Documents that time out leave; what they left must not pile up while all slots wait."""

    async def story(universe):
        async def script(request):
            raise ProviderUnavailable("503", status=503)

        universe.embedder.script = script
        for number in range(60):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"))
        member = universe.start()
        await asyncio.sleep(20_000)
        assert member.worker.embed.waiting <= 200

    live(story, limit_seconds=1e6, settings=with_options(embedding={"max_inputs": 1}))


def test_a_running_worker_waits_for_a_broker_that_is_away_and_goes_on():
    async def story(universe):
        gate = universe.close_provider()
        for number in range(300):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
        member = universe.start()
        await universe.embedder.in_flight(1)
        universe.broker.stop()
        gate.set()
        await asyncio.sleep(3600)
        assert not member.task.done()
        universe.broker.start()
        await universe.settled()
        assert len(universe.database.state.documents) == 300

    live(story, settings=with_options(queue={"max_documents": 64, "max_in_flight": 8}))


def test_a_worker_survives_many_outages_of_the_broker():
    async def story(universe):
        member = universe.start()
        await universe.broker.stable_at(GROUP, 1)
        for number in range(4):
            universe.broker.stop()
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
            await asyncio.sleep(300)
            universe.broker.start()
            await universe.settled()
        assert not member.task.done()

    live(story)


# ---- partitions that stand still ----


def test_a_sick_partition_beside_idle_ones_does_not_end_the_worker():
    async def story(universe):
        universe.publish(upsert("a"), partition=0)
        universe.publish(upsert("b"), partition=1)
        universe.broker.log(OTHER).sick = "corrupt"
        member = universe.start()
        await universe.broker.committed_at(GROUP, ONLY, 1)
        first = member.worker.runner.source
        await asyncio.sleep(1000)
        assert not member.task.done()
        assert member.worker.runner.source is first

    live(story)


# ---- stops ----


def test_a_stop_while_joining_ends_at_once():
    async def story(universe):
        loop = asyncio.get_running_loop()
        universe.close_provider()
        universe.publish(upsert("a"), partition=0)
        universe.start()
        await universe.embedder.in_flight(1)
        second = universe.start()
        await asyncio.sleep(1)  # the first one drains, for up to 20 s
        began = loop.time()
        await universe.stop(second)
        assert loop.time() - began < 5

    live(story)


# ---- floods ----


def test_a_flood_of_unknown_collections_does_not_stop_the_others():
    async def story(universe):
        loop = asyncio.get_running_loop()
        for number in range(300):
            universe.publish(
                upsert(f"x{number}", tenant="bad", collection=f"no{number}"), partition=0
            )
        universe.start()
        await asyncio.sleep(5)
        began = loop.time()
        for number in range(20):
            universe.publish(upsert(f"d{number}", text=f"text {number}"), partition=1)
        await universe.broker.committed_at(GROUP, OTHER, 20)
        assert loop.time() - began < 10

    live(story)


def test_unknown_names_are_not_remembered_for_ever():
    async def story(universe):
        catalog = MemoryCatalog(universe.database)
        collections = Collections(
            catalog, clock=asyncio.get_running_loop().time, grace_seconds=0
        )
        for number in range(3000):
            with pytest.raises(UnknownCollection):
                await collections.find(f"no{number}")
        assert collections.remembered <= 1000

    live(story)


def test_a_model_that_asks_for_patience_does_not_stop_the_other_models():
    async def story(universe):
        await universe.create_collection(replace(COLLECTION, name="slow", model="limited"))

        async def script(request):
            if request.model == "limited":
                raise RateLimited("429", status=429, retry_after_seconds=3600)

        universe.embedder.script = script
        for number in range(40):
            universe.publish(
                upsert(f"x{number}", text=f"x {number}", collection="slow"), partition=0
            )
        universe.start()
        await asyncio.sleep(5)
        universe.publish(upsert("a", text="a"), partition=1)
        async with asyncio.timeout(60):
            await universe.broker.committed_at(GROUP, OTHER, 1)

    live(story, settings=with_options(embedding={"concurrency": 4, "max_inputs": 1}))


# ---- paying ----


def test_what_nobody_waits_for_any_more_is_not_asked_for_again_and_again():
    async def story(universe):
        down = True

        async def script(request):
            if down:
                raise ProviderUnavailable("503", status=503)

        universe.embedder.script = script
        universe.publish(upsert("a", text="text"), partition=1)
        first = universe.start()
        await asyncio.sleep(10)
        universe.start()  # a rebalance: the first drains, gives up and leaves the partition
        await universe.broker.stable_at(GROUP, 2)
        await asyncio.sleep(60)
        down = False
        await universe.settled()
        await asyncio.sleep(60)
        assert universe.embedder.embedded["text"] == 1
        assert first.worker.embed.requests_in_flight == 0

    live(story)


def test_documents_larger_than_the_cache_are_stored_though_the_provider_is_slow():
    """What a pass has bought must not be bought again by the next, for ever."""

    async def story(universe):
        await universe.create_collection(LINES)

        async def script(request):
            await asyncio.sleep(20)

        universe.embedder.script = script
        lines = [f"{number:010}" for number in range(100)]
        universe.pieces = lambda _: lines
        text = "".join(lines)
        universe.publish(upsert("a", text=text, collection="lines"))
        universe.start()
        async with asyncio.timeout(5000):
            await universe.settled()
        assert max(universe.embedder.embedded.values()) == 1

    live(
        story,
        settings=with_options(
            embedding={"concurrency": 1, "max_inputs": 5, "cache_bytes": 10_000}
        ),
    )


def test_an_item_whose_caller_left_before_the_batch_began_is_not_worked_on():
    async def story():
        worked = []

        async def work(items):
            worked.extend(items)
            return items

        async with asyncio.TaskGroup() as group:
            held = []

            def spawn(coroutine):
                held.append(coroutine)

            batcher = Batcher(work, spawn=spawn, slots=1, take=lambda items: 1)
            leaving = group.create_task(batcher.submit(1))
            await asyncio.sleep(1)
            leaving.cancel()
            await asyncio.wait({leaving})
            await held[0]
        assert worked == []

    run(story())


# ---- what PostgreSQL refuses ----


def test_a_document_that_cannot_be_looked_up_does_not_take_its_neighbours_along():
    async def story(universe):
        read = MemoryStore.read

        async def picky(self, queries):
            if any(query.key.id == "bad" for query in queries):
                raise PermanentError(Reason.REJECTED_BY_STORE, "22000")
            return await read(self, queries)

        MemoryStore.read = picky
        try:
            for number in range(20):
                universe.publish(upsert(f"d{number}", text=f"text {number}"), partition=0)
            universe.publish(upsert("bad"), partition=0)
            universe.start()
            await universe.settled()
        finally:
            MemoryStore.read = read
        assert [letter.document_id for letter in universe.letters.letters] == ["bad"]
        assert len(universe.database.state.documents) == 20

    live(story)


@pytest.mark.parametrize("choice", ["stop", "dead_letter"])
def test_a_defect_of_ours_stops_the_worker_or_is_a_dead_letter_as_chosen(choice):
    async def story(universe):
        async def script(request):
            if "odd" in request.texts:
                raise ZeroDivisionError

        universe.embedder.script = script
        universe.publish(upsert("odd", text="odd"), partition=0)
        member = universe.start()
        if choice == "stop":
            with pytest.raises(ExceptionGroup):
                await member.task
            return
        await universe.settled()
        assert [letter.reason for letter in universe.letters.letters] == [Reason.INTERNAL_ERROR]

    live(story, settings=with_options(ingest={"internal_error": choice}))


# ---- liveness ----


def test_a_partition_that_comes_back_is_not_held_to_have_stood_still_meanwhile():
    async def story(universe):
        universe.publish(upsert("a"), partition=0)
        worker = universe.start().worker
        await universe.settled()
        now = 0.0
        worker.intake.turned_at = 100.0
        observation = Observation(worker, clock=lambda: now, progress_seconds=60)
        life = worker.lives.find(ONLY)
        worker.runner.source.lag = {ONLY: 5, OTHER: 0}.get
        assert observation.live()[1]["stuck"] == []
        worker.lives.end(ONLY)
        now = 100.0
        assert observation.live()[1]["stuck"] == []
        again = PartitionLife(ONLY, 2)
        again.start(life.claim, life.progress.next_offset)
        worker.lives.begin(again)
        assert observation.live()[1]["stuck"] == []

    live(story)


def test_a_claim_is_not_taken_again_and_again_while_kafka_does_not_answer():
    """Cut off from Kafka alone, a worker would fence the next owner for ever."""

    async def story(universe):
        universe.broker.fail("bounds", *[BrokerUnavailable()] * 20)
        universe.publish(upsert("a"), partition=0)
        universe.start()
        await universe.settled()
        assert universe.database.state.claims[GROUP, ONLY].epoch == 1

    live(story, partitions=1)
