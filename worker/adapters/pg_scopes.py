"""
Deletes of a whole scope, in the three steps of the protocol (section 7.15).

First the scope's tombstone is stored under the fence: from its commit on, readers do not see
what it reaches, and every write checks it. Then a barrier: each claim row is locked once, so
that all transactions which may not have seen the tombstone have ended. Then what it reaches is
deleted in short transactions. Repeating it, from any step, changes nothing.
"""

import asyncio
import logging

from worker.adapters.pg_client import Database, LockNotAvailable
from worker.adapters.pg_documents import chunk_table
from worker.adapters.pg_statements import LOCK_CLAIM, live_claims
from worker.core.model import Claim, Rank

logger = logging.getLogger(__name__)

_BATCH_DOCUMENTS = 500
# A writer that is stuck is ended by `idle_in_transaction_seconds`, or by a claim.
_BARRIER_ATTEMPTS = 5
_BARRIER_BACKOFF_SECONDS = 0.1

_STORE_TOMBSTONE = """
insert into scope_tombstone as s (
    tenant, collection, version,
    order_topic, order_partition, order_offset, order_timestamp_ms, order_incarnation
) values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (tenant, collection) do update set
    version = excluded.version, order_topic = excluded.order_topic,
    order_partition = excluded.order_partition, order_offset = excluded.order_offset,
    order_timestamp_ms = excluded.order_timestamp_ms,
    order_incarnation = excluded.order_incarnation, created_at = now()
where s.version < excluded.version
"""
_ALL_CLAIMS = "select grp, topic, partition from partition_claim order by grp, topic, partition"
_COLLECTIONS = "select id, name, generation from collection where $1 in ('', name) order by id"
# Keyset, not offset: rows that stay are passed once. LIMIT counts what was locked.
_REACHED = """
select id, barrier_topic is not null as has_barrier from document
where tenant = $1 and collection = $2 and version <= $3 and id > $4
order by id limit $5 for update
"""
_DELETE_CHUNKS = "delete from {table} where tenant = $1 and id = any($2::text[])"
_DELETE_DOCUMENTS = """
delete from document where tenant = $1 and collection = $2 and id = any($3::text[])
"""
# What is left of a document with a barrier: the delete without a version, as if alone.
_LEAVE_BARRIER = """
update document set
    version = null, deleted = true, revision = revision + 1, stored_at = now(),
    order_topic = barrier_topic, order_partition = barrier_partition,
    order_offset = barrier_offset, order_timestamp_ms = barrier_timestamp_ms,
    order_incarnation = barrier_incarnation,
    content_hash = null, content_type = null, metadata = null, trace_id = null,
    occurred_at = null
where tenant = $1 and collection = $2 and id = any($3::text[])
"""


async def store_tombstone(
    database: Database, claim: Claim, scope: tuple[str, str], rank: Rank
) -> bool:
    """Store a scope's tombstone; False where the claim is not the newest any more."""
    async with database.transaction() as connection:
        if not await live_claims(connection, [claim], database.history):
            return False
        await connection.execute(_STORE_TOMBSTONE, *scope, rank.version, *rank.order)
    return True


async def wait_for_writers(database: Database) -> None:
    """Wait until every transaction that is open now has ended, by their claims' locks."""
    async with database.connection() as connection:
        claims = await connection.fetch(_ALL_CLAIMS)
    for claim in claims:
        await _wait_for_writers_of(database, tuple(claim))


async def _wait_for_writers_of(database: Database, claim: tuple[str, str, int]) -> None:
    # One transaction a row: a claim of many partitions at once would deadlock with writers.
    for attempt in range(1, _BARRIER_ATTEMPTS + 1):
        try:
            async with database.transaction() as connection:
                await connection.execute(LOCK_CLAIM, *claim)
        except LockNotAvailable:
            if attempt == _BARRIER_ATTEMPTS:
                raise
            logger.warning("a scope delete waits for writers of %s", claim)
            await asyncio.sleep(_BARRIER_BACKOFF_SECONDS * attempt)
        else:
            return


async def sweep(database: Database, scope: tuple[str, str], version: int) -> None:
    """Delete all documents of a scope up to a version, in short transactions."""
    tenant, name = scope
    async with database.connection() as connection:
        collections = await connection.fetch(_COLLECTIONS, name)
    for identity, collection, generation in collections:
        table = chunk_table(identity, generation)
        last: str | None = ""
        while last is not None:
            last = await _sweep_batch(database, table, (tenant, collection), version, last)


async def _sweep_batch(
    database: Database, table: str, scope: tuple[str, str], version: int, after: str
) -> str | None:
    """Delete the next documents after an id; return the last one's id, None at the end."""
    async with database.transaction() as connection:
        rows = await connection.fetch(_REACHED, *scope, version, after, _BATCH_DOCUMENTS)
        if not rows:
            return None
        ids = [row["id"] for row in rows]
        await connection.execute(_DELETE_CHUNKS.format(table=table), scope[0], ids)
        gone = [row["id"] for row in rows if not row["has_barrier"]]
        await connection.execute(_DELETE_DOCUMENTS, *scope, gone)
        left = [row["id"] for row in rows if row["has_barrier"]]
        await connection.execute(_LEAVE_BARRIER, *scope, left)
    last: str = ids[-1]
    return last
