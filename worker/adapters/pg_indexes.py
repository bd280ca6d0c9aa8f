"""
The vector indexes of the chunk tables: what is there, and how it is built and dropped.

Looks with the pool's connections. Builds and drops on a connection of its own, which has no
time limits and holds an advisory lock on the collection's table, so that two never work on one
index; both happen CONCURRENTLY, so readers and writers go on. The statement ends with whoever
asked for it: on Ctrl-C it is cancelled, and a second after a kill the server notices that
nobody is there any more. What is left then is an index that is not valid, which
`core.vector_index.steps` takes away. Never decides what should be done.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import asyncpg

from worker.adapters.pg_client import Connection, Database, unhurried
from worker.adapters.pg_documents import chunk_table, index_name
from worker.adapters.pgvector_format import index_definition, index_operators
from worker.core.index_facts import BuildProgress, Holder, IndexFacts, ServerResources
from worker.core.model import Collection
from worker.core.vector_index import Place, Places, Present, VectorIndex
from worker.errors import ConfigError

EXACT_ROWS = 100_000
"""So many rows are counted, which takes milliseconds; of more the server's guess counts."""

# Any number: the upper half of the lock's key, the lower one is the table.
_LOCK_CLASS = 720_368_522
_LOCK_PATIENCE_SECONDS = 5.0
_LOCK_LOOK_SECONDS = 0.2

# Of each kind, with what pgvector takes where an index names none.
_PARAMETERS = {"hnsw": {"m": 16, "ef_construction": 64}, "ivfflat": {"lists": 100}}

_INDEXES = """
select i.relname as name, m.amname as kind, x.indisvalid and x.indisready as is_valid,
       i.reloptions as options, pg_relation_size(i.oid) as bytes,
       a.attname = 'embedding' and o.opcname = $3 and x.indpred is null as serves,
       pg_get_indexdef(i.oid) as definition
from pg_index x
join pg_class i on i.oid = x.indexrelid
join pg_am m on m.oid = i.relam
join pg_opclass o on o.oid = x.indclass[0]
left join pg_attribute a on a.attrelid = x.indrelid and a.attnum = x.indkey[0]
where x.indrelid = to_regclass($1) and i.relname = any ($2)
"""
_SIZE = """
select (select count(*) from (select from {table} limit $2) counted) as counted,
       greatest(t.reltuples::bigint, pg_stat_get_live_tuples(t.oid)) as guessed,
       pg_table_size(t.oid) as bytes,
       (select index_rows_per_second from collection where id = $3) as rows_per_second
from pg_class t where t.oid = to_regclass($1)
"""
_PROGRESS = """
select p.phase, p.blocks_done, p.blocks_total, p.tuples_done, p.tuples_total,
       a.pid as waits_for_pid, a.application_name as waits_for
from pg_stat_progress_create_index p
left join pg_stat_activity a on a.pid = p.current_locker_pid
where p.relid = to_regclass($1)
  and p.index_relid in (select to_regclass(name)::oid from unnest($2::text[]) name)
"""
_LOCK = "(({lock_class}::bigint << 32) | to_regclass($1)::oid::bigint)"
_TAKE_LOCK = f"select pg_try_advisory_lock({_LOCK.format(lock_class=_LOCK_CLASS)})"
_HOLDER = f"""
select l.pid, a.application_name as application, a.backend_start as since
from pg_locks l left join pg_stat_activity a using (pid)
where l.locktype = 'advisory' and l.granted and l.objsubid = 1
  and l.database = (select oid from pg_database where datname = current_database())
  and l.classid::bigint = {_LOCK_CLASS} and l.objid = to_regclass($1)::oid
"""  # noqa: S608 - built of constants of this module
_BLOCKER = f"""
select a.pid as waits_for_pid, a.application_name as waits_for
from ({_HOLDER}) holder, unnest(pg_blocking_pids(holder.pid)) b (pid)
left join pg_stat_activity a using (pid)
order by a.pid limit 1
"""  # noqa: S608 - the same
_KEEP_RATE = "update collection set index_rows_per_second = $2 where id = $1"
_SERVER = """
select pg_size_bytes(current_setting('shared_buffers')) as shared_buffers_bytes,
       pg_size_bytes(current_setting('effective_cache_size')) as cache_bytes,
       current_setting('max_parallel_maintenance_workers')::int as maintenance_workers,
       current_setting('max_parallel_workers')::int as parallel_workers
"""


class PostgresIndexes:
    """The vector indexes of all collections of one schema."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def look(self, collection: Collection) -> IndexFacts:
        """
        Return what there is.

        Raises:
            StoreUnavailable: also where the collection's table is gone.
        """
        table = table_of(collection)
        async with self._database.connection() as connection:
            size = await connection.fetchrow(
                _SIZE.format(table=table), table, EXACT_ROWS + 1, collection.id
            )
            rows = await _indexes(connection, collection)
            progress = await connection.fetchrow(_PROGRESS, table, _names(table))
            holder = await connection.fetchrow(_HOLDER, table)
        is_exact = size["counted"] <= EXACT_ROWS
        return IndexFacts(
            collection=collection,
            rows=size["counted"] if is_exact else max(size["counted"], size["guessed"]),
            is_exact=is_exact,
            table_bytes=size["bytes"],
            index_bytes=sum(row["bytes"] for row in rows),
            found=_places(table, rows),
            progress=None if progress is None else _progress(progress),
            holder=None if holder is None else Holder(**dict(holder)),
            rows_per_second=size["rows_per_second"],
        )

    async def found(self, collection: Collection) -> Places:
        """Return which indexes there are; that costs next to nothing."""
        table = table_of(collection)
        async with self._database.connection() as connection:
            rows = await _indexes(connection, collection)
        return _places(table, rows)

    async def progress(self, collection: Collection) -> BuildProgress | None:
        """Return how far a build is, or whom a drop waits for; None where there is neither."""
        table = table_of(collection)
        async with self._database.connection() as connection:
            if row := await connection.fetchrow(_PROGRESS, table, _names(table)):
                return _progress(row)
            blocker = await connection.fetchrow(_BLOCKER, table)
        return None if blocker is None else _waiting("waiting for a transaction's end", blocker)

    async def server(self) -> ServerResources:
        """Return what the server says of its memory and its processes."""
        async with self._database.connection() as connection:
            return ServerResources(**dict(await connection.fetchrow(_SERVER)))

    async def keep_rate(self, collection: Collection, rows_per_second: float) -> None:
        """Keep how fast an index was built."""
        async with self._database.connection() as connection:
            await connection.execute(_KEEP_RATE, collection.id, rows_per_second)

    @asynccontextmanager
    async def locked(
        self, collection: Collection, application: str
    ) -> AsyncIterator["IndexBuilder"]:
        """
        Be the only one who works on a collection's index, for the length of a block.

        Raises:
            ConfigError: somebody else is at it.
        """
        async with unhurried(self._database.options, application) as connection:
            await _settle_in(connection)
            if not await _take_lock(connection, collection):
                raise ConfigError(await self._busy(collection))
            yield IndexBuilder(connection, collection, self._database.options.schema)

    async def _busy(self, collection: Collection) -> str:
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_HOLDER, table_of(collection))
        who = "somebody" if row is None else Holder(**dict(row)).name
        return (
            f"the index of {collection.name} is being worked on by {who}: wait for its end; "
            "`embedfleet index status` shows how far it is"
        )


class IndexBuilder:
    """
    Builds and drops the indexes of one collection, under its lock.

    `notices` is what PostgreSQL had to say, above all that a graph does not fit into memory.
    """

    def __init__(self, connection: Connection, collection: Collection, schema: str) -> None:
        self._connection = connection
        self._collection = collection
        self._schema = schema
        self._table = table_of(collection)
        self.notices: list[str] = []
        connection.add_log_listener(lambda _, notice: self.notices.append(notice.message))

    @property
    def is_lost(self) -> bool:
        """Whether the connection has broken, and the lock with it."""
        return bool(self._connection.is_closed())

    async def count(self) -> int:
        """Return how many rows there are."""
        count: int = await self._connection.fetchval(
            f'select count(*) from "{self._schema}".{self._table}'  # noqa: S608 - names of ours
        )
        return count

    async def create(
        self,
        place: Place,
        index: VectorIndex,
        *,
        rows: int,
        memory_bytes: int,
        workers: int | None,
    ) -> None:
        """
        Build an index on the living table.

        Raises:
            StoreUnavailable: it was ended, or the server is short of something.
            ConfigError: ... of shared memory, which is a matter of its settings.
        """
        memory = f"{memory_bytes // 1024}kB"
        await self._set("maintenance_work_mem", memory)
        # How many help is decided by the pages of the table, and vectors are not in them: a
        # table of 10,000 rows would be too small for any.
        await self._set("min_parallel_table_scan_size", "0")
        if workers is not None:
            await self._set("max_parallel_maintenance_workers", str(workers))
        definition = index_definition(replace(self._collection, index=index), rows)
        statement = (
            f"create index concurrently {index_name(self._table, place)} on "
            f'"{self._schema}".{self._table} {definition}'
        )
        try:
            await self._connection.execute(statement)
        except asyncpg.DiskFullError as error:
            if "shared memory" not in str(error):
                raise
            raise ConfigError(
                f"the server's shared memory (/dev/shm) is smaller than {memory}, which "
                "processes that build together share: enlarge it (--shm-size of a container), "
                "or set index.max_memory_bytes lower, or index.parallel_workers to 0"
            ) from error

    async def analyse(self) -> None:
        """Tell the planner what is stored: without, it takes a new index for not worth it."""
        tables = f'"{self._schema}".{self._table}, "{self._schema}".document'
        await self._connection.execute(f"analyze {tables}")

    async def drop(self, place: Place) -> None:
        """Take an index away, or what is left of one."""
        name = index_name(self._table, place)
        await self._connection.execute(
            f'drop index concurrently if exists "{self._schema}".{name}'
        )

    async def promote(self) -> None:
        """Let the next index be the main one, which is gone."""
        following, main = index_name(self._table, Place.NEXT), index_name(self._table)
        await self._connection.execute(
            f'alter index "{self._schema}".{following} rename to {main}'
        )

    async def _set(self, name: str, value: str) -> None:
        await self._connection.execute("select set_config($1, $2, false)", name, value)


def table_of(collection: Collection) -> str:
    """Return the name of the table that holds a collection's chunks."""
    return chunk_table(collection.id, collection.generation)


def _missing(collection: Collection) -> ConfigError:
    return ConfigError(f"the table {table_of(collection)} of {collection.name} is missing")


async def _settle_in(connection: Connection) -> None:
    # What is built or dropped concurrently waits for the transactions of others, for as long as
    # these last, and holds nobody up meanwhile; between two steps a lock is held idly.
    await connection.execute("set lock_timeout = 0; set idle_session_timeout = 0")
    with suppress(asyncpg.DataError):  # a server's platform may not know when a client is gone
        await connection.execute("set client_connection_check_interval = '1s'")


async def _take_lock(connection: Connection, collection: Collection) -> bool:
    """Take the lock; whoever had it and was killed gives it up within a second or two."""
    table = table_of(collection)
    if await connection.fetchval("select to_regclass($1) is null", table):
        raise _missing(collection)
    with suppress(TimeoutError):
        async with asyncio.timeout(_LOCK_PATIENCE_SECONDS):
            while not await connection.fetchval(_TAKE_LOCK, table):  # noqa: ASYNC110 - the server's
                await asyncio.sleep(_LOCK_LOOK_SECONDS)
            return True
    return False


def _names(table: str) -> list[str]:
    return [index_name(table, place) for place in Place]


async def _indexes(connection: Connection, collection: Collection) -> Any:
    table = table_of(collection)
    return await connection.fetch(_INDEXES, table, _names(table), index_operators(collection))


def _places(table: str, rows: Any) -> Places:
    main = index_name(table)
    return {Place(row["name"].removeprefix(main)): _present(row) for row in rows}


def _present(row: Any) -> Present:
    if row["kind"] not in _PARAMETERS or not row["serves"]:
        # Whoever made it: no query of readers uses it.
        words = row["definition"].partition(" USING ")[2]
        return Present(words, is_valid=row["is_valid"])
    said = dict(option.split("=", 1) for option in row["options"] or ())
    parameters = {
        name: int(said.get(name, default)) for name, default in _PARAMETERS[row["kind"]].items()
    }
    return Present(row["kind"], is_valid=row["is_valid"], **parameters)


def _progress(row: Any) -> BuildProgress:
    phase = row["phase"]
    if row["waits_for_pid"] is not None and phase.startswith("waiting"):
        return _waiting(phase, row)
    kind = "tuples" if row["tuples_total"] else "blocks"
    total = row[f"{kind}_total"]
    return BuildProgress(phase, row[f"{kind}_done"] / total if total else None)


def _waiting(phase: str, row: Any) -> BuildProgress:
    pid, application = row["waits_for_pid"], row["waits_for"]
    who = "a prepared transaction" if pid is None else f"PostgreSQL's process {pid}"
    return BuildProgress(f"{phase} ({who}{f', {application}' if application else ''})", None)
