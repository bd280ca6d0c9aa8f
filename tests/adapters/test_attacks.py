"""What an attacker of the real parts would try: huge writes, collections made anew."""

from dataclasses import replace

import pytest

from tests.support.store_changes import ARTICLES, INDEXED, key, upsert, write
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.core.model import Base
from worker.ports import Verdict

pytestmark = pytest.mark.real


async def test_a_document_of_many_chunks_is_stored_though_all_of_it_takes_long(
    database,
) -> None:
    """A limit of one statement must not be one of a document, or it is tried for ever."""
    options = replace(database, statement_timeout_seconds=0.9, lock_timeout_seconds=0.5)
    async with postgres_world(replace(options, command_timeout_seconds=1)) as world:
        wide = await world.catalog.create(
            replace(ARTICLES, name="wide", dimensions=1536, index=INDEXED)
        )
        claim, of = await world.claim(), key(collection="wide")
        texts = [f"{number}" for number in range(800)]
        change = upsert(wide, Base(), of=of, version=1, texts=texts)
        assert await world.store.apply([write(change, claim)]) == [Verdict.APPLIED]


async def test_a_collection_that_is_made_anew_is_found_again(database) -> None:
    async with postgres_world(database) as world:
        claim = await world.claim()
        assert await world.put(claim, version=1, texts=["text"]) is Verdict.APPLIED
        await _drop_collection(world)
        world.articles = await world.catalog.create(ARTICLES)
        assert await world.put(claim, version=1, texts=["text"]) is Verdict.APPLIED


async def _drop_collection(world: PostgresWorld) -> None:
    await world.fetch("drop table chunk_1_1 cascade")
    await world.fetch("delete from document")
    await world.fetch("delete from collection")
