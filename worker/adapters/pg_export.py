"""
A collection as its readers see it, read whole in one snapshot, in the order of its keys.

One connection takes the snapshot (REPEATABLE READ, read only) and shares it with others, which
read slice by slice, ahead of each other. It lets everybody write; it keeps the table as it is
(`access share`), and vacuum from what it still sees. Nothing here grows with the table: a slice
has so many rows, and of what was read ahead so many bytes wait at most.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Literal, NamedTuple

import numpy as np

from worker.adapters.pg_client import APPLICATION_NAME
from worker.adapters.pg_copy import CopyRows
from worker.adapters.pg_documents import chunk_table, live_documents
from worker.adapters.pg_patient import PatientReader
from worker.adapters.pgvector_format import converted, unwire, wire_bytes
from worker.config import DatabaseOptions
from worker.core.exports import Digest, Key, Moment, Part, PartitionPosition, Rows, Subject
from worker.core.model import Collection
from worker.errors import ConfigError

Take = Callable[[Rows], object]
Reached = Callable[[Key | None], Awaitable[None]]
"""Is told, between rows, that all up to and with a document were handed out; None: all."""

_APPLICATION = f"{APPLICATION_NAME} export"

READERS = 2
"""What two cores of the server send, one core here converts."""
SLICE_BYTES = 8 * 2**20
BLOCK_BYTES = 2**20
"""Large enough that what is done once a block costs nothing, small enough for a cache."""
BLOCKS_AHEAD = 8
"""Of each slice; a slice of long rows has more of them."""

# Estimates of ranges of keys are wrong by any factor at their ends, and a slice was then joined
# by reading it once for each of its documents. So there is one plan: both tables by their keys,
# merged. Workers of the server would cost more than they do.
_PLAN = {
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_nestloop": "off",
    "enable_hashjoin": "off",
    "max_parallel_workers_per_gather": "0",
}
_SETTINGS = {
    # Files are flushed meanwhile, and a slow disk takes its time for that.
    "idle_in_transaction_session_timeout": "5min",
    "timezone": "UTC",
    **_PLAN,
}
_BEGIN = "begin isolation level repeatable read read only"
# It takes no snapshot yet: whoever rewrites or drops the table is before it, or waits.
_KEEP_TABLE = "lock table {table} in access share mode"
_MOMENT = """
select clock_timestamp() as taken_at, pg_current_snapshot()::text as xids,
       (case when pg_is_in_recovery() then pg_last_wal_replay_lsn()
             else pg_current_wal_lsn() end)::text as wal_lsn
"""
_PARTITIONS = """
select p.grp as "group", p.topic, p.partition, coalesce(c.incarnation, 0) as incarnation,
       p.next_offset
from partition_progress p left join partition_claim c using (grp, topic, partition)
order by p.grp, p.topic, p.partition
"""
_IS_CURRENT = "select 1 from collection where id = $1 and generation = $2"
_ESTIMATE = "select reltuples::bigint from pg_class where oid = $1::text::regclass"
_END_OF_SLICE = """
select c.tenant, c.id from {table} c where {conditions}
order by c.tenant, c.id, c.chunk_hash, c.occurrence offset {rows} limit 1
"""
# Whatever changes a chunk writes its document's row too: a new revision, at a new time.
_DIGEST = """
select count(*) as documents, coalesce(sum(hash_record_extended(
           row(d.tenant, d.id, d.revision, d.version, d.stored_at), 0
       )), 0) as hashes
{documents} and {conditions}
"""
# A line of JSON for each chunk, of which a document's half is made once ("offset 0" keeps the
# planner from doing that again for each); PostgreSQL escapes what would break it.
_ROWS = """
select c.embedding, c.seq, d.half || ',"seq":' || c.seq
    || ',"chunk_hash":"' || encode(c.chunk_hash, 'hex')
    || '","heading":' || coalesce(to_json(c.heading)::text, 'null')
    || ',"span_start":' || c.span_start || ',"span_end":' || c.span_end{content} || '}}'
from {table} c join (
    select d.tenant, d.id, left((select row_to_json(r)::text from (select
        d.tenant, d.id as document_id, d.version, d.content_type, {metadata} as metadata,
        d.occurred_at, d.stored_at
    ) r), -1) as half
    {documents} and {of_documents} offset 0
) d on d.tenant = c.tenant and d.id = c.id
where {of_chunks}
order by c.tenant, c.id, c.seq, c.chunk_hash, c.occurrence
"""


class _Readers(NamedTuple):
    """The one that has the snapshot and looks ahead, and those who read rows."""

    leader: PatientReader
    others: list[PatientReader]


class _Slice(NamedTuple):
    """A part that is being read; its rows are put there, and None behind the last ones."""

    part: Part
    rows: asyncio.Queue[Rows | None]


class ExportSnapshot:
    """The rows of an export at one moment: all calls see the same."""

    def __init__(
        self, readers: _Readers, collection: Collection, subject: Subject, moment: Moment
    ) -> None:
        self.moment = moment
        self._readers = readers
        self._collection = collection
        self._subject = subject
        self._table = chunk_table(collection.id, collection.generation)
        row_bytes = wire_bytes(subject.dimensions, subject.storage) + 512
        self._slice_rows = max(1, SLICE_BYTES // row_bytes)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, options: DatabaseOptions, collection: Collection, subject: Subject
    ) -> "AsyncIterator[ExportSnapshot]":
        """
        Take a snapshot, and keep it for the block.

        Raises:
            StoreUnavailable: nobody answers, or the collection is gone meanwhile.
            ConfigError: refused, or the collection was changed meanwhile.
        """
        async with AsyncExitStack() as stack:
            leader, *others = [
                await stack.enter_async_context(
                    PatientReader.open(options, _APPLICATION, _SETTINGS)
                )
                for _ in range(1 + READERS)
            ]
            moment = await _begin(leader, collection)
            ((shared,),) = await leader.fetch("select pg_export_snapshot()")
            for reader in others:
                await reader.execute(f"{_BEGIN}; set transaction snapshot '{shared}'")
            yield cls(_Readers(leader, others), collection, subject, moment)

    async def estimate(self) -> int | None:
        """Return about how many rows there are, None where nobody knows."""
        if self._subject.tenant is not None:
            return None
        ((rows,),) = await self._readers.leader.fetch(_ESTIMATE, self._table)
        return None if rows < 0 else int(rows)

    async def digest(self, part: Part) -> Digest:
        """Return what names the documents of a part."""
        conditions, arguments = self._where(part, "d")
        query = _DIGEST.format(
            documents=live_documents(self._collection), conditions=conditions
        )
        (row,) = await self._readers.leader.fetch(query, *arguments)
        return Digest(row["documents"], int(row["hashes"]) % 2**64)

    async def read(self, after: Key | None, take: Take, reached: Reached) -> None:
        """Hand out the rows behind a document, in order; raises what is raised there."""
        slices: asyncio.Queue[_Slice | None] = asyncio.Queue(READERS)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read_ahead(after, slices, tasks))
                while (current := await slices.get()) is not None:
                    while (rows := await current.rows.get()) is not None:
                        take(rows)
                    await reached(current.part.upto)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _read_ahead(
        self,
        after: Key | None,
        slices: "asyncio.Queue[_Slice | None]",
        tasks: asyncio.TaskGroup,
    ) -> None:
        free: asyncio.Queue[PatientReader] = asyncio.Queue()
        for reader in self._readers.others:
            free.put_nowait(reader)

        async def read(reader: PatientReader, current: _Slice) -> None:
            await self._read_slice(reader, current)
            free.put_nowait(reader)

        async with aclosing(self._parts(after)) as parts:
            async for part in parts:
                current = _Slice(part, asyncio.Queue(BLOCKS_AHEAD))
                tasks.create_task(read(await free.get(), current))
                await slices.put(current)
        await slices.put(None)

    async def _parts(self, after: Key | None) -> AsyncGenerator[Part, None]:
        while True:
            conditions, arguments = self._where(Part(after, None), "c")
            query = _END_OF_SLICE.format(
                table=self._table, conditions=conditions, rows=self._slice_rows
            )
            found = await self._readers.leader.fetch(query, *arguments)
            upto = (found[0]["tenant"], found[0]["id"]) if found else None
            yield Part(after, upto)
            if upto is None:
                return
            after = upto

    async def _read_slice(self, reader: PatientReader, current: "_Slice") -> None:
        query, arguments = self._rows_of(current.part)
        stream = _Stream(self._subject, current.rows)
        await stream.end(await reader.copy(query, *arguments, take=stream.feed))

    def _rows_of(self, part: Part) -> tuple[str, list[str]]:
        """Return the statement that reads the rows of a part, and its arguments."""
        # A column of Parquet has one type, and metadata none in particular.
        is_text = self._subject.metadata == "parquet"
        content = """ || ',"content":' || to_json(c.content)::text"""
        of_chunks, arguments = self._where(part, "c")
        of_documents, _ = self._where(part, "d")
        query = _ROWS.format(
            table=self._table,
            documents=live_documents(self._collection),
            metadata="d.metadata::text" if is_text else "d.metadata",
            content=content if self._subject.content else "",
            of_chunks=of_chunks,
            of_documents=of_documents,
        )
        return query, arguments

    def _where(self, part: Part, table: Literal["c", "d"]) -> tuple[str, list[str]]:
        """Return the conditions of a part for chunks `c` or documents `d`, and their values."""
        conditions, values = ["true"], list[str]()
        for key, comparison in ((part.after, ">"), (part.upto, "<=")):
            if key is not None:
                values += key
                tenant, document = f"${len(values) - 1}", f"${len(values)}"
                columns, row = {
                    "c": ("c.tenant, c.id", f"{tenant}, {document}"),
                    "d": (
                        "d.tenant, d.collection, d.id",
                        f"{tenant}, '{self._collection.name}', {document}",
                    ),
                }[table]
                conditions.append(f"({columns}) {comparison} ({row})")
        if self._subject.tenant is not None:
            values.append(self._subject.tenant)
            conditions.append(f"{table}.tenant = ${len(values)}")
        return " and ".join(conditions), values


async def _begin(leader: PatientReader, collection: Collection) -> Moment:
    table = chunk_table(collection.id, collection.generation)
    await leader.execute(_BEGIN)
    await leader.execute(_KEEP_TABLE.format(table=table))
    (moment,) = await leader.fetch(_MOMENT)
    partitions = await leader.fetch(_PARTITIONS)
    if not await leader.fetch(_IS_CURRENT, collection.id, collection.generation):
        raise ConfigError(f"the collection {collection.name!r} was changed just now: try again")
    rows = tuple(PartitionPosition(**dict(row)) for row in partitions)
    return Moment(**dict(moment), partitions=rows)


class _Stream:
    """One COPY: blocks of it become rows, which are put where they are waited for."""

    def __init__(self, subject: Subject, rows: asyncio.Queue[Rows | None]) -> None:
        self._subject = subject
        self._rows = rows
        self._copy = CopyRows((wire_bytes(subject.dimensions, subject.storage), 4))
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._count = 0

    async def feed(self, data: bytes) -> None:
        """Take some bytes of the stream."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= BLOCK_BYTES:
            await self._hand_out()

    async def end(self, count: int) -> None:
        """Say that it is over, after so many rows."""
        await self._hand_out()
        self._copy.close()
        if self._count != count:
            raise ValueError(f"{self._count} rows have come of {count} that were sent")
        await self._rows.put(None)

    async def _hand_out(self) -> None:
        block = self._copy.feed(b"".join(self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0
        stored = unwire(block.field(0), self._subject.dimensions, self._subject.storage)
        vectors = converted(stored, self._subject.dtype)
        # Each document has one chunk at its place 0.
        places = block.field(1).view(">i4")
        documents = len(places) - int(np.count_nonzero(places))
        self._count += len(vectors)
        await self._rows.put(Rows(len(vectors), documents, vectors.data, block.lines))
