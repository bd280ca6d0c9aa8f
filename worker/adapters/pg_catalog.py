"""
The port `Catalog` on PostgreSQL: collections, their chunk tables and the readers' views.

Creates a collection's row, table, index and view in one transaction, under a lock that lets
readers pass. The view `<name>_chunks` is what readers query: live documents only, without what
a scope delete reaches, whatever the sweep has left; written so that a nearest-neighbour query
on it still uses the index of the table (`tests/adapters/test_pg_search.py` reads the plan).
"""

from dataclasses import astuple, fields, replace
from typing import Any

from msgspec import json

from worker.adapters.pg_client import Connection, Database
from worker.adapters.pg_documents import chunk_table, index_name, live_chunks, view_name
from worker.adapters.pgvector_format import check_collection, index_definition, is_same
from worker.core.model import ChunkingOptions, Collection
from worker.core.vector_index import VectorIndex
from worker.errors import ConfigError

_INDEX = ", ".join(f"index_{field.name}" for field in fields(VectorIndex))
_SELECT = f"""
select id, name, model, embedding_space, dimensions, storage, metric, chunking, generation,
       {_INDEX}
from collection
"""  # noqa: S608 - built of constants of this module
_INSERT = f"""
insert into collection (
    name, model, embedding_space, dimensions, storage, metric, chunking, generation, {_INDEX}
) values ($1, $2, $3, $4, $5, $6, $7::text::jsonb, 1, $8, $9, $10, $11, $12)
returning id
"""  # noqa: S608 - built of constants of this module
_SET_INDEX = f"""
update collection set ({_INDEX}) = row ($2, $3, $4, $5, $6) where name = $1
"""  # noqa: S608 - built of constants of this module
# EXTERNAL: compressing costs 18 us a row and vectors do not shrink. An edit moves all chunks
# behind it: with texts out of line a row is small, and with half of each page free all rows of
# a document find room on theirs (HOT), so that neither text nor index is touched. PLAIN: keys
# out of line cost a write and a look-up each.
_CREATE_TABLE = """
create table {table} (
    tenant text storage plain collate "C" not null,
    id text storage plain collate "C" not null,
    chunk_hash bytea storage plain not null,
    occurrence int not null,
    seq int not null,
    content text storage external not null,
    span_start int not null,
    span_end int not null,
    heading text,
    embedding {storage}({dimensions}) storage external not null,
    primary key (tenant, id, chunk_hash, occurrence)
) with (fillfactor = 50, toast_tuple_target = 256);
comment on table {table} is 'Chunks of the collection {name}. Readers use the view "{view}".';
comment on column {table}.tenant is 'Whose document it is.';
comment on column {table}.id is 'The document''s id.';
comment on column {table}.chunk_hash is 'Hash of the content.';
comment on column {table}.occurrence is 'Which of the document''s chunks with this hash.';
comment on column {table}.seq is 'Place among the document''s chunks.';
comment on column {table}.content is 'Exactly what was embedded.';
comment on column {table}.span_start is 'First character in the published text.';
comment on column {table}.span_end is 'Character after the last one.';
comment on column {table}.heading is 'Path of headings, for Markdown.';
comment on column {table}.embedding is 'The vector of the content.';
"""
_CREATE_INDEX = "create index {index} on {table} {definition}"
_CREATE_VIEW = """
create view "{view}" with (security_invoker = true) as
select c.tenant, c.id as document_id, d.version, c.seq, c.heading, c.content,
       c.span_start, c.span_end, d.metadata, d.content_type, d.occurred_at, d.stored_at,
       c.embedding
{live};
comment on view "{view}" is 'What to search: chunks of the live documents of {name}.';
comment on column "{view}".tenant is 'Whose document it is; filter by it.';
comment on column "{view}".document_id is 'The document''s id.';
comment on column "{view}".version is 'The document''s version.';
comment on column "{view}".seq is 'Place among the document''s chunks.';
comment on column "{view}".heading is 'Path of headings, for Markdown.';
comment on column "{view}".content is 'Exactly what was embedded.';
comment on column "{view}".span_start is 'First character in the published text.';
comment on column "{view}".span_end is 'Character after the last one.';
comment on column "{view}".metadata is 'The document''s metadata, as published.';
comment on column "{view}".content_type is 'Media type of the published text.';
comment on column "{view}".occurred_at is 'When the change happened, as published.';
comment on column "{view}".stored_at is 'When the document''s row was last written.';
comment on column "{view}".embedding is 'The vector of the content.';
"""


class PostgresCatalog:
    """The collections there are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def collection(self, name: str) -> Collection | None:
        """Return a collection, None where there is none of that name."""
        async with self._database.connection() as connection:
            return await _find(connection, name)

    async def collections(self) -> list[Collection]:
        """Return all collections by name."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(f"{_SELECT} order by name")
        return [_collection(row) for row in rows]

    async def create(self, collection: Collection) -> Collection:
        """
        Create a collection with its chunk table and view; returns it with its id.

        Its index is created where it should always be there. Creating it again with the same
        settings changes nothing, and the index that it should have is not among them.

        Raises:
            ConfigError: it exists with other settings, or its dimensions do not fit.
        """
        check_collection(collection)
        async with self._database.transaction() as connection:
            # Against another `create`; it lets readers of the table pass.
            await connection.execute("lock table collection in share row exclusive mode")
            found = await _find(connection, collection.name)
            if found is None:
                return await _create(connection, collection)
        if not is_same(found, collection):
            raise ConfigError(f"the collection {collection.name!r} exists with other settings")
        return found

    async def set_index(self, collection: Collection, index: VectorIndex) -> Collection:
        """
        Say which index a collection should have; builds and drops none.

        Raises:
            ConfigError: it cannot be built.
        """
        wanted = replace(collection, index=index)
        check_collection(wanted)
        async with self._database.connection() as connection:
            await connection.execute(_SET_INDEX, collection.name, *astuple(index))
        return wanted


async def _find(connection: Connection, name: str) -> Collection | None:
    row = await connection.fetchrow(f"{_SELECT} where name = $1", name)
    return None if row is None else _collection(row)


async def _create(connection: Connection, collection: Collection) -> Collection:
    identity = await connection.fetchval(
        _INSERT,
        collection.name,
        collection.model,
        collection.embedding_space,
        collection.dimensions,
        collection.storage,
        collection.metric,
        json.encode(collection.chunking).decode(),
        *astuple(collection.index),
    )
    created = replace(collection, id=identity, generation=1)
    table = chunk_table(created.id, created.generation)
    names = {
        "table": table,
        "index": index_name(table),
        "live": live_chunks(created),
        "view": view_name(created.name),
        "name": created.name,
        "storage": created.storage,
        "dimensions": created.dimensions,
        "definition": index_definition(created, rows=0),
    }
    await connection.execute(_CREATE_TABLE.format(**names))
    if created.index.kind != "none" and created.index.build_at_rows == 0:
        await connection.execute(_CREATE_INDEX.format(**names))
    await connection.execute(_CREATE_VIEW.format(**names))
    return created


def _collection(row: Any) -> Collection:
    columns = dict(row)
    chunking = json.decode(columns.pop("chunking"), type=ChunkingOptions)
    index = VectorIndex(
        **{field.name: columns.pop(f"index_{field.name}") for field in fields(VectorIndex)}
    )
    return Collection(**columns, chunking=chunking, index=index)
