"""The ports of a database, and a look at its tables, on memory and on PostgreSQL."""

import asyncio
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from msgspec import json

from schemas.dead_letter import Facts
from tests.support.store_changes import ARTICLES, GROUP, KEY, PARTITION, delete, upsert, write
from worker.adapters.memory_database import MemoryDatabase
from worker.adapters.memory_ledger import MemoryLedger
from worker.adapters.memory_partitions import MemoryCrashes, MemoryHolds
from worker.adapters.memory_poison import MemoryPoisons
from worker.adapters.memory_store import MemoryCatalog, MemoryClaims, MemoryStore
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_client import Database
from worker.adapters.pg_crashes import PostgresCrashes
from worker.adapters.pg_documents import chunk_table
from worker.adapters.pg_holds import PostgresHolds
from worker.adapters.pg_ledger import PostgresLedger
from worker.adapters.pg_migrations import Migrations
from worker.adapters.pg_poison import PostgresPoisons
from worker.adapters.pg_statements import live_claims
from worker.adapters.pgvector_store import PgvectorStore
from worker.config import DatabaseOptions
from worker.core.model import Base, Claim, Collection, DocumentKey, Order, Partition
from worker.ports import (
    Catalog,
    Claims,
    Crashes,
    Holds,
    Ledger,
    Poisons,
    Query,
    Store,
    Verdict,
)


class Letter(NamedTuple):
    """A row of the ledger."""

    group: str
    partition: Partition
    incarnation: int
    offset: int
    state: str
    attempts: int
    reason: str
    detail: str
    facts: Facts
    tenant: str | None
    version: int | None
    origin: Order | None


class Row(NamedTuple):
    """The columns of a document that no change set is computed from."""

    metadata: Any
    content_type: str | None
    trace_id: str | None
    occurred_at_ms: int | None


class StoredText(NamedTuple):
    """A chunk as a reader sees it."""

    seq: int
    content: str
    heading: str | None
    start: int
    end: int
    vector: tuple[float, ...]


class World:
    """One database: its ports, and what the tests look at."""

    claims: Claims
    crashes: Crashes
    holds: Holds
    store: Store
    ledger: Ledger
    poisons: Poisons
    catalog: Catalog
    articles: Collection

    async def prepare(self) -> None:
        self.articles = await self.catalog.create(ARTICLES)

    async def claim(self, partition: Partition = PARTITION, group: str = GROUP) -> Claim:
        return await self.claims.claim(group, partition, "owner")

    async def base(self, key: DocumentKey = KEY, origin: Order | None = None) -> Base:
        (base,) = await self.store.read([Query(key, GROUP, origin)])
        return base

    async def put(self, claim: Claim, *, of: DocumentKey = KEY, **change: Any) -> Verdict:
        """Upsert on what is stored now."""
        changed = upsert(self.articles, await self.base(of), of=of, **change)
        (verdict,) = await self.store.apply([write(changed, claim)])
        return verdict

    async def drop(self, claim: Claim, *, of: DocumentKey = KEY, **change: Any) -> Verdict:
        """Delete on what is stored now."""
        changed = delete(self.articles, await self.base(of), of=of, **change)
        (verdict,) = await self.store.apply([write(changed, claim)])
        return verdict

    async def texts(self, key: DocumentKey = KEY) -> list[str]:
        return [found.content for found in await self.chunks(key)]

    async def chunks(self, key: DocumentKey = KEY) -> list[StoredText]:
        raise NotImplementedError

    async def row(self, key: DocumentKey = KEY) -> Row:
        raise NotImplementedError

    async def letters(self) -> list[Letter]:
        raise NotImplementedError

    async def renew_topic(self, partition: Partition, incarnation: int) -> None:
        """Say that the topic was created again, as an operator would."""
        raise NotImplementedError

    async def next_millisecond(self) -> None:
        """Return when the database's clock shows another millisecond than now."""
        began = await self._now_ms()
        while await self._now_ms() == began:
            pass

    async def _now_ms(self) -> int:
        raise NotImplementedError

    def writing(self, claim: Claim) -> Any:
        """Hold a transaction open under a claim."""
        raise NotImplementedError

    async def until_waiting(self, task: "asyncio.Task[Any]") -> None:
        """Return when a task waits for a lock; fails where it ends instead."""
        raise NotImplementedError


def floats(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 4}f", vector)


class MemoryWorld(World):
    def __init__(self, database: MemoryDatabase | None = None) -> None:
        self.database = database or MemoryDatabase()
        self.claims = MemoryClaims(self.database)
        self.crashes = MemoryCrashes(self.database)
        self.holds = MemoryHolds(self.database)
        self.store = MemoryStore(self.database)
        self.ledger = MemoryLedger(self.database)
        self.poisons = MemoryPoisons(self.database)
        self.catalog = MemoryCatalog(self.database)

    async def chunks(self, key: DocumentKey = KEY) -> list[StoredText]:
        row = self.database.state.documents.get(key)
        chunks = row.chunks.values() if row else ()
        return sorted(
            StoredText(c.seq, c.content, c.heading, c.start, c.end, floats(vector))
            for c, vector in chunks
        )

    async def row(self, key: DocumentKey = KEY) -> Row:
        row = self.database.state.documents[key]
        metadata = None if row.metadata is None else json.decode(row.metadata)
        return Row(metadata, row.content_type, row.trace_id, row.occurred_at_ms)

    async def letters(self) -> list[Letter]:
        return [
            Letter(
                *key,
                row.state,
                row.recorded.attempts,
                row.letter.reason.value,
                row.letter.detail,
                row.letter.facts,
                row.letter.tenant,
                row.letter.version,
                row.letter.origin,
            )
            for key, row in sorted(self.database.state.letters.items())
        ]

    async def renew_topic(self, partition: Partition, incarnation: int) -> None:
        claims = self.database.state.claims
        for place, row in claims.items():
            if place[1] == partition:
                claims[place] = row._replace(incarnation=incarnation)

    async def _now_ms(self) -> int:
        await asyncio.sleep(0)
        return int(asyncio.get_running_loop().time() * 1000)

    @asynccontextmanager
    async def writing(self, claim: Claim) -> AsyncIterator[None]:
        async with self.database.transaction("writing", [claim]):
            yield

    async def until_waiting(self, task: "asyncio.Task[Any]") -> None:
        # More steps of the loop than any call of the memory takes.
        for _ in range(100):
            await asyncio.sleep(0)
        assert not task.done()


class PostgresWorld(World):
    def __init__(self, database: Database) -> None:
        self.database = database
        self.claims = PostgresClaims(database)
        self.crashes = PostgresCrashes(database)
        self.holds = PostgresHolds(database)
        self.store = PgvectorStore(database)
        self.ledger = PostgresLedger(database)
        self.poisons = PostgresPoisons(database)
        self.catalog = PostgresCatalog(database)

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        async with self.database.connection() as connection:
            return await connection.fetch(sql, *arguments)

    async def fetchval(self, sql: str, *arguments: Any) -> Any:
        async with self.database.connection() as connection:
            return await connection.fetchval(sql, *arguments)

    async def chunks(self, key: DocumentKey = KEY) -> list[StoredText]:
        collection = await self.catalog.collection(key.collection)
        table = chunk_table(collection.id, collection.generation)
        rows = await self.fetch(
            f"select seq, content, heading, span_start, span_end, embedding::text from {table}"
            " where tenant = $1 and id = $2 order by seq",
            key.tenant,
            key.id,
        )
        return [StoredText(*row[:5], tuple(map(float, json.decode(row[5])))) for row in rows]

    async def row(self, key: DocumentKey = KEY) -> Row:
        (row,) = await self.fetch(
            "select metadata::text, content_type, trace_id,"
            " (extract(epoch from occurred_at) * 1000)::bigint"
            " from document where (tenant, collection, id) = ($1, $2, $3)",
            *key,
        )
        return Row(None if row[0] is None else json.decode(row[0]), *row[1:])

    async def letters(self) -> list[Letter]:
        rows = await self.fetch(
            'select grp, topic, partition, incarnation, "offset", state, attempts, reason,'
            " detail, provider_status, provider_request_id, sqlstate, constraint_name,"
            " tenant, version, origin_topic, origin_partition, origin_offset,"
            " origin_timestamp_ms, origin_incarnation from dead_letter"
            ' order by grp, topic, partition, incarnation, "offset"'
        )
        return [
            Letter(
                row[0],
                Partition(*row[1:3]),
                *row[3:9],
                Facts(*row[9:13]),
                *row[13:15],
                None if row[15] is None else Order(*row[15:]),
            )
            for row in map(tuple, rows)
        ]

    async def renew_topic(self, partition: Partition, incarnation: int) -> None:
        await self.fetch(
            "update partition_claim set incarnation = $3 where (topic, partition) = ($1, $2)",
            *partition,
            incarnation,
        )

    async def _now_ms(self) -> int:
        return await self.fetchval("select (extract(epoch from now()) * 1000)::bigint")

    @asynccontextmanager
    async def writing(self, claim: Claim) -> AsyncIterator[Any]:
        async with self.database.transaction() as connection:
            assert await live_claims(connection, [claim], self.database.history)
            yield connection

    async def until_waiting(self, task: "asyncio.Task[Any]") -> None:
        waits = (
            "select exists (select from pg_stat_activity where wait_event_type = 'Lock'"
            " and pid in (select pid from pg_locks l join pg_class c on c.oid = l.relation"
            " where c.relnamespace = $1::text::regnamespace))"
        )
        async with asyncio.timeout(20):
            while not await self.fetchval(waits, self.database.options.schema):
                assert not task.done(), task
        assert not task.done()


@asynccontextmanager
async def postgres_world(options: DatabaseOptions) -> AsyncIterator[PostgresWorld]:
    await Migrations(options).up()
    database = await Database.open(options)
    try:
        world = PostgresWorld(database)
        await world.prepare()
        yield world
    finally:
        await database.close()


async def memory_world(database: MemoryDatabase | None = None) -> MemoryWorld:
    world = MemoryWorld(database)
    await world.prepare()
    return world


async def verdicts(world: World, claim: Claim, changes: Sequence[Any]) -> list[Verdict]:
    return await world.store.apply([write(change, claim) for change in changes])
