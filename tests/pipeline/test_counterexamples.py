"""
The counterexamples of the protocol as stories: what would break a promise, and does not.

Each is named as in the protocol's section 4. Every commit of the table and of the group is
audited meanwhile (`tests/support/audit.py`), and `Shown` keeps whatever a reader could see.
"""

import asyncio
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from schemas.dead_letter import (
    DeadLetterEnvelope,
    Origin,
    origin_headers,
    parse_dead_letter,
    parse_origin,
)
from schemas.events import ScopeDeleted
from tests.support import universe as universes
from tests.support.audit import Audit
from tests.support.universe import (
    COLLECTION,
    GROUP,
    ONLY,
    TOPIC,
    delete,
    tombstone,
    upsert,
    with_options,
)
from worker.adapters.memory_store import MemoryClaims
from worker.core.model import ChunkingOptions, Partition, Position
from worker.errors import BrokerUnavailable, RejectedInput, StoreUnavailable

OTHER = Partition(TOPIC, 1)
SEEDS = range(10)
live = partial(universes.live, limit_seconds=2_000)


class Shown:
    """Whatever a reader could have seen of a document, in order; `then` is another hook."""

    def __init__(self, universe, document="a", **where) -> None:
        self._universe, self._document, self._where = universe, document, where
        self.then = None
        self.history = []
        universe.hook = self._look

    async def _look(self, call, moment):
        row = self._universe.row(self._document, **self._where)
        seen = None
        if row is not None and not row.stored.deleted:
            seen = "".join(sorted(chunk.content for chunk, _ in row.chunks.values()))
        if not self.history or self.history[-1] != seen:
            self.history.append(seen)
        if self.then is not None:
            await self.then(call, moment)


class Gate:
    """Holds the provider's answers to some texts, or a call of the store at a moment."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.reached = asyncio.Event()

    async def wait(self):
        self.reached.set()
        await self.open.wait()

    def of_text(self, text):
        async def script(request):
            if text in request.texts:
                await self.wait()

        return script

    def of_call(self, call, moment):
        """Hold the first such call only."""

        async def hook(this_call, this_moment):
            if (this_call, this_moment) == (call, moment) and not self.reached.is_set():
                await self.wait()

        return hook


async def until(universe, fact):
    """Wait for a fact of the tables: what does not announce itself to the broker."""
    while not fact():
        for member in universe.members:
            if member.task.done():
                raise AssertionError("a worker died") from member.task.exception()
        await universe.broker.changes.next(0.1)


def one_record_a_poll(universe, partition=ONLY):
    log = universe.broker.log(partition)
    read = log.read
    log.read = lambda offset, limit: read(offset, min(limit, 1))


def refusing(universe, *texts):
    """Let the provider refuse these texts; the returned set may be changed."""
    refused = set(texts)

    async def script(request):
        if refused.intersection(request.texts):
            raise RejectedInput("content")

    universe.embedder.script = script
    return refused


def no_commits(call, moment):
    if call == "save_progress":
        raise StoreUnavailable(f"{call} {moment}")


# ---- C0: redelivery ----


@pytest.mark.parametrize("seed", SEEDS)
def test_c0_what_is_delivered_again_after_a_crash_is_never_written_over_newer(seed):
    async def story(universe):
        one_record_a_poll(universe)
        shown = Shown(universe)

        async def hook(call, moment):
            no_commits(call, moment)

        shown.then = hook
        first = universe.start()
        for version, text in ((1, "one"), (2, "two")):
            universe.publish(upsert("a", version, text))
            await until(universe, lambda text=text: universe.text() == text)
        assert universe.broker.committed == {}
        await universe.kill(first)
        shown.then = None
        stored = universe.row()
        universe.start()
        await universe.settled()
        assert shown.history == [None, "one", "two"]
        assert universe.row() is stored
        assert universe.embedder.embedded == {"one": 1, "two": 1}

    live(story, seed=seed, partitions=1)


# ---- C1: an older version that waits under a newer one ----


def test_c1_an_older_version_completes_only_with_the_newer_one_that_it_waits_under():
    async def story(universe):
        gate = Gate()
        universe.embedder.script = gate.of_text("two")
        universe.publish(upsert("a", 1, "one"))
        universe.publish(upsert("a", 2, "two"))
        universe.start()
        await gate.reached.wait()
        await asyncio.sleep(10)
        assert set(universe.broker.committed.values()) <= {0}
        assert universe.database.state.progress[GROUP, ONLY].next_offset == 0
        gate.open.set()
        await universe.settled()
        assert universe.embedder.embedded == {"two": 1}

    live(story, partitions=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_c1_an_older_version_outlives_the_crash_of_the_worker_that_had_it_waiting(seed):
    async def story(universe):
        gate = Gate()
        universe.embedder.script = gate.of_text("poison")
        universe.publish(upsert("a", 1, "good"))
        universe.publish(upsert("a", 2, "poison"))
        first = universe.start()
        await gate.reached.wait()
        await asyncio.sleep(5)
        await universe.kill(first)
        refusing(universe, "poison")
        universe.start()
        await universe.settled()
        assert universe.text() == "good"
        assert [letter.version for letter in universe.letters.letters] == [2]

    live(story, seed=seed, partitions=1)


# ---- C2: a fenced document completes nothing ----


@pytest.mark.parametrize("seed", SEEDS)
def test_c2_what_is_fenced_completes_nothing_and_is_read_again(seed):
    async def story(universe):
        gate = Gate()
        universe.embedder.script = gate.of_text("one")
        universe.publish(upsert("a", 1, "one"))
        first = universe.start()
        await gate.reached.wait()
        await MemoryClaims(universe.database).claim(GROUP, ONLY, "thief")
        # The group cannot be asked whose the partition is, so it is not claimed again.
        universe.broker.fail("confirm", *[BrokerUnavailable()] * 1000)
        gate.open.set()
        await asyncio.sleep(20)
        assert first.worker.counters.fenced == 1
        assert first.worker.counters.outcomes == Counter({("released", ""): 1})
        assert universe.row() is None
        assert set(universe.broker.committed.values()) <= {0}
        assert universe.database.state.progress[GROUP, ONLY].next_offset == 0
        await universe.kill(first)
        universe.start()
        await universe.settled()
        assert universe.text() == "one"

    live(story, seed=seed, partitions=1)


@pytest.mark.parametrize("moment", ["before", "open"])
@pytest.mark.parametrize("seed", SEEDS)
def test_c2_a_task_of_before_completes_nothing_when_the_partition_is_back(seed, moment):
    """A -> B -> A: A still runs the first task, whose transaction hangs."""

    async def story(universe):
        gate = Gate()

        async def hook(*call):
            if call == ("apply", moment) and gate.reached.is_set():
                await asyncio.sleep(5)  # while the committer goes on
            elif call == ("apply", moment):
                await gate.wait()

        universe.hook = hook
        universe.publish(upsert("a", 1, "one"))
        first = universe.start()
        await gate.reached.wait()
        claims = universe.database.state.claims
        second = universe.start()
        await universe.broker.stable_at(GROUP, 2)
        # Whoever is expelled comes back behind the other one.
        for member, heir in ((first, "worker-1"), (second, "worker-0")):
            universe.broker.expel(member.worker.runner.source)
            await until(universe, lambda heir=heir: claims[GROUP, ONLY].owner == heir)
            await universe.broker.stable_at(GROUP, 2)
        assert claims[GROUP, ONLY].epoch >= 3
        universe.publish(upsert("b", 1, "two"), partition=0)
        gate.open.set()
        await universe.settled()
        assert (universe.text("a"), universe.text("b")) == ("one", "two")
        assert universe.embedder.embedded["two"] == 1

    live(story, seed=seed, partitions=1, settings=with_options(kafka={"drain_seconds": 0.5}))


@pytest.mark.parametrize("seed", SEEDS)
def test_c2_a_work_of_an_old_claim_completes_nothing_under_the_next_one(seed):
    """Its row is there, its answer is late, and its record is being worked on again."""

    async def story(universe):
        gate = Gate()
        universe.hook = gate.of_call("apply", "committed")
        universe.publish(upsert("a", 1, "one"))
        worker = universe.start().worker
        await gate.reached.wait()
        await MemoryClaims(universe.database).claim(GROUP, ONLY, "thief")
        await until(universe, lambda: worker.dispatch.scheduler.documents == 2)
        assert (worker.counters.fenced, worker.counters.claims) == (1, 2)
        gate.open.set()
        await universe.settled()
        assert worker.counters.outcomes == Counter({("unchanged", ""): 1})
        assert (worker.counters.fenced, worker.counters.claims) == (1, 2)

    live(story, seed=seed, partitions=1)


# ---- C3: what was polled and not tracked ----


@pytest.mark.parametrize("seed", SEEDS)
def test_c3_a_commit_between_poll_and_track_does_not_pass_what_was_polled(seed):
    async def story(universe):
        told = []
        runner = universe.start().worker.runner
        make_source = runner._make_source

        def source_that_lets_the_committer_in():
            source = make_source()
            poll = source.poll

            async def poll_then_commit(*wanted):
                batches = await poll(*wanted)
                if batches:
                    await runner._partitions.commit()
                    told.append(universe.broker.committed.get((GROUP, ONLY), 0))
                return batches

            source.poll = poll_then_commit
            return source

        runner._make_source = source_that_lets_the_committer_in
        for number in range(5):
            universe.publish(upsert(f"d{number}", 1, f"text {number}"), partition=0)
            await until(universe, lambda number=number: len(told) > number)
            assert told[number] <= number
        await universe.settled()

    live(story, seed=seed, partitions=1)


# ---- C4, C12: a restored database ----


def unaudited(universe):
    """Let the group say what it likes: a restore breaks the promises until it is made good."""
    universe.audit.seen.clear()
    universe.database.hook = None
    universe.broker.commit = lambda group, offsets: (
        universe.broker.committed.update({(group, part): at for part, at in offsets.items()}),
        universe.broker.changes.announce(),
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_c4_workers_that_start_on_a_restored_database_fill_it_again(seed):
    async def story(universe):
        member = universe.start()
        universe.publish(upsert("a", 1, "one"))
        await universe.settled()
        backup = universe.database.snapshot()
        universe.publish(upsert("a", 2, "two"))
        universe.publish(upsert("b", 1, "three"), partition=0)
        await universe.settled()
        await universe.stop(member)
        unaudited(universe)
        universe.database.restore(backup)
        assert universe.broker.committed[GROUP, ONLY] == 3
        universe.start()
        await until(universe, lambda: universe.text("b") is not None)
        await until(
            universe,
            lambda: universe.database.state.progress[GROUP, ONLY].next_offset == 3,
        )
        assert universe.text("a") == "two"

    live(story, seed=seed, partitions=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_c12_an_epoch_that_comes_again_after_a_restore_does_not_let_a_frozen_worker_write(
    seed,
):
    async def story(universe):
        early = universe.start()
        universe.publish(upsert("z", 1, "z"), partition=0)
        await universe.settled()
        await universe.stop(early)
        backup = universe.database.snapshot()
        gate = Gate()
        universe.embedder.script = gate.of_text("one")
        frozen = universe.start()
        universe.publish(upsert("a", 1, "one"))
        await gate.reached.wait()
        before = universe.database.state.claims[GROUP, ONLY]
        universe.database.restore(backup)
        universe.broker.expel(frozen.worker.runner.source)
        other = type(universe.embedder)()
        universe.start(other)
        await until(universe, lambda: universe.text("a") == "one")
        after = universe.database.state.claims[GROUP, ONLY]
        stored = universe.row("a")
        assert (after.epoch, before.epoch) == (2, 2)
        gate.open.set()
        await until(universe, lambda: frozen.worker.counters.fenced > 0)
        assert universe.row("a") is stored
        await universe.settled()

    live(story, seed=seed, partitions=1)


# ---- C5: equal text ----


@pytest.mark.parametrize("seed", SEEDS)
def test_c5_a_newer_version_with_equal_text_keeps_an_older_one_of_elsewhere_out(seed):
    async def story(universe):
        universe.start()
        universe.start()
        universe.publish(upsert("a", 1, "X"), partition=0)
        await universe.settled()
        chunks = universe.row().chunks
        universe.publish(upsert("a", 3, "X"), partition=1)
        await universe.settled()
        universe.publish(upsert("a", 2, "Y"), partition=0)
        await universe.settled()
        row = universe.row()
        assert (row.stored.version, universe.text()) == (3, "X")
        assert all(row.chunks[one][1] is chunks[one][1] for one in chunks)
        assert universe.embedder.embedded == {"X": 1}

    live(story, seed=seed)


# ---- C6: a second writer of one key ----

LETTERS = replace(COLLECTION, name="letters", chunking=ChunkingOptions("fixed", size=1))


def letters(version, text, document="a"):
    return upsert(document, version, text, collection="letters")


async def cut_in_letters(universe):
    await universe.create_collection(LETTERS)
    universe.pieces = list


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("topics", [(TOPIC,), (TOPIC, "other")])
@pytest.mark.parametrize("seed", SEEDS)
def test_c6_a_change_set_of_a_row_that_moved_is_made_anew_and_never_torn(seed, topics, workers):
    async def story(universe):
        await cut_in_letters(universe)
        shown = Shown(universe, collection="letters")
        for _ in range(workers):
            universe.start()
        await universe.broker.stable_at(GROUP, workers)
        universe.publish(letters(1, "xy"), partition=0)
        await universe.settled()
        gate = Gate()
        universe.embedder.script = gate.of_text("w")
        universe.publish(letters(3, "xw"), partition=0)
        await gate.reached.wait()
        # By another partition or another topic: nothing orders it against the one above.
        where = {"topic": topics[-1], "partition": 0 if len(topics) > 1 else 1}
        universe.publish(letters(2, "yz"), **where)
        if (len(topics), workers) == (1, 1):
            await asyncio.sleep(5)  # one worker queues both under one key
        else:
            await until(universe, lambda: shown.history[-1] == "yz")
        gate.open.set()
        await universe.settled()
        assert [seen for seen in shown.history if seen != "yz"] == [None, "xy", "wx"]
        assert universe.row(collection="letters").stored.version == 3
        assert universe.embedder.embedded["w"] == 1

    live(story, seed=seed, topics=topics)


@pytest.mark.parametrize("seed", SEEDS)
def test_c6_of_two_first_inserts_the_higher_version_stands_whole(seed):
    async def story(universe):
        await cut_in_letters(universe)
        gate = Gate()
        universe.embedder.script = gate.of_text("w")
        universe.start()
        universe.start()
        await universe.broker.stable_at(GROUP, 2)
        universe.publish(letters(1, "vw"), partition=0)
        await gate.reached.wait()
        universe.publish(letters(2, "yz"), partition=1)
        await until(universe, lambda: universe.row(collection="letters") is not None)
        gate.open.set()
        await universe.settled()
        assert universe.text(collection="letters") == "yz"

    live(story, seed=seed)


@pytest.mark.parametrize("seed", range(30))
def test_c6_two_owners_of_one_key_end_at_the_highest_version(seed):
    async def story(universe):
        await cut_in_letters(universe)
        random = universe.random

        async def slow(_):
            await asyncio.sleep(random.random())

        async def slow_store(*_):
            await asyncio.sleep(random.random() / 4)

        universe.embedder.script, universe.hook = slow, slow_store
        universe.start()
        universe.start()
        wanted = {}
        for version in random.sample(range(100), 40):
            document = random.choice("ab")
            text = "".join(sorted(random.sample("stuvwxyz", 3)))
            partition = random.randrange(2)
            universe.publish(letters(version, text, document), partition=partition)
            wanted[document] = max(wanted.get(document, (-1, "")), (version, text))
            await asyncio.sleep(random.random() / 2)
        await universe.settled()
        for document, (version, text) in wanted.items():
            row = universe.row(document, collection="letters")
            assert row.stored.version == version
            assert universe.text(document, collection="letters") == text

    live(story, seed=seed)


# ---- C7, C9: replayed dead letters ----


class AuditOfReplays(Audit):
    """Looks for a replayed record where it first stood, as the contract says."""

    def is_carried(self, record):
        origin = parse_origin(record.headers)
        if origin is not None and self.is_dead_letter(self._first(record, origin)):
            record = self._first(record, origin)
        return super().is_carried(record)

    def _first(self, record, origin):
        position = Position(origin.topic, origin.partition, origin.offset)
        return replace(record, position=position, timestamp_ms=origin.timestamp_ms)


def replay(universe, index=-1, *, partition=0):
    """Publish a letter of the dead-letter topic again, as its envelope says."""
    (topic,) = universe.broker.partitions(["documents.dead-letters"])
    letter = universe.broker.log(topic).records[index]
    envelope, originals = parse_dead_letter(letter.headers)
    headers = tuple(origin_headers(originals, envelope))
    return universe.broker.append(
        TOPIC, partition, key=letter.key, value=letter.value, headers=headers
    )


def replaying(story, **options):
    async def audited(universe):
        universe.audit = AuditOfReplays(universe, GROUP)
        await story(universe)

    live(audited, partitions=1, **options)


@pytest.mark.parametrize("seed", SEEDS)
def test_c7_a_replay_stands_where_the_letter_first_stood_and_not_over_what_came_after(seed):
    async def story(universe):
        refused = refusing(universe, "X")
        universe.start()
        universe.publish(upsert("a", 5, "X"))
        await universe.settled()
        universe.publish(upsert("a", 5, "Y"))
        await universe.settled()
        refused.clear()
        replay(universe)
        await universe.settled()
        assert universe.text() == "Y"
        assert universe.row().stored.order.offset == 1

    replaying(story, seed=seed)


def test_c7_a_replay_of_the_newest_version_is_stored_at_its_first_position():
    async def story(universe):
        refused = refusing(universe, "X")
        universe.start()
        universe.publish(upsert("a", 5, "X"))
        await universe.settled()
        refused.clear()
        assert replay(universe) == 1
        await universe.settled()
        assert universe.text() == "X"
        assert universe.row().stored.order.offset == 0

    replaying(story)


def test_c7_a_replay_of_an_older_version_changes_nothing():
    async def story(universe):
        refused = refusing(universe, "X")
        universe.start()
        universe.publish(upsert("a", 5, "X"))
        universe.publish(upsert("a", 6, "Y"))
        await universe.settled()
        refused.clear()
        replay(universe)
        await universe.settled()
        assert universe.text() == "Y"

    # The older one would be parked under the newer one, were they polled together.
    def alone(universe):
        one_record_a_poll(universe)
        return story(universe)

    replaying(alone)


def test_c7_a_replay_that_fails_again_keeps_its_first_origin():
    async def story(universe):
        refused = refusing(universe, "X")
        universe.start()
        universe.publish(upsert("a", 5, "X"))
        await universe.settled()
        replay(universe)
        await universe.settled()
        universe.publish(upsert("a", 5, "Y"))
        await universe.settled()
        (topic,) = universe.broker.partitions(["documents.dead-letters"])
        chain = [
            parse_dead_letter(letter.headers)[0]
            for letter in universe.broker.log(topic).records
        ]
        assert [(one.offset, one.origin.offset) for one in chain] == [(0, 0), (1, 0)]
        refused.clear()
        replay(universe)
        await universe.settled()
        assert universe.text() == "Y"

    replaying(story)


def test_c7_an_origin_that_the_ledger_does_not_know_is_not_believed():
    async def story(universe):
        universe.start()
        universe.publish(upsert("a", 5, "Y"))
        universe.publish(upsert("b", 5, "other"), partition=0)
        await universe.settled()
        envelope = DeadLetterEnvelope(
            reason="rejected_input", stage="ingest", topic=TOPIC, partition=0, offset=0,
            timestamp_ms=0, group=GROUP, first_seen_ms=0, origin=Origin(TOPIC, 0, 0, 0, 0),
        )  # fmt: skip
        universe.publish(upsert("a", 5, "X"), headers=tuple(origin_headers((), envelope)))
        await universe.settled()
        # By its own position it is the later of two equal versions.
        assert (universe.text(), universe.row().stored.order.offset) == ("X", 2)

    replaying(story)


@pytest.mark.parametrize("last_word", [tombstone("a"), delete("a", 6)])
@pytest.mark.parametrize("seed", SEEDS)
def test_c9_a_replay_does_not_bring_back_what_was_deleted_after_it(seed, last_word):
    async def story(universe):
        refused = refusing(universe, "X")
        universe.start()
        universe.publish(upsert("a", 5, "X"))
        await universe.settled()
        universe.publish(last_word)
        await universe.settled()
        refused.clear()
        replay(universe)
        await universe.settled()
        assert universe.row().stored.deleted
        assert universe.embedder.embedded["X"] == 0

    replaying(story, seed=seed)


# ---- C8: a delete without a version ----


@pytest.mark.parametrize("timing", ["at once", "one by one", "one a poll"])
@pytest.mark.parametrize("seed", SEEDS)
def test_c8_a_delete_without_a_version_has_one_meaning_whatever_the_timing(seed, timing):
    async def story(universe):
        if timing == "one a poll":
            one_record_a_poll(universe)
        universe.start()
        logs = {
            "a": [upsert("a", 5, "five"), tombstone("a"), upsert("a", 3, "three")],
            "b": [upsert("b", 5, "five"), tombstone("b")],
            "c": [tombstone("c"), upsert("c", 1, "one")],
            "d": [upsert("d", 5, "five"), tombstone("d"), upsert("d", 3), delete("d", 4)],
        }
        for events in logs.values():
            for event in events:
                universe.publish(event, partition=0)
                if timing == "one by one":
                    await universe.settled()
        await universe.settled()
        shown = [universe.text(document) for document in logs]
        assert shown == ["three", None, "one", None]

    live(story, seed=seed, partitions=1)


# ---- C10: a late claim ----


@pytest.mark.parametrize("seed", SEEDS)
def test_c10_a_claim_that_comes_late_fences_the_owner_who_claims_again(seed):
    async def story(universe):
        gate = Gate()
        universe.hook = gate.of_call("claim", "before")
        late = universe.start()
        await gate.reached.wait()
        owner = universe.start()
        await universe.broker.stable_at(GROUP, 2)
        universe.broker.expel(late.worker.runner.source)
        await universe.broker.stable_at(GROUP, 2)
        universe.publish(upsert("a", 1, "one"))
        await until(universe, lambda: universe.text("a") == "one")
        claims = universe.database.state.claims
        before = claims[GROUP, ONLY].epoch
        gate.open.set()
        await until(universe, lambda: claims[GROUP, ONLY].epoch > before)
        universe.publish(upsert("b", 1, "two"), partition=0)
        await universe.settled()
        assert universe.text("b") == "two"
        assert claims[GROUP, ONLY].owner == "worker-1"
        await asyncio.sleep(300)
        # The late one, and the owner again: they do not evict each other for ever.
        assert claims[GROUP, ONLY].epoch == before + 2
        assert owner.worker.counters.fenced == 1

    live(story, seed=seed, partitions=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_c10_an_idle_owner_notices_a_late_claim_too(seed):
    async def story(universe):
        owner = universe.start()
        universe.publish(upsert("a", 1, "one"))
        await universe.settled()
        await MemoryClaims(universe.database).claim(GROUP, ONLY, "late")
        await until(universe, lambda: owner.worker.counters.claims == 2)
        revision = universe.row().stored.revision
        universe.publish(upsert("a", 2, "two"))
        await universe.settled()
        assert universe.text() == "two"
        assert owner.worker.counters.fenced == 1
        assert universe.row().stored.revision == revision + 1

    live(story, seed=seed, partitions=1)


def test_c10_what_is_fenced_is_claimed_again_only_when_the_group_confirms_it():
    async def story(universe):
        owner = universe.start()
        universe.publish(upsert("a", 1, "one"))
        await universe.settled()
        thief = await MemoryClaims(universe.database).claim(GROUP, ONLY, "thief")
        universe.broker.fail("confirm", *[BrokerUnavailable()] * 5)
        universe.publish(upsert("b", 1, "two"), partition=0)
        while universe.broker._faults["confirm"]:
            assert universe.database.is_live(thief)
            assert universe.text("b") is None
            await universe.broker.changes.next(0.1)
        await universe.settled()
        assert universe.text("b") == "two"
        assert owner.worker.counters.claims == 2

    live(story, partitions=1)


# ---- C11: a scope delete ----


@pytest.mark.parametrize("held", [("apply", "before"), ("apply", "open"), ("read", "before")])
@pytest.mark.parametrize("seed", SEEDS)
def test_c11_an_upsert_under_way_does_not_outlive_a_scope_delete(seed, held):
    async def story(universe):
        universe.start()
        universe.start()
        await universe.broker.stable_at(GROUP, 2)
        for number in range(4):
            universe.publish(upsert(f"old {number}", number, f"old {number}"), partition=1)
        universe.publish(upsert("newer", 11, "newer"), partition=1)
        await universe.settled()
        gate = Gate()
        universe.hook = gate.of_call(*held)
        universe.publish(upsert("d", 5, "five"), partition=1)
        await gate.reached.wait()
        universe.publish(ScopeDeleted(tenant="tenant", version=10), partition=0)
        await until(universe, lambda: universe.database.state.scopes)
        await asyncio.sleep(1)
        gate.open.set()
        await universe.settled()
        assert universe.text("d") is None
        assert [key.id for key in universe.database.state.documents] == ["newer"]

    live(story, seed=seed)


@pytest.mark.parametrize("seed", range(30))
def test_c11_whatever_races_with_a_scope_delete_only_what_is_newer_is_left(seed):
    async def story(universe):
        random = universe.random
        shaky = True

        async def slow(call, moment):
            await asyncio.sleep(random.random() / 2)
            if shaky and call == "delete_scope" and random.random() < 0.5:
                raise StoreUnavailable

        universe.hook = slow
        universe.start()
        universe.start()
        left = {}
        scope_at = random.randrange(40)
        for number in range(40):
            if number == scope_at:
                universe.publish(ScopeDeleted(tenant="tenant", version=50), partition=0)
            document, version = f"d{number % 15}", random.randrange(100)
            if version > left.get(document, 50):
                left[document] = version
            universe.publish(upsert(document, version, f"{document} {version}"))
            await asyncio.sleep(random.random() / 5)
        await asyncio.sleep(20)
        shaky = False
        await universe.settled()
        found = {
            key.id: row.stored.version for key, row in universe.database.state.documents.items()
        }
        assert found == left

    live(story, seed=seed)
