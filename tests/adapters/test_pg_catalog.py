"""What a collection is made of on a real server."""

import asyncio
from dataclasses import replace

import pytest

from tests.support.store_changes import ARTICLES, INDEXED, key
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.core.vector_index import VectorIndex
from worker.errors import ConfigError

pytestmark = pytest.mark.real

WIKI = replace(ARTICLES, name="wiki", dimensions=3, metric="l2")


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


async def test_creating_what_another_worker_is_creating_waits_for_it(
    world: PostgresWorld,
) -> None:
    insert = (
        "insert into collection (name, model, embedding_space, dimensions, storage, metric,"
        " chunking) select 'wiki', model, embedding_space, 3, storage, 'l2', chunking"
        " from collection returning id"
    )
    async with asyncio.TaskGroup() as tasks, world.database.transaction() as connection:
        identity = await connection.fetchval(insert)
        creating = tasks.create_task(world.catalog.create(WIKI))
        await world.until_waiting(creating)
    # Whoever says nothing of an index gets the one of before there was a choice.
    assert creating.result() == replace(WIKI, id=identity, index=INDEXED)


async def test_readers_of_the_collections_do_not_wait_for_a_creation(
    world: PostgresWorld,
) -> None:
    async with world.database.transaction() as connection, asyncio.timeout(5):
        await connection.execute("lock table collection in share row exclusive mode")
        assert await world.catalog.collection("articles") == world.articles


@pytest.mark.parametrize(
    ("index", "found"),
    [
        (
            VectorIndex(m=8, ef_construction=32, build_at_rows=0),
            [("halfvec_cosine_ops", ["m=8", "ef_construction=32"])],
        ),
        (VectorIndex(build_at_rows=1), []),
        (VectorIndex("none", build_at_rows=0), []),
    ],
    ids=repr,
)
async def test_an_index_that_should_always_be_there_is_of_the_storage_and_metric(
    world: PostgresWorld, index: VectorIndex, found: list
) -> None:
    wanted = replace(WIKI, storage="halfvec", metric="cosine", index=index)
    await world.catalog.create(wanted)
    rows = await world.fetch(
        "select o.opcname, c.reloptions from pg_index i"
        " join pg_class c on c.oid = i.indexrelid"
        " join pg_opclass o on o.oid = any (i.indclass)"
        " where i.indrelid = 'chunk_2_1'::regclass and not i.indisprimary"
    )
    assert [tuple(row) for row in rows] == found


async def test_what_index_a_collection_should_have_can_be_said_anew(
    world: PostgresWorld,
) -> None:
    created = await world.catalog.create(WIKI)
    wanted = VectorIndex("ivfflat", 8, 40, lists=7, build_at_rows=1_000)
    assert await world.catalog.set_index(created, wanted) == replace(created, index=wanted)
    assert await world.catalog.collections() == [
        world.articles,
        replace(created, index=wanted),
    ]
    with pytest.raises(ConfigError, match="ef_construction"):
        await world.catalog.set_index(created, VectorIndex(ef_construction=0))


async def test_texts_and_vectors_are_not_compressed_and_pages_keep_room(
    world: PostgresWorld,
) -> None:
    rows = await world.fetch(
        "select attstorage, array_agg(attname::text order by attnum) from pg_attribute"
        " where attrelid = 'chunk_1_1'::regclass and attnum > 0 and attlen < 0 group by 1"
    )
    assert {row[0]: row[1] for row in rows} == {
        b"e": ["content", "embedding"],
        b"p": ["tenant", "id", "chunk_hash"],
        b"x": ["heading"],
    }
    for table, wanted in (
        ("chunk_1_1", ["fillfactor=50", "toast_tuple_target=256"]),
        ("document", ["fillfactor=70"]),
    ):
        options = await world.fetchval(
            "select reloptions from pg_class where oid = $1::text::regclass", table
        )
        assert options == wanted


async def test_texts_and_vectors_are_stored_out_of_line_but_keys_never(
    world: PostgresWorld,
) -> None:
    claim, one = await world.claim(), key("i" * 512, tenant="t" * 64)
    await world.put(claim, of=one, version=1, texts=["a text of some length " * 100])
    columns = ("tenant", "id", "chunk_hash", "content")
    (row,) = await world.fetch(
        f"select {', '.join(f'pg_column_toast_chunk_id({one}) is null' for one in columns)}"
        " from chunk_1_1"
    )
    assert tuple(row) == (True, True, True, False)
