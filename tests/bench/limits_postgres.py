"""
What storing costs alone, and what PostgreSQL takes at most.

`stored` is the worker's own store, `upserted` the part of it that writes chunks; `copied` and
`inserted` are the bare client on a table like the worker's. Each makes its tables in a schema
of its own and drops them. The CPU is this process's; the server is busy besides. See `limits`.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import islice
from typing import Any
from uuid import uuid4

import asyncpg

from tests.bench.limits import Document, Limit, measured
from tests.support.postgres import drop_schema
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_claims import PostgresClaims
from worker.adapters.pg_client import Database
from worker.adapters.pg_documents import Sizes, chunk_table, write_chunks
from worker.adapters.pg_migrations import Migrations
from worker.adapters.pgvector_format import wire
from worker.adapters.pgvector_store import PgvectorStore, with_wired_vectors
from worker.config import DatabaseOptions
from worker.core import changeset
from worker.core.model import Base, ChunkId, Collection, Partition, Vector
from worker.core.vector_index import NO_INDEX, VectorIndex
from worker.embedded.scripted_provider import Pool
from worker.ports import Query, Verdict, Write

PARTITION = Partition("limits", 0)
GROUP = "limits"
BATCH_DOCUMENTS = 100
INSERT_ROWS = 50
COPY_ROWS = 64  # pieces of several MB cost three times the client's CPU: page faults


async def stored(
    url: str,
    collection: Collection,
    what: Sequence[Document],
    pool: Pool,
    *,
    at_once: int = 1,
) -> Limit:
    """
    Look up and store documents, a transaction for a hundred, with all that guards it.

    A unit is a document.
    """
    first, *batches = _batches(what, BATCH_DOCUMENTS)
    vectors = [[_vectors(document, pool) for document in batch] for batch in batches]
    async with _tables(url, collection, index=False) as (database, created):
        claim = await PostgresClaims(database).claim(GROUP, PARTITION, "limits")
        store = PgvectorStore(database)

        async def put(batch: list[Document], bought: list[dict[ChunkId, Vector]]) -> None:
            queries = [Query(one.work.document_key, GROUP, None) for one in batch]
            bases = await store.read(queries)
            changes = [
                changeset.upsert(one.work, created, base, one.digest, one.chunks)
                for one, base in zip(batch, bases, strict=True)
            ]
            verdicts = await store.apply(
                [Write(*one) for one in zip(changes, [claim] * len(batch), bought, strict=True)]
            )
            assert set(verdicts) == {Verdict.APPLIED}, verdicts

        # Statements are prepared then.
        await put(first, [_vectors(document, pool) for document in first])
        with measured() as limit:
            await _all(zip(batches, vectors, strict=True), put, at_once)
    limit.units = sum(map(len, batches))
    return limit


async def upserted(
    url: str, collection: Collection, what: Sequence[Document], pool: Pool, *, at_once: int
) -> Limit:
    """
    Upsert the chunks of new documents as the worker's store does, and nothing beside.

    A unit is a row.
    """
    async with _tables(url, collection, index=False) as (database, created):
        table = chunk_table(created.id, created.generation)
        claim = await PostgresClaims(database).claim(GROUP, PARTITION, "limits")
        batches = [
            [
                Write(
                    changeset.upsert(one.work, created, Base(), one.digest, one.chunks),
                    claim,
                    _vectors(one, pool),
                )
                for one in batch
            ]
            for batch in _batches(what, BATCH_DOCUMENTS)
        ]

        sizes: Sizes = {}

        async def put(*batch: Write) -> None:
            async with database.transaction() as connection:
                await write_chunks(
                    connection, table, with_wired_vectors(batch), sizes, copies=True
                )

        with measured() as limit:
            await _all(batches, put, at_once)
        async with database.connection() as connection:
            limit.units = await connection.fetchval(f"select count(*) from {table}")
    return limit


async def _all(
    batches: Iterable[Iterable[Any]], put: Callable[..., Awaitable[None]], at_once: int
) -> None:
    """Put all batches, so many at once."""
    left = iter(batches)

    async def some() -> None:
        for batch in left:
            await put(*batch)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(some())


def _vectors(document: Document, pool: Pool) -> dict[ChunkId, Vector]:
    return {chunk.id: Vector(pool.vector(chunk.content).tobytes()) for chunk in document.chunks}


Row = tuple[Any, ...]
_KEY = ("tenant", "id", "chunk_hash", "occurrence")
_COLUMNS = (*_KEY, "seq", "content", "span_start", "span_end", "heading", "embedding")


def rows(what: Sequence[Document], collection: Collection, pool: Pool) -> list[Row]:
    """Return the rows that the worker writes for these documents, vectors in binary."""
    found = []
    for document in what:
        key = document.work.document_key
        vectors = list(_vectors(document, pool).values())
        wires = wire(vectors, collection.dimensions, collection.storage)
        for chunk, wired in zip(document.chunks, wires, strict=True):
            place = (chunk.seq, chunk.content, chunk.start, chunk.end, chunk.heading)
            found.append((key.tenant, key.id, *chunk.id, *place, wired))
    return found


async def copied(
    url: str, collection: Collection, what: Sequence[Row], *, at_once: int
) -> Limit:
    """COPY rows (the units) that are encoded already, a transaction a connection."""
    streams = [
        [
            _COPY_HEADER,
            *map(_copy_rows, _batches(what[number::at_once], COPY_ROWS)),
            _COPY_TRAILER,
        ]
        for number in range(at_once)
    ]

    async def source(pieces: list[bytes]) -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async with _raw_table(url, collection, index=False, connections=at_once) as (them, table):
        with measured() as limit:
            async with asyncio.TaskGroup() as group:
                for connection, pieces in zip(them, streams, strict=True):
                    copying = connection.copy_to_table(
                        table, source=source(pieces), columns=_COLUMNS, format="binary"
                    )
                    group.create_task(copying)
        assert await them[0].fetchval(f"select count(*) from {table}") == len(what)
    limit.units = len(what)
    return limit


# PostgreSQL manual, COPY, "Binary Format": a signature, two empty fields; -1 ends the data.
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = struct.pack(">h", -1)


def _copy_rows(what: Iterable[Row]) -> bytes:
    parts = []
    for row in what:
        parts.append(struct.pack(">h", len(row)))
        for value in map(_copy_value, row):
            parts += [b"\xff\xff\xff\xff"] if value is None else [_length(value), value]
    return b"".join(parts)


def _length(value: bytes) -> bytes:
    return struct.pack(">i", len(value))


def _copy_value(value: str | int | bytes | None) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    return struct.pack(">i", value) if isinstance(value, int) else value


async def inserted(
    url: str,
    collection: Collection,
    what: Sequence[Row],
    *,
    connections: int,
) -> Limit:
    """INSERT rows (the units) under HNSW, nothing else: the bound of whoever keeps an index."""
    places = ", ".join(f"${number}" for number in range(1, len(_COLUMNS) + 1))
    batches = iter(list(_batches(what, INSERT_ROWS)))
    async with _raw_table(url, collection, index=True, connections=connections) as (
        them,
        table,
    ):
        statement = f"insert into {table} ({', '.join(_COLUMNS)}) values ({places})"

        async def insert(connection: Any) -> None:
            for batch in batches:
                await connection.executemany(statement, batch)

        with measured() as limit:
            async with asyncio.TaskGroup() as group:
                for connection in them:
                    group.create_task(insert(connection))
    limit.units = len(what)
    return limit


def _batches(what: Iterable[Any], size: int) -> Iterator[list[Any]]:
    left = iter(what)
    while batch := list(islice(left, size)):
        yield batch


@asynccontextmanager
async def _tables(
    url: str, collection: Collection, *, index: bool
) -> AsyncIterator[tuple[Database, Collection]]:
    """Make the worker's tables in a schema of their own, dropped with all in it."""
    options = DatabaseOptions(url=url, schema=f"limits_{uuid4().hex[:12]}", pool_min=1)
    await Migrations(options).up()
    try:
        database = await Database.open(options)
        try:
            catalog = PostgresCatalog(database)
            wanted = VectorIndex(build_at_rows=0) if index else NO_INDEX
            yield database, await catalog.create(replace(collection, id=0, index=wanted))
        finally:
            await database.close()
    finally:
        await drop_schema(url, options.schema)


@asynccontextmanager
async def _raw_table(
    url: str, collection: Collection, *, index: bool, connections: int
) -> AsyncIterator[tuple[list[Any], str]]:
    """Make a chunk table as the worker has it, with bare connections to it."""
    async with (
        _tables(url, collection, index=index) as (database, created),
        AsyncExitStack() as stack,
    ):
        schema = database.options.schema
        them = [
            await stack.enter_async_context(_connected(url, schema, collection.storage))
            for _ in range(connections)
        ]
        yield them, chunk_table(created.id, created.generation)


@asynccontextmanager
async def _connected(url: str, schema: str, storage: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(
        url, server_settings={"search_path": f'"{schema}", public'}
    )
    try:
        await connection.set_type_codec(
            storage, schema="public", encoder=bytes, decoder=bytes, format="binary"
        )
        yield connection
    finally:
        await connection.close()
