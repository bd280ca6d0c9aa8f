"""
What a load without an index saves, on the worker's own store and a durable PostgreSQL.

`make bench-bulk-load` runs it. The same documents are stored by as many transactions at once as
a worker has, under an HNSW index, and without one that is built then as `embedfleet bulk-load`
does; in turn, and each time with a recall that shows that the two indexes are as good. Prints
the claim with its figure; the exit code says whether it was reached.
"""

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from typing import NamedTuple
from uuid import uuid4

from tests.bench.servers import DIMENSIONS, MODEL, POSTGRES_SETTINGS, cost
from tests.support.postgres import drop_schema
from tests.support.servers import open_folder
from tests.support.store_changes import at
from tests.support.verdicts import Verdict, lines
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_client import Database
from worker.adapters.pg_indexes import PostgresIndexes
from worker.adapters.pg_migrations import Migrations
from worker.adapters.pg_readers import Readers
from worker.adapters.pgvector_store import PgvectorStore
from worker.config import DatabaseOptions, IndexBuildOptions, IngestOptions
from worker.core.model import (
    ChangeSet,
    Chunk,
    ChunkId,
    ChunkingOptions,
    Claim,
    Collection,
    DocumentKey,
    Partition,
    Rank,
    Vector,
)
from worker.core.vector_index import VectorIndex
from worker.embedded.postgres import EmbeddedPostgres
from worker.embedded.scripted_provider import Pool
from worker.ops.index_build import IndexBuild
from worker.ports import Verdict as Written
from worker.ports import Write

DOCUMENTS = 10_000
CHUNKS = 2
CHUNK_CHARACTERS = 2_000
ROUNDS = 3
QUERIES = 50
GOAL = 4.0
INDEX = VectorIndex(build_at_rows=0)


class Run(NamedTuple):
    """One way of loading: how long it took, what it cost the server, how good the index is."""

    seconds: float
    cpu_seconds: float
    recall: float


class Table(NamedTuple):
    """A collection in a schema of its own, with who may write to it; `pid` is the server."""

    pid: int
    database: Database
    collection: Collection
    claim: Claim

    async def store(self, writes: Sequence[Write]) -> None:
        """Store documents in as many transactions at once, and as large, as a worker does."""
        options = IngestOptions()
        store = PgvectorStore(self.database)
        batches = iter(
            [
                writes[start : start + options.store_batch_documents]
                for start in range(0, len(writes), options.store_batch_documents)
            ]
        )

        async def carry() -> None:
            for batch in batches:
                assert set(await store.apply(batch)) == {Written.APPLIED}

        async with asyncio.TaskGroup() as tasks:
            for _ in range(options.store_slots):
                tasks.create_task(carry())

    async def run(self, load: Callable[[], Awaitable[None]]) -> Run:
        """Measure one way of loading."""
        cpu, began = cost(self.pid).cpu_seconds, time.monotonic()
        await load()
        seconds = time.monotonic() - began
        return Run(seconds, cost(self.pid).cpu_seconds - cpu, await self.recall())

    async def recall(self) -> float:
        """Return how much of the nearest the index finds."""
        async with self.database.connection() as connection:
            await connection.execute("analyze")
        found = await Readers(self.database).recall(self.collection, QUERIES, 10)
        assert found is not None
        assert found.by_index == QUERIES, found
        return found.share


@asynccontextmanager
async def table(server: EmbeddedPostgres) -> AsyncIterator[Table]:
    """Make a collection with its index."""
    url = server.url
    options = DatabaseOptions(url=url, schema=f"bulk_{uuid4().hex[:12]}", pool_min=1)
    await Migrations(options).up()
    database = await Database.open(options)
    try:
        wanted = Collection(
            id=0,
            name="docs",
            model=MODEL,
            dimensions=DIMENSIONS,
            storage="halfvec",
            metric="cosine",
            chunking=ChunkingOptions(),
            index=INDEX,
        )
        collection = await PostgresCatalog(database).create(wanted)
        claim = await PostgresClaims(database).claim("bulk", Partition("documents", 0), "bench")
        assert server.pid is not None
        yield Table(server.pid, database, collection, claim)
    finally:
        await database.close()
        await drop_schema(url, options.schema)


async def under_index(server: EmbeddedPostgres, pool: Pool) -> Run:
    """Store all documents under the index."""
    async with table(server) as one:
        writes = list(_writes(one, pool))
        return await one.run(lambda: one.store(writes))


async def without_index(server: EmbeddedPostgres, pool: Pool) -> Run:
    """Drop the index, store all documents, and build it."""
    async with table(server) as one:
        writes = list(_writes(one, pool))
        indexes = PostgresIndexes(one.database)
        build = IndexBuild(
            indexes,
            PostgresCatalog(one.database),
            IndexBuildOptions(),
            clock=time.monotonic,
            watch=lambda _: None,
        )

        async def load() -> None:
            async with indexes.locked(one.collection, "bench") as builder:
                for place in await indexes.found(one.collection):
                    await builder.drop(place)
                await one.store(writes)
                built = await build.under_lock(builder, one.collection)
            assert built.rows == DOCUMENTS * CHUNKS, built

        return await one.run(load)


def _writes(one: Table, pool: Pool) -> Iterator[Write]:
    for number in range(DOCUMENTS):
        chunks = tuple(islice(_chunks(number), CHUNKS))
        change = ChangeSet(
            key=DocumentKey("acme", one.collection.name, f"document {number}"),
            collection=one.collection,
            base=None,
            rank=Rank(1, at(number)),
            barrier=None,
            deleted=False,
            content_hash=chunks[0].id.hash,
            insert=chunks,
        )
        vectors = {chunk.id: Vector(pool.vector(chunk.content).tobytes()) for chunk in chunks}
        yield Write(change, one.claim, vectors)


def _chunks(number: int) -> Iterator[Chunk]:
    for seq in range(CHUNKS):
        start = seq * CHUNK_CHARACTERS
        digest = hashlib.sha256(f"{number} {seq}".encode())
        text = (digest.hexdigest() * (CHUNK_CHARACTERS // 64 + 1))[:CHUNK_CHARACTERS]
        yield Chunk(ChunkId(digest.digest(), 0), seq, text, start, start + CHUNK_CHARACTERS)


async def measure(server: EmbeddedPostgres) -> list[Verdict]:
    """Load in both ways, in turn."""
    pool = Pool(DIMENSIONS)
    slow, quick = [], []
    for _ in range(ROUNDS):
        slow.append(await under_index(server, pool))
        quick.append(await without_index(server, pool))
    ratio = median(run.seconds for run in slow) / median(run.seconds for run in quick)
    cpu = [median(run.cpu_seconds for run in runs) for runs in (slow, quick)]
    recalls = [[run.recall for run in runs] for runs in (slow, quick)]
    return [
        Verdict(
            f"P3 bulk load >= {GOAL:g}x insert under HNSW, {DOCUMENTS * CHUNKS:,} rows",
            f"{_seconds(slow)} / {_seconds(quick)} = {ratio:.1f}x (server's CPU "
            f"{cpu[0]:.1f} s / {cpu[1]:.1f} s = {cpu[0] / cpu[1]:.1f}x)",
            ratio >= GOAL,
        ),
        Verdict(
            "P3 bulk load: its index finds as much (recall@10 within 0.05)",
            f"{median(recalls[0]):.3f} under the index, {median(recalls[1]):.3f} built then",
            median(recalls[1]) >= median(recalls[0]) - 0.05,
        ),
    ]


def _seconds(runs: Sequence[Run]) -> str:
    seconds = sorted(run.seconds for run in runs)
    return f"{median(seconds):.1f} s [{seconds[0]:.1f}-{seconds[-1]:.1f}]"


def main() -> int:
    """Measure everything and print the table."""
    with (
        open_folder() as folder,
        EmbeddedPostgres(
            Path(folder) / "postgres", durable=True, settings=POSTGRES_SETTINGS
        ) as server,
    ):
        verdicts = asyncio.run(measure(server))
    for line in lines(verdicts, ("reached", "NOT REACHED")):
        sys.stdout.write(line + "\n")
    return 0 if all(verdict.held for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
