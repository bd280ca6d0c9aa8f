"""A database with the collection `articles`, in memory and on PostgreSQL."""

from collections.abc import AsyncIterator

import pytest

from tests.support.store_worlds import MemoryWorld, PostgresWorld, memory_world, postgres_world


@pytest.fixture
async def in_memory() -> MemoryWorld:
    return await memory_world()


@pytest.fixture
async def on_postgres(database) -> AsyncIterator[PostgresWorld]:
    async with postgres_world(database) as world:
        yield world
