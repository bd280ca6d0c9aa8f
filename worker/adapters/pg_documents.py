"""
The statements on document rows and chunk rows, for many documents at once.

Works inside the caller's transaction, after its fence. A document row changes only where it
still is the base of its change set *and* is older *and* no scope delete reaches the change:
independent walls (protocol, section 3). Rows are locked in the order of their keys, so that
writers of the same documents do not deadlock. Chunk rows are written for winners only; their
document's row, locked, keeps other writers away from them.

Never touches the vector of a chunk that stays: moves change no indexed column (HOT).
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from time import monotonic
from typing import Any

import asyncpg

from worker.adapters.pg_client import Connection
from worker.adapters.pg_statements import (
    NEWER,
    ORDER_TYPES,
    REACHED_BY_SCOPE,
    order_columns,
    order_values,
)
from worker.core.model import ChangeSet, Chunk, ChunkId, Collection, DocumentKey
from worker.core.vector_index import Place
from worker.errors import WorkerError

_ORDER = order_columns("order")
_BARRIER = order_columns("barrier")
_BASE_ORDER = order_columns("base_order")
_SAME_ORDER = " and ".join(
    f"d.{column} = c.base_{column}" for column in _ORDER if column != "order_timestamp_ms"
)

_KEY = (("tenant", "text"), ("collection", "text"), ("id", "text"))
_RANK = (("version", "bigint"), *zip(_ORDER, ORDER_TYPES, strict=True))
_BARRIERS = tuple(zip(_BARRIER, ORDER_TYPES, strict=True))
_CONTENT = (
    ("deleted", "boolean"),
    ("content_hash", "bytea"),
    ("content_type", "text"),
    ("metadata", "text"),
    ("trace_id", "text"),
    ("occurred_at_ms", "bigint"),
)
_BASE = (
    ("base_revision", "bigint"),
    ("base_version", "bigint"),
    *zip(_BASE_ORDER, ORDER_TYPES, strict=True),
)
_COLUMNS = (*_KEY, *_RANK, *_BARRIERS, *_CONTENT)


def _unnest(columns: Sequence[tuple[str, str]]) -> str:
    types = ", ".join(f"${number}::{kind}[]" for number, (_, kind) in enumerate(columns, 1))
    return f"unnest({types}) as c ({', '.join(name for name, _ in columns)})"


def _names(columns: Iterable[tuple[str, str]], prefix: str = "") -> str:
    return ", ".join(prefix + name for name, _ in columns)


_KEPT_COLUMNS = (*_RANK, *_BARRIERS, *_CONTENT[:3])
_VALUES = f"""{_names(_KEPT_COLUMNS, "c.")}, c.metadata::jsonb, c.trace_id,
       timestamptz 'epoch' + c.occurred_at_ms * interval '1 millisecond'"""
_TARGETS = f"{_names(_KEPT_COLUMNS)}, metadata, trace_id, occurred_at"

_INSERT = f"""
insert into document (tenant, collection, id, revision, {_TARGETS})
select c.tenant, c.collection, c.id, 1, {_VALUES}
from {_unnest(_COLUMNS)}
where not {REACHED_BY_SCOPE}
order by c.tenant collate "C", c.collection collate "C", c.id collate "C"
on conflict do nothing
returning tenant, collection, id
"""  # noqa: S608 - built of constants of this module
# The revision alone does not name the base: a row that a scope delete or a purge has removed
# begins at 1 again.
_LOCKED = f"""
with locked as materialized (
    select c.*
    from {_unnest((*_COLUMNS, *_BASE))}
    join document d on d.tenant = c.tenant and d.collection = c.collection and d.id = c.id
    where d.revision = c.base_revision
      and d.version is not distinct from c.base_version and {_SAME_ORDER}
      and {NEWER} and not {REACHED_BY_SCOPE}
    order by d.tenant, d.collection, d.id
    for no key update of d
)
"""  # noqa: S608 - built of constants of this module
_UPDATE = f"""{_LOCKED}
update document d
set (revision, {_TARGETS}, stored_at) = row (d.revision + 1, {_VALUES}, now())
from locked c
where d.tenant = c.tenant and d.collection = c.collection and d.id = c.id
returning d.tenant, d.collection, d.id
"""  # noqa: S608 - built of constants of this module
_RAISE_BARRIER = f"""{_LOCKED}
update document d
set (revision, {", ".join(_BARRIER)}) = row (d.revision + 1, {_names(_BARRIERS, "c.")})
from locked c
where d.tenant = c.tenant and d.collection = c.collection and d.id = c.id
returning d.tenant, d.collection, d.id
"""  # noqa: S608 - built of constants of this module

_FIRST_CHUNKS = 50
"""1 s at 20 ms each, which is slow for HNSW at 1,536 dimensions."""
_MOST_CHUNKS = 200
"""1 MB: of more, client and server touch new memory for every call."""
_CALL_SECONDS = 0.25
"""What a call should take: without an index it takes the most, under one 100 chunks."""

Sizes = dict[str, int]
"""How many chunks a call takes, by table: what the last ones have learned."""

_CHUNK_COLUMNS = (
    *("tenant", "id", "chunk_hash", "occurrence", "seq", "content"),
    *("span_start", "span_end", "heading", "embedding"),
)
_INSERT_CHUNK = f"""
insert into {{table}} as t ({", ".join(_CHUNK_COLUMNS)})
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
on conflict (tenant, id, chunk_hash, occurrence) do update set
    seq = excluded.seq, content = excluded.content, span_start = excluded.span_start,
    span_end = excluded.span_end, heading = excluded.heading, embedding = excluded.embedding
"""  # noqa: S608 - built of constants of this module
_MOVE_CHUNKS = """
update {table} t
set seq = c.seq, span_start = c.span_start, span_end = c.span_end, heading = c.heading
from unnest($1::text[], $2::text[], $3::bytea[], $4::int[], $5::int[], $6::int[], $7::int[],
            $8::text[])
     as c (tenant, id, chunk_hash, occurrence, seq, span_start, span_end, heading)
where t.tenant = c.tenant and t.id = c.id
  and t.chunk_hash = c.chunk_hash and t.occurrence = c.occurrence
"""
_REMOVE_CHUNKS = """
delete from {table} t
using unnest($1::text[], $2::text[], $3::bytea[], $4::int[])
      as c (tenant, id, chunk_hash, occurrence)
where t.tenant = c.tenant and t.id = c.id
  and t.chunk_hash = c.chunk_hash and t.occurrence = c.occurrence
"""

_LIVE = """\
not d.deleted
  and not exists (
      select from scope_tombstone s
      where s.tenant = d.tenant and s.collection in ('', '{name}') and s.version >= d.version
  )"""
_LIVE_CHUNKS = f"""\
from {{table}} c
join document d on d.tenant = c.tenant and d.collection = '{{name}}' and d.id = c.id
where {_LIVE}"""
_LIVE_DOCUMENTS = f"from document d where d.collection = '{{name}}' and {_LIVE}"

Wired = tuple[ChangeSet, dict[ChunkId, bytes]]
"""A change set with the vectors of its inserts, in pgvector's format."""


def chunk_table(collection_id: int, generation: int) -> str:
    """Return the name of the table that holds a collection's chunks."""
    return f"chunk_{collection_id}_{generation}"


def index_name(table: str, place: Place = Place.MAIN) -> str:
    """Return the name of a vector index of a table of chunks."""
    return f"{table}_embedding{place}"


def view_name(collection: str) -> str:
    """Return the name of the view that readers of a collection use."""
    return f"{collection}_chunks"


def live_chunks(collection: Collection) -> str:
    """Return from where readers read: chunks `c` and documents `d`, of live documents only."""
    table = chunk_table(collection.id, collection.generation)
    return _LIVE_CHUNKS.format(table=table, name=collection.name)


def live_documents(collection: Collection) -> str:
    """Return where the documents `d` are of which readers see chunks."""
    return _LIVE_DOCUMENTS.format(name=collection.name)


async def write_documents(
    connection: Connection, changes: Iterable[ChangeSet]
) -> set[DocumentKey]:
    """Write document rows; return the keys of those that were written."""
    in_order = sorted(changes, key=lambda change: change.key)
    statements = (
        # Inserts first: nobody who holds a row's lock then waits for an insert.
        (_INSERT, [change for change in in_order if change.base is None]),
        (_UPDATE, [change for change in in_order if change.base and not change.keeps_row]),
        (_RAISE_BARRIER, [change for change in in_order if change.base and change.keeps_row]),
    )
    written: set[DocumentKey] = set()
    for statement, group in statements:
        if group:
            columns = zip(*map(_row, group), strict=True)
            rows = await connection.fetch(statement, *map(list, columns))
            written.update(DocumentKey(*row) for row in rows)
    return written


def _row(change: ChangeSet) -> tuple[Any, ...]:
    base = change.base
    return (
        *change.key,
        change.rank.version,
        *change.rank.order,
        *order_values(change.barrier),
        change.deleted,
        change.content_hash,
        change.content_type,
        None if change.metadata is None else change.metadata.decode(),
        change.trace_id,
        change.occurred_at_ms,
        *((base.revision, base.version, *base.order) if base else ()),
    )


class ChunksLeft(WorkerError):
    """A new document has chunks already: somebody deleted its row by hand."""


async def write_chunks(
    connection: Connection,
    table: str,
    changes: Sequence[Wired],
    sizes: Sizes,
    *,
    copies: bool,
) -> None:
    """
    Insert, move and remove the chunks of documents whose rows were just written.

    With `copies` those of new documents are copied, which no chunk can be in the way of: their
    rows were inserted in this transaction. It saves a fifth of its processor time, of the
    server's and ours.

    Raises:
        ChunksLeft: there was one, and the transaction has failed; to be done without.
    """
    new = [one for one in changes if copies and one[0].base is None]
    old = [one for one in changes if not copies or one[0].base is not None]
    moves = [
        (*_chunk_key(change, chunk.id), chunk.seq, chunk.start, chunk.end, chunk.heading)
        for change, _ in changes
        for chunk in change.move
    ]
    removes = [_chunk_key(change, chunk) for change, _ in changes for chunk in change.remove]
    if removes:
        columns = zip(*removes, strict=True)
        await connection.execute(_REMOVE_CHUNKS.format(table=table), *map(list, columns))
    if moves:
        columns = zip(*moves, strict=True)
        await connection.execute(_MOVE_CHUNKS.format(table=table), *map(list, columns))
    calls = (
        (old, partial(_upsert, connection, table)),
        (new, partial(_copy, connection, table)),
    )
    try:
        for group, write in calls:
            size = sizes.get(table, _FIRST_CHUNKS)
            sizes[table] = await _in_parts(_inserts(group), write, size)
    except BaseException:
        sizes.pop(table, None)  # so many may be what has taken too long
        raise


async def _upsert(connection: Connection, table: str, inserts: list[Any]) -> None:
    await connection.executemany(_INSERT_CHUNK.format(table=table), inserts)


async def _copy(connection: Connection, table: str, inserts: list[Any]) -> None:
    try:
        await connection.copy_records_to_table(table, records=inserts, columns=_CHUNK_COLUMNS)
    except asyncpg.UniqueViolationError as error:
        raise ChunksLeft from error
    except UnicodeEncodeError as error:
        # What asyncpg makes of it everywhere but in a copy.
        raise asyncpg.DataError("a text is no valid UTF-8") from error


async def _in_parts(
    inserts: list[Any], write: Callable[[list[Any]], Awaitable[object]], size: int
) -> int:
    """
    Write chunks a few at a time: a call has a time limit, and nobody knows what it takes.

    Returns with how many at a time to go on.
    """
    start = 0
    while start < len(inserts):
        began = monotonic()
        part = inserts[start : start + size]
        await write(part)
        start += size
        in_time = int(len(part) * _CALL_SECONDS / max(monotonic() - began, 1e-6))
        # Twice as many at most: an index that was empty is slower from call to call.
        size = max(1, min(_MOST_CHUNKS, 2 * size, in_time))
    return size


def _inserts(changes: Sequence[Wired]) -> list[Any]:
    return [
        (*_chunk_key(change, chunk.id), *_place(chunk), vectors[chunk.id])
        for change, vectors in changes
        for chunk in change.insert
    ]


def _chunk_key(change: ChangeSet, chunk: ChunkId) -> tuple[str, str, bytes, int]:
    return change.key.tenant, change.key.id, chunk.hash, chunk.occurrence


def _place(chunk: Chunk) -> tuple[int, str, int, int, str | None]:
    return chunk.seq, chunk.content, chunk.start, chunk.end, chunk.heading
