"""The races of the protocol (section 5) on what was built, with writers that share no fence."""

import asyncio
import random

import pytest

from schemas.events import ScopeDeleted
from tests.support.store_changes import DocumentKey, at, key, upsert, write
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.core.model import Base, Claim, Partition, Rank
from worker.ports import Query, Verdict

pytestmark = pytest.mark.real

WRITERS = 6
WRITES = 600
HOT_KEYS = 3


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


def texts_of(document: DocumentKey, version: int) -> list[str]:
    """Which chunks this version has: what a reader can check."""
    draw = random.Random(f"{document.id} {version}")
    return draw.sample(["p", "q", "r", "s", "t", "u"], draw.randint(1, 4))


class Race:
    """Writers of the same keys from partitions of their own, and a reader."""

    def __init__(self, world: PostgresWorld) -> None:
        self.world = world
        self.written = self.moved = self.torn = self.reads = self.fell = 0
        self.highest: dict[str, int] = {}
        self.draw = random.Random(7)

    def next_write(self) -> tuple[DocumentKey, int]:
        self.written += 1
        document = key(f"d{self.written // 40 + self.draw.randrange(HOT_KEYS)}")
        return document, self.written + self.draw.randint(0, 8)

    async def write(self, partition: int) -> None:
        claim = await self.world.claim(Partition("documents", partition))
        while self.written < WRITES:
            document, version = self.next_write()
            while await self.write_once(claim, document, version) is Verdict.BASE_CHANGED:
                self.moved += 1
                base = await self.world.base(document)
                if base.document and base.document.version >= version:
                    break

    async def write_once(self, claim: Claim, document: DocumentKey, version: int) -> Verdict:
        base = await self.world.base(document)
        changed = upsert(
            self.world.articles,
            base,
            of=document,
            version=version,
            # Of equal versions the timestamp, then the partition decides: see `core.model`.
            order=at(version, partition=claim.partition.number, timestamp_ms=version),
            texts=texts_of(document, version),
        )
        (verdict,) = await self.world.store.apply([write(changed, claim)])
        return verdict

    async def read(self) -> None:
        select = (
            "select document_id, version, array_agg(content) texts from articles_chunks"
            " group by 1, 2"
        )
        while self.written < WRITES:
            rows = await self.world.fetch(select)
            self.reads += 1
            for document, version, texts in rows:
                self.torn += sorted(texts) != sorted(texts_of(key(document), version))
                self.fell += version < self.highest.get(document, 0)
                self.highest[document] = version


async def test_writers_that_share_no_fence_never_tear_a_document(world: PostgresWorld) -> None:
    """Protocol, C6: two partitions, two groups or a one-shot job write the same keys."""
    race = Race(world)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(race.read())
        for number in range(WRITERS):
            tasks.create_task(race.write(number))
    assert (race.torn, race.fell) == (0, 0)
    # The race was one: writers met, and the reader saw them.
    assert race.moved > 20
    assert race.reads > 20


async def test_nothing_survives_a_scope_delete_that_races_with_upserts(
    world: PostgresWorld,
) -> None:
    """Protocol, C11."""
    claims = [await world.claim(Partition("documents", number)) for number in range(4)]
    draw = random.Random(11)

    async def upsert_all(claim: Claim, keys: list[DocumentKey], version: int) -> None:
        for document in keys:
            for _ in range(draw.randrange(4)):
                await asyncio.sleep(0)
            base = await world.base(document)
            change = upsert(
                world.articles,
                base,
                of=document,
                version=version,
                order=at(version, partition=claim.partition.number, timestamp_ms=version),
                texts=["a", "b"],
            )
            await world.store.apply([write(change, claim)])

    async def delete(version: int) -> None:
        for _ in range(draw.randrange(40)):
            await asyncio.sleep(0)
        scope = ScopeDeleted(tenant="tenant", version=version)
        rank = Rank(version, at(version))
        assert await world.store.delete_scope(claims[0], scope, rank) is Verdict.APPLIED

    survivors, met = 0, 0
    for turn in range(1, 41):
        keys = [key(f"{turn} {number}") for number in range(5)]
        async with asyncio.TaskGroup() as tasks:
            for claim in claims[1:]:
                tasks.create_task(upsert_all(claim, keys, 10 * turn + 5))
            tasks.create_task(delete(10 * turn + 9))
        bases = await world.store.read([Query(document, "group") for document in keys])
        survivors += sum(base.document is not None for base in bases)
        met += await world.fetchval("select count(*) from chunk_1_1")
        assert bases == [Base(scope_version=10 * turn + 9)] * len(keys)
    assert (survivors, met) == (0, 0)
