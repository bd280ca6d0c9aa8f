"""What a collection is made of on a real server."""

import asyncio
from dataclasses import replace

import pytest

from tests.support.store_changes import ARTICLES
from tests.support.store_worlds import PostgresWorld, postgres_world

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
        creating = tasks.create_task(world.catalog.create(WIKI, index=False))
        await world.until_waiting(creating)
    assert creating.result() == replace(WIKI, id=identity)


async def test_readers_of_the_collections_do_not_wait_for_a_creation(
    world: PostgresWorld,
) -> None:
    async with world.database.transaction() as connection, asyncio.timeout(5):
        await connection.execute("lock table collection in share row exclusive mode")
        assert await world.catalog.collection("articles") == world.articles


@pytest.mark.parametrize("index", [True, False])
async def test_the_index_is_of_the_storage_and_metric(
    world: PostgresWorld, *, index: bool
) -> None:
    wanted = replace(WIKI, storage="halfvec", metric="cosine")
    await world.catalog.create(wanted, index=index)
    rows = await world.fetch(
        "select o.opcname from pg_index i join pg_opclass o on o.oid = any (i.indclass)"
        " where i.indrelid = 'chunk_2_1'::regclass and not i.indisprimary"
    )
    assert [row[0] for row in rows] == (["halfvec_cosine_ops"] if index else [])


async def test_texts_and_vectors_are_not_compressed_and_pages_keep_room(
    world: PostgresWorld,
) -> None:
    rows = await world.fetch(
        "select attname from pg_attribute where attrelid = 'chunk_1_1'::regclass"
        " and attstorage = 'e' order by attname"
    )
    assert [row[0] for row in rows] == ["content", "embedding"]
    for table in ("chunk_1_1", "document"):
        options = await world.fetchval(
            "select reloptions from pg_class where oid = $1::text::regclass", table
        )
        assert options == ["fillfactor=70"]
