"""One worker, from the log to the table: what each kind of record becomes."""

import asyncio
from collections import Counter

import pytest

from schemas.dead_letter import Origin, Reason, with_origin
from tests.support.universe import (
    GROUP,
    ONLY,
    TOPIC,
    delete,
    live,
    tombstone,
    upsert,
    with_options,
)
from worker.core.model import Partition


def test_an_upsert_becomes_a_row_and_its_offset_is_committed():
    async def story(universe):
        universe.publish(upsert("a", 3, "hello"), partition=0)
        universe.start()
        await universe.settled()
        assert universe.text("a") == "hello"
        assert universe.row("a").stored.version == 3
        assert universe.broker.committed[GROUP, ONLY] == 1
        assert universe.database.state.progress[GROUP, ONLY].next_offset == 1

    live(story)


def test_a_newer_version_takes_the_place_of_the_older_whatever_the_order():
    async def story(universe):
        universe.start()
        universe.publish(upsert("a", 2, "new"))
        await universe.settled()
        universe.publish(upsert("a", 1, "old"))
        await universe.settled()
        assert universe.text("a") == "new"

    live(story)


def test_a_record_sent_again_changes_nothing_and_costs_no_embedding():
    async def story(universe):
        universe.start()
        universe.publish(upsert("a", 1, "text"))
        await universe.settled()
        before = universe.row("a")
        universe.publish(upsert("a", 1, "text"))
        universe.publish(upsert("a", 0, "text"))
        await universe.settled()
        assert universe.embedder.embedded["text"] == 1
        assert universe.row("a").stored.version == before.stored.version

    live(story)


def test_two_versions_in_one_poll_cost_one_embedding():
    async def story(universe):
        universe.publish(upsert("a", 1, "old"))
        universe.publish(upsert("a", 2, "new"))
        universe.start()
        await universe.settled()
        assert universe.text("a") == "new"
        assert universe.embedder.embedded == {"new": 1}

    live(story)


def test_a_delete_hides_the_document_and_an_older_upsert_does_not_bring_it_back():
    async def story(universe):
        universe.start()
        universe.publish(upsert("a", 1))
        universe.publish(delete("a", 5))
        universe.publish(upsert("a", 4))
        universe.publish(delete("never seen", 2))
        universe.publish(upsert("never seen", 1))
        await universe.settled()
        assert universe.text("a") is None
        assert universe.text("never seen") is None
        assert universe.row("never seen").stored.version == 2

    live(story)


def test_a_newer_version_with_equal_text_is_remembered():
    """C5: or an older different one would come back over it."""

    async def story(universe):
        universe.start()
        for version, text in ((1, "X"), (3, "X"), (2, "Y")):
            universe.publish(upsert("a", version, text))
            await universe.settled()
        assert universe.row("a").stored.version == 3
        assert universe.text("a") == "X"
        assert universe.embedder.embedded["X"] == 1

    live(story)


def test_empty_text_is_a_document_without_chunks():
    async def story(universe):
        universe.start()
        universe.publish(upsert("a", 1, ""))
        await universe.settled()
        assert universe.text("a") == ""
        assert universe.embedder.requests == 0

    live(story)


def test_a_nul_is_replaced_and_counted():
    async def story(universe):
        member = universe.start()
        universe.publish(upsert("a", 1, "x\0y"))
        await universe.settled()
        assert universe.text("a") == "x\ufffdy"
        assert member.worker.counters.nul_replaced == 1

    live(story)


def test_records_that_cannot_be_decoded_are_dead_letters_and_hold_nobody_up():
    async def story(universe):
        append = universe.broker.append
        append(TOPIC, 0, key=b"tenant/articles/a", value=b"{nonsense")
        append(TOPIC, 0, key=None, value=b"{}")
        append(
            TOPIC,
            0,
            key=b"tenant/articles/a",
            value=b'{"type":"upsert"}',
            headers=(("h", b"1"),),
        )
        append(TOPIC, 0, key=b"tenant/articles/a", value=b'{"type":"rename"}')
        universe.publish(upsert("b", 1, "good"), partition=0)
        universe.start()
        await universe.settled()
        assert universe.text("b") == "good"
        letters = sorted(universe.letters.letters, key=lambda one: one.record.position)
        assert [letter.reason for letter in letters] == [
            Reason.UNDECODABLE,
            Reason.MISSING_KEY,
            Reason.INVALID_SCHEMA,
            Reason.UNKNOWN_TYPE,
        ]
        third = letters[2].record
        assert (third.value, third.headers) == (b'{"type":"upsert"}', (("h", b"1"),))
        states = {row.state for row in universe.database.state.letters.values()}
        assert states == {"published"}

    live(story)


def test_an_unknown_collection_is_waited_for_and_then_dead_lettered():
    async def story(universe):
        loop = asyncio.get_running_loop()
        universe.start()
        universe.publish(upsert("a", collection="later"), partition=0)
        universe.publish(upsert("b", 1, "good"), partition=0)
        began = loop.time()
        await universe.settled()
        assert universe.text("b") == "good"
        assert 60 <= loop.time() - began < 65
        assert [letter.reason for letter in universe.letters.letters] == [
            Reason.UNKNOWN_COLLECTION
        ]

    live(story)


def test_a_collection_created_within_the_grace_time_is_found():
    async def story(universe):
        from dataclasses import replace

        from tests.support.universe import COLLECTION

        universe.start()
        universe.publish(upsert("a", 1, "text", collection="later"))
        await asyncio.sleep(30)
        await universe.create_collection(replace(COLLECTION, name="later"))
        await universe.settled()
        assert universe.text("a", collection="later") == "text"
        assert universe.letters.letters == []

    live(story)


def test_a_poison_newer_version_leaves_the_waiting_good_one_shown():
    """C1: the older one was parked, not settled."""

    async def story(universe):
        from worker.errors import RejectedInput

        async def script(request):
            if "poison" in request.texts:
                raise RejectedInput("content")

        universe.embedder.script = script
        universe.publish(upsert("a", 1, "good"), partition=0)
        universe.publish(upsert("a", 2, "poison"), partition=0)
        universe.publish(upsert("b", 1, "neighbour"), partition=0)
        universe.start()
        await universe.settled()
        assert universe.text("a") == "good"
        assert universe.text("b") == "neighbour"
        assert [letter.version for letter in universe.letters.letters] == [2]

    live(story)


def test_a_delete_without_a_version_beats_all_before_it_and_nothing_after():
    async def story(universe):
        universe.publish(upsert("a", 5, "five"))
        universe.publish(tombstone("a"))
        universe.publish(upsert("a", 3, "three"))
        universe.publish(upsert("b", 5))
        universe.publish(tombstone("b"))
        universe.start()
        await universe.settled()
        assert universe.text("a") == "three"
        assert universe.text("b") is None

    live(story)


def test_gaps_at_the_end_of_the_log_are_committed_too():
    async def story(universe):
        universe.publish(upsert("a"), partition=0)
        universe.broker.skip(TOPIC, 0, 3)
        universe.start()
        await universe.broker.committed_at(GROUP, ONLY, 4)

    live(story)


def test_back_pressure_bounds_what_is_held():
    async def story(universe):
        gate = universe.close_provider()
        for number in range(300):
            universe.publish(upsert(f"d{number}", 1, f"t{number}"), partition=0)
        member = universe.start()
        await universe.embedder.in_flight(1)
        await asyncio.sleep(100)
        scheduler = member.worker.dispatch.scheduler
        assert 100 <= scheduler.documents <= 100 + 64
        gate.set()
        await universe.settled()
        assert scheduler.documents == scheduler.bytes == 0
        assert len(universe.database.state.documents) == 300

    live(story, settings=with_options(queue={"max_documents": 100, "max_in_flight": 50}))


def test_a_tenant_that_has_little_is_not_kept_waiting_by_what_another_has_in_flight():
    async def story(universe):
        gate = universe.close_provider()
        for number in range(90):
            universe.publish(upsert(f"d{number}", 1, f"t{number}"), partition=0)
        member = universe.start()
        await universe.embedder.in_flight(1)
        await asyncio.sleep(10)
        dispatch = member.worker.dispatch
        assert dispatch.in_flight == 64
        for number in range(3):
            universe.publish(upsert(f"d{number}", 1, f"t{number}", tenant="b"), partition=0)
        await asyncio.sleep(10)
        tenants = Counter(work.tenant for work in dispatch.scheduler.works_in_flight())
        assert tenants == {"tenant": 64, "b": 2}
        gate.set()
        await universe.settled()

    live(story, settings=with_options(queue={"max_documents": 100, "max_in_flight": 64}))


def test_an_ended_worker_leaves_offsets_that_the_next_goes_on_from():
    async def story(universe):
        universe.publish(upsert("a"), partition=0)
        first = universe.start()
        await universe.settled()
        await universe.stop(first)
        universe.publish(upsert("b"), partition=1)
        universe.start()
        await universe.broker.committed_at(GROUP, Partition(TOPIC, 1), 1)
        assert universe.text("b") == "text"
        assert universe.embedder.embedded["text"] == 2

    live(story)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_order_of_callbacks_the_table_is_the_log(seed):
    async def story(universe):
        newest = {}
        for number in range(60):
            document, version = (
                f"d{universe.random.randrange(8)}",
                universe.random.randrange(50),
            )
            text = f"{document} {version} {number}"
            universe.publish(upsert(document, version, text))
            newest[document] = max(newest.get(document, (-1, 0, "")), (version, number, text))
        universe.start()
        universe.start()
        await universe.settled()
        assert {document: universe.text(document) for document in newest} == {
            document: text for document, (_, _, text) in newest.items()
        }

    live(story, seed=seed)


def test_a_version_that_is_a_time_to_come_is_refused_now_and_whenever_it_is_read_again():
    async def story(universe):
        now = 1_700_000_000
        dated = {"partition": 0, "timestamp_ms": now * 1000}
        member = universe.start()
        universe.publish(upsert("a", now + 1_000, "ahead"), **dated)
        universe.publish(delete("a", now + 2_000), **dated)
        universe.publish(upsert("a", now + 200, "now"), **dated)
        await universe.settled()
        named = {
            (one.reason, one.document_id, one.version): one.record
            for one in universe.letters.letters
        }
        record = named.pop((Reason.VERSION_IN_FUTURE, "a", now + 1_000))
        assert list(named) == [(Reason.VERSION_IN_FUTURE, "a", now + 2_000)]
        await universe.stop(member)
        await asyncio.sleep(5_000)
        universe.broker.committed[GROUP, ONLY] = 0
        universe.start()
        headers = with_origin((), Origin(*ONLY, 0, now * 1000, 0))
        universe.broker.append(
            TOPIC,
            0,
            key=record.key,
            value=record.value,
            headers=tuple(headers),
            timestamp_ms=(now + 5_000) * 1000,
        )
        await universe.settled()
        assert universe.text("a") == "now"
        assert universe.embedder.embedded["ahead"] == 0
        states = [row.state for row in universe.database.state.letters.values()]
        assert states == ["published"] * 3

    live(story, partitions=1, settings=with_options(ingest={"version_clock": "seconds"}))
