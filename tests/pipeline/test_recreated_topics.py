"""
A topic that is created again while nobody looks: either it is noticed, or it is read rightly.

The stories are traces of the model (`tests/model`, its cases of a topic created again).
"""

import asyncio
from functools import partial

from tests.support import universe as universes
from tests.support.universe import GROUP, ONLY, TOPIC, tombstone, upsert
from worker.core.lifecycle import Phase
from worker.errors import RejectedInput, StoreUnavailable

live = partial(universes.live, limit_seconds=2_000)


async def create_again(universe, *events):
    universe.broker.create_topic(TOPIC, 1)
    universe.audit.log_is_gone()
    universe.broker.committed.clear()
    for number, event in enumerate(events):
        universe.publish(event, timestamp_ms=1_000 + number)


def accept(universe):
    """What `embedfleet topics recreated` does to the tables."""
    state = universe.database.state
    claim = state.claims[GROUP, ONLY]
    state.claims[GROUP, ONLY] = claim._replace(
        epoch=claim.epoch + 1,
        claim_id=universe.database.fresh_claim_id(),
        incarnation=claim.incarnation + 1,
    )
    del state.progress[GROUP, ONLY]


async def read_or_halted(universe, member):
    log = universe.broker.log(ONLY)
    while universe.broker.committed.get((GROUP, ONLY)) != log.end:
        if any(life.phase is Phase.HALTED for life in member.worker.lives):
            return "halted"
        await universe.broker.changes.next(0.1)
    return "read"


def test_a_topic_created_again_before_any_progress_was_saved_loses_nothing_silently():
    async def story(universe):
        async def no_progress(call, moment):
            if call == "save_progress":
                raise StoreUnavailable

        universe.hook = no_progress
        universe.publish(upsert("b", 1, "one"))
        universe.publish(tombstone("a"))
        first = universe.start()
        while universe.row("a") is None:
            await universe.broker.changes.next(0.1)
        await universe.kill(first)
        universe.hook = None
        await create_again(universe, upsert("a", 1, "anew"))
        ended = await read_or_halted(universe, universe.start())
        assert ended == "halted" or universe.text("a") == "anew"

    live(story, partitions=1)


def test_a_topic_created_again_under_a_running_worker_loses_nothing_silently():
    async def story(universe):
        member = universe.start()
        universe.publish(upsert("a", 1, "one"))
        await universe.settled()
        await create_again(universe, upsert("a", 2, "anew"), upsert("b", 1, "beside"))
        ended = await read_or_halted(universe, member)
        assert ended == "halted" or universe.text("a") == "anew"

    live(story, partitions=1)


def test_a_halted_partition_goes_on_in_the_same_worker_once_an_operator_accepts_the_topic():
    async def story(universe):
        member = universe.start()
        universe.publish(upsert("a", 5, "one"))
        await universe.settled()
        await create_again(universe, upsert("a", 1, "anew"), upsert("b", 1, "beside"))
        assert await read_or_halted(universe, member) == "halted"
        await asyncio.sleep(100)
        assert [life.phase for life in member.worker.lives] == [Phase.HALTED]
        accept(universe)
        await universe.settled()
        assert universe.text("b") == "beside"
        assert universe.text("a") == "one"  # the version that is newer, whatever its log

    live(story, partitions=1)


def test_a_letter_of_the_topic_before_marks_no_letter_of_the_topic_after_it():
    async def story(universe):
        async def refuse(request):
            raise RejectedInput("content")

        universe.embedder.script = refuse
        marking, go_on = asyncio.Event(), asyncio.Event()

        async def hold_the_first_mark(call, moment):
            if (call, moment) == ("mark_published", "before") and not marking.is_set():
                marking.set()
                await go_on.wait()

        universe.hook = hold_the_first_mark
        universe.publish(upsert("a", 1, "refused"))
        frozen = universe.start()
        await marking.wait()
        await create_again(universe, upsert("b", 1, "refused too"))
        universe.broker.topic_ids.clear()  # as a broker before Kafka 2.8, which tells none
        accept(universe)
        held = asyncio.Event()
        publish = universe.letters.publish

        async def never(letter, recorded):
            held.set()
            await asyncio.Event().wait()

        universe.letters.publish = never
        await held.wait()
        go_on.set()
        await asyncio.sleep(10)
        await universe.kill(frozen)
        universe.letters.publish = publish
        universe.start()
        await universe.settled()
        assert [letter.document_id for letter in universe.letters.letters] == ["a", "b"]

    live(story, partitions=1)
