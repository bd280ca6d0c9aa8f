"""
The port `Store` on PostgreSQL with pgvector.

Reads a document's row and chunks in one statement, so that they belong together. Applies change
sets in one short READ COMMITTED transaction: the fence, document rows by compare-and-set, the
chunks of the winners, their dead letters. What does not apply is left out, wholly; the others
go on. Vectors are brought into pgvector's format before the transaction opens.

Never calls the network but PostgreSQL's, never plans a retry: after `StoreUnavailable` the
outcome is unknown, and repeating the call changes nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from msgspec import UNSET

from schemas.events import ScopeDeleted
from worker import failpoints
from worker.adapters.pg_client import Connection, Database, MissingTable
from worker.adapters.pg_documents import (
    ChunksLeft,
    Sizes,
    Wired,
    chunk_table,
    write_chunks,
    write_documents,
)
from worker.adapters.pg_resolution import resolve_letters
from worker.adapters.pg_scopes import store_tombstone, sweep, wait_for_writers
from worker.adapters.pg_statements import NOTHING, live_claims, order_columns, order_of
from worker.adapters.pgvector_format import wire
from worker.core.model import (
    Base,
    ChunkId,
    Claim,
    DocumentKey,
    Rank,
    StoredChunk,
    StoredDocument,
)
from worker.ports import Query, Verdict, Write

_COLLECTIONS = "select name, id, generation from collection"
_CHUNK_COLUMNS = ("chunk_hash", "occurrence", "seq", "span_start", "span_end", "heading")
_AGGREGATES = ", ".join(f"array_agg({column}) as {column}" for column in _CHUNK_COLUMNS)
_DOCUMENT_COLUMNS = ", ".join(
    f"d.{column}"
    for column in (
        *("revision", "version", "deleted", "content_hash"),
        *order_columns("order"),
        *order_columns("barrier"),
    )
)
_READ = f"""
select q.ordinality, {_DOCUMENT_COLUMNS},
       {", ".join(f"chunks.{column}" for column in _CHUNK_COLUMNS)},
       (select max(s.version) from scope_tombstone s
        where s.tenant = q.tenant and s.collection in ('', q.collection)) as scope_version,
       exists (select from dead_letter l
               where l.grp = q.grp and l.topic = q.origin_topic
                 and l.partition = q.origin_partition
                 and l.incarnation = q.origin_incarnation
                 and l."offset" = q.origin_offset) as origin_known,
       exists (select from poison_chunk p where p.tenant = q.tenant) as has_poison
from unnest($1::text[], $2::text[], $3::text[], $4::text[],
            $5::text[], $6::int[], $7::bigint[], $8::bigint[], $9::int[]) with ordinality
     as q (tenant, collection, id, grp, origin_topic, origin_partition, origin_offset,
           origin_timestamp_ms, origin_incarnation, ordinality)
left join document d on d.tenant = q.tenant and d.collection = q.collection and d.id = q.id
left join lateral (
    select {_AGGREGATES}
    from (select * from {{table}} t where t.tenant = d.tenant and t.id = d.id order by t.seq) t
) chunks on d.revision is not null
"""  # noqa: S608 - built of constants of this module


class PgvectorStore:
    """Documents and chunks, changed only by compare-and-set under a fence."""

    def __init__(self, database: Database) -> None:
        self._database = database
        # A collection's chunk table, by its name; a name that is missing is looked up again.
        self._tables: dict[str, str] = {}
        self._sizes: Sizes = {}

    async def read(self, queries: Sequence[Query]) -> list[Base]:
        """Return each document's row and chunks as of one moment, in the order of `queries`."""
        try:
            return await self._read(queries)
        except MissingTable:
            self._tables.clear()
            return await self._read(queries)

    async def _read(self, queries: Sequence[Query]) -> list[Base]:
        bases = [Base()] * len(queries)
        async with self._database.connection() as connection:
            for table, numbers in (await self._by_table(connection, queries)).items():
                rows = [
                    (*queries[n].key, queries[n].group, *(queries[n].origin or NOTHING))
                    for n in numbers
                ]
                found = await connection.fetch(
                    _READ.format(table=table), *map(list, zip(*rows, strict=True))
                )
                for row in found:
                    bases[numbers[row["ordinality"] - 1]] = _base(row)
        return bases

    async def _by_table(
        self, connection: Connection, queries: Sequence[Query]
    ) -> dict[str, list[int]]:
        """Return the numbers of the queries that each chunk table answers."""
        if any(query.key.collection not in self._tables for query in queries):
            self._tables = {
                row["name"]: chunk_table(row["id"], row["generation"])
                for row in await connection.fetch(_COLLECTIONS)
            }
        by_table: defaultdict[str, list[int]] = defaultdict(list)
        for number, query in enumerate(queries):
            table = self._tables.get(query.key.collection)
            if table is not None:
                by_table[table].append(number)
        return by_table

    async def apply(self, writes: Sequence[Write]) -> list[Verdict]:
        """
        Apply change sets in one transaction, each wholly or not at all.

        Raises:
            PermanentError: PostgreSQL refuses a value; nothing was written.
            StoreUnavailable: the outcome is unknown.
        """
        wired = with_wired_vectors(writes)
        try:
            return await self._apply(writes, wired, copies=True)
        except ChunksLeft:
            return await self._apply(writes, wired, copies=False)

    async def _apply(
        self, writes: Sequence[Write], wired: list[Wired], *, copies: bool
    ) -> list[Verdict]:
        async with self._database.transaction() as connection:
            claims = {write.claim for write in writes}
            live = await live_claims(connection, claims, self._database.history)
            first = _first_of_each_key(writes)
            passed = [n for n in first if writes[n].claim in live]
            written = await write_documents(connection, [writes[n].change for n in passed])
            await failpoints.reach("in_transaction")
            winners = {n for n in passed if writes[n].change.key in written}
            for table, group in _by_chunk_table(wired[n] for n in sorted(winners)).items():
                await write_chunks(connection, table, group, self._sizes, copies=copies)
            if written:
                await resolve_letters(connection, written)
        await failpoints.reach("after_commit")
        return [
            Verdict.FENCED
            if write.claim not in live
            else (Verdict.APPLIED if n in winners else Verdict.BASE_CHANGED)
            for n, write in enumerate(writes)
        ]

    async def delete_scope(self, claim: Claim, scope: ScopeDeleted, rank: Rank) -> Verdict:
        """
        Delete what a scope reaches, in three steps; repeating it changes nothing.

        Raises:
            StoreUnavailable: how far it came is unknown.
        """
        reach = (scope.tenant, "" if scope.collection is UNSET else scope.collection)
        rank = Rank(scope.version, rank.order)
        if not await store_tombstone(self._database, claim, reach, rank):
            return Verdict.FENCED
        await wait_for_writers(self._database)
        await sweep(self._database, reach, scope.version)
        return Verdict.APPLIED


def _base(row: Any) -> Base:
    return Base(
        document=None if row["revision"] is None else _document(row),
        scope_version=row["scope_version"],
        origin_known=row["origin_known"],
        has_poison=row["has_poison"],
    )


def _document(row: Any) -> StoredDocument:
    order = order_of(row, "order")
    assert order is not None
    return StoredDocument(
        revision=row["revision"],
        version=row["version"],
        order=order,
        barrier=order_of(row, "barrier"),
        deleted=row["deleted"],
        content_hash=row["content_hash"],
        chunks=_chunks(row),
    )


def _chunks(row: Any) -> tuple[StoredChunk, ...]:
    if row["chunk_hash"] is None:
        return ()
    columns = (row[column] for column in _CHUNK_COLUMNS)
    return tuple(
        StoredChunk(ChunkId(chunk_hash, occurrence), *place)
        for chunk_hash, occurrence, *place in zip(*columns, strict=True)
    )


def _first_of_each_key(writes: Sequence[Write]) -> list[int]:
    first: dict[DocumentKey, int] = {}
    for number, write in enumerate(writes):
        first.setdefault(write.change.key, number)
    return list(first.values())


def with_wired_vectors(writes: Sequence[Write]) -> list[Wired]:
    """Return the change sets with their vectors in pgvector's format, in one pass a format."""
    vectors: list[dict[ChunkId, bytes]] = [{} for _ in writes]
    by_format: defaultdict[tuple[int, str], list[tuple[int, ChunkId]]] = defaultdict(list)
    for number, write in enumerate(writes):
        collection = write.change.collection
        by_format[collection.dimensions, collection.storage].extend(
            (number, chunk.id) for chunk in write.change.insert
        )
    for (dimensions, storage), chunks in by_format.items():
        bought = [writes[number].vectors[chunk] for number, chunk in chunks]
        for (number, chunk), wired in zip(
            chunks, wire(bought, dimensions, storage), strict=True
        ):
            vectors[number][chunk] = wired
    return [(write.change, found) for write, found in zip(writes, vectors, strict=True)]


def _by_chunk_table(changes: Any) -> dict[str, list[Wired]]:
    by_table: defaultdict[str, list[Wired]] = defaultdict(list)
    for change, vectors in changes:
        collection = change.collection
        by_table[chunk_table(collection.id, collection.generation)].append((change, vectors))
    return by_table
