"""
Whole fleets under seeded chance: faults, rebalances, kills, lost answers, late commits.

Every commit is audited (`tests/support/audit.py`); at the end everything has a fate and the
table is the fold of the log. A failure names its seed, and the seed replays it.
"""

import asyncio
import os
from collections import Counter
from contextlib import suppress
from functools import partial

import pytest

from tests.support.universe import (
    GROUP,
    ONLY,
    TOPIC,
    Universe,
    delete,
    live,
    tombstone,
    upsert,
    with_options,
)
from worker.adapters.memory_store import MemoryClaims
from worker.core.model import Partition
from worker.errors import (
    BadOutput,
    ProviderUnavailable,
    RateLimited,
    RejectedInput,
    StoreUnavailable,
)

SEEDS = int(os.environ.get("EMBEDFLEET_TEST_SEEDS", "2000"))
SHARE = 20
DOCUMENTS = 6
SETTINGS = with_options(
    kafka={"heartbeat_seconds": 1, "drain_seconds": 3, "rebalance_seconds": 9},
    queue={"max_documents": 30, "max_in_flight": 8},
    embedding={"concurrency": 3, "max_inputs": 4},
    ingest={"document_timeout_seconds": 20},
)
TESTED = (
    *(f"the store fails {moment}" for moment in ("before", "open", "committed")),
    *("the store is slow", "the broker fails", "the provider fails"),
    *("a worker comes", "a worker leaves", "a worker dies", "a worker is expelled"),
    *("a claim comes late", "a claim is fenced", "a work is released", "a work is requeued"),
    "a dead letter",
)
"""What happens in each share of the universes, or it has tested nothing."""
UNIVERSES_THAT_TELL = 100
PAUSES_SECONDS = (0, 3, 12)
PROVIDER_FAULTS = (
    partial(ProviderUnavailable, status=503),
    ProviderUnavailable,  # a time-out, or a connection that is lost
    partial(RateLimited, status=429, retry_after_seconds=2),
    partial(BadOutput, status=200),
)
BROKER_FAULTS = ("topic_ids", "committed", "bounds", "landmark", "commit", "publish")


class Chaos:
    """One universe's faults, drawn from its seed."""

    def __init__(self, universe: Universe) -> None:
        self.universe = universe
        self.random = universe.random
        self.calm = False
        self.counts = Counter()
        universe.hook = self.fault_of_the_store
        universe.embedder.script = self.fault_of_the_provider
        universe.audit.is_poison = lambda event: "poison" in getattr(event, "text", "")

    async def fault_of_the_store(self, call, moment):
        await asyncio.sleep(self.random.random() * 0.2)
        if self.calm:
            return
        if self.random.random() < 0.05:
            self.counts["the store fails " + moment] += 1
            raise StoreUnavailable(f"{call} {moment}")
        if self.random.random() < 0.01:  # beyond the patience of whoever claims meanwhile
            self.counts["the store is slow"] += 1
            await asyncio.sleep(self.random.random() * 15)

    async def fault_of_the_provider(self, request):
        await asyncio.sleep(self.random.random() * 3)
        if any("poison" in text for text in request.texts):
            raise RejectedInput
        if not self.calm and self.random.random() < 0.15:
            fault = self.random.choice(PROVIDER_FAULTS)
            self.counts["the provider fails"] += 1
            raise fault("by chance")

    def publish(self, count):
        for _ in range(count):
            document = f"d{self.random.randrange(DOCUMENTS)}"
            version = self.random.randrange(12)
            # Inside one partition a key keeps its order; tombstones need it (protocol, 13).
            partition = int(document[1:]) % self.universe.partitions
            self.universe.publish(self.event(document, version), partition=partition)
            if self.random.random() < 0.1:
                self.universe.broker.skip(TOPIC, partition)

    def event(self, document, version):
        kind = self.random.random()
        if kind < 0.1:
            return delete(document, version)
        if kind < 0.15:
            return tombstone(document)
        text = f"{document} text {self.random.randrange(8)}"
        return upsert(document, version, "poison " + text if kind > 0.95 else text)

    async def disturb(self):
        """Do one thing that a fleet must survive, at once or while it is at work."""
        universe, members = self.universe, self.universe.members
        await asyncio.sleep(self.random.choice(PAUSES_SECONDS) * self.random.random())
        match self.random.randrange(7):
            case 0 if len(members) < 3:
                self.counts["a worker comes"] += 1
                universe.start()
            case 1 if len(members) > 1:
                self.counts["a worker leaves"] += 1
                await universe.stop(self.random.choice(members))
            case 2:
                self.counts["a worker dies"] += bool(self._in_flight())
                await universe.kill(self.random.choice(members))
                universe.start()
            case 3 if (source := self.random.choice(members).worker.runner.source) is not None:
                self.counts["a worker is expelled"] += 1
                universe.broker.expel(source)
            case 4:
                await self.disturb_the_broker()
            case 5:
                await self.claim_late()
            case _:
                await asyncio.sleep(self.random.random() * 10)

    async def disturb_the_broker(self):
        broker = self.universe.broker
        self.counts["the broker fails"] += 1
        match self.random.randrange(3):
            case 0:
                broker.hold_commits()
                await asyncio.sleep(self.random.random() * 5)
                broker.apply_held_commits()
            case 1:
                broker.stop()
                await asyncio.sleep(self.random.random() * 5)
                broker.start()
            case _:
                broker.fail(self.random.choice(BROKER_FAULTS))

    async def claim_late(self):
        """Claim for somebody who has lost the partition meanwhile, and is gone."""
        partition = Partition(TOPIC, self.random.randrange(self.universe.partitions))
        with suppress(StoreUnavailable):
            await MemoryClaims(self.universe.database).claim(GROUP, partition, "late")
            self.counts["a claim comes late"] += 1

    def _in_flight(self):
        return sum(member.worker.dispatch.in_flight for member in self.universe.members)

    def happened(self):
        """How often each kind of fault, and of what should come of it, has happened."""
        workers = [member.worker.counters for member in self.universe.members]
        letters = self.universe.database.state.letters
        return self.counts + Counter(
            {
                "a claim is fenced": sum(one.fenced for one in workers),
                "a work is released": sum(one.outcomes["released", ""] for one in workers),
                "a work is requeued": sum(one.requeues for one in workers),
                "a dead letter": len(letters),
            }
        )


async def story(universe):
    chaos = Chaos(universe)
    universe.start()
    for _ in range(universe.random.randrange(1, 6)):
        chaos.publish(universe.random.randrange(12))
        await chaos.disturb()
    chaos.calm = True
    await universe.settled()
    universe.audit.check_end()
    trace = asyncio.get_running_loop().trace
    return trace, sorted(universe.embedder.embedded.items()), chaos.happened()


@pytest.mark.parametrize("share", range(SHARE))
def test_no_fault_breaks_a_promise(share):
    happened = Counter()
    for seed in range(share, SEEDS, SHARE):
        try:
            *_, counts = live(story, seed=seed, settings=SETTINGS)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        happened += counts
    if SEEDS >= UNIVERSES_THAT_TELL * SHARE:
        assert set(happened) == set(TESTED), happened


@pytest.mark.parametrize("seed", range(40))
def test_a_seed_replays(seed):
    first, second = (live(story, seed=seed, settings=SETTINGS) for _ in range(2))
    assert first == second


def test_the_restored_database_is_filled_again_by_workers_that_stay_up():
    """C4, C12."""

    async def restored(universe):
        universe.start()
        universe.publish(upsert("a", 1, "one"), partition=0)
        await universe.settled()
        backup = universe.database.snapshot()
        universe.publish(upsert("a", 2, "two"), partition=0)
        await universe.settled()
        universe.audit.seen.clear()
        universe.broker.commit = lambda group, offsets: universe.broker.committed.update(
            {(group, partition): offset for partition, offset in offsets.items()}
        )
        universe.database.hook = None
        universe.database.restore(backup)
        assert universe.text("a") == "one"
        while universe.text("a") != "two":
            await universe.broker.changes.next(10)
        assert universe.database.state.progress[GROUP, ONLY].next_offset == 2

    live(restored)
