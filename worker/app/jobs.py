"""
The one-shot jobs put together: each opens what it needs, runs, and closes it again.

Plain constructors, as in the worker; a job that needs Kafka only never touches the database,
and the other way round. Raises `worker.errors` only.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from worker.adapters.http_embedder import HttpEmbedder
from worker.adapters.kafka_topics import Cleanup, TopicReport, Topics
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_client import Database
from worker.adapters.pg_migrations import Migrations, MigrationStatus
from worker.adapters.pg_search import Search
from worker.config import DatabaseOptions, Settings
from worker.core.chunking import check_options
from worker.core.model import Collection
from worker.errors import ConfigError
from worker.ops import search as searching


async def migrate_up(settings: Settings) -> list[str]:
    """Apply what is not applied yet; returns the versions."""
    return await Migrations(settings.database).up()


async def migration_status(settings: Settings) -> list[MigrationStatus]:
    """Return all migrations."""
    return await Migrations(settings.database).status()


async def create_topics(
    settings: Settings,
    *,
    partitions: int,
    replication: int | None,
    cleanup: Cleanup,
    retention_hours: float | None,
) -> list[TopicReport]:
    """Create the topics that are missing."""
    return await Topics(settings.kafka).create(
        partitions=partitions,
        replication=replication,
        cleanup=cleanup,
        retention_hours=retention_hours,
    )


async def create_collection(settings: Settings, collection: Collection) -> Collection:
    """Create a collection, or find it as it is."""
    check_options(collection.chunking)
    async with opened(settings.database) as database:
        return await PostgresCatalog(database).create(collection)


async def list_collections(settings: Settings) -> list[Collection]:
    """Return all collections."""
    async with opened(settings.database) as database:
        return await PostgresCatalog(database).collections()


async def show_collection(settings: Settings, name: str) -> Collection:
    """Return one collection."""
    async with opened(settings.database) as database:
        return await searching.named(PostgresCatalog(database), name)


async def search(settings: Settings, query: searching.Query) -> Sequence[searching.Found]:
    """Return the chunks nearest to some words."""
    async with opened(settings.database) as database, embedding(settings) as embedder:
        return await searching.search(
            PostgresCatalog(database), embedder, Search(database), query
        )


async def check_schema(options: DatabaseOptions) -> None:
    """
    Refuse a schema that is not up to date.

    Raises:
        ConfigError: migrations are missing.
    """
    missing = [one for one in await Migrations(options).status() if not one.applied]
    if missing:
        raise ConfigError(
            f"the schema {options.schema!r} is not up to date, it lacks {len(missing)} "
            "migrations: run `embedfleet migrate up`"
        )


@asynccontextmanager
async def opened(options: DatabaseOptions) -> AsyncIterator[Database]:
    """
    Open the database for one job: a connection or two, and a schema that is up to date.

    Raises:
        ConfigError: migrations are missing.
    """
    await check_schema(options)
    # A claim looks for who blocks it while it waits: two connections.
    database = await Database.open(replace(options, pool_min=1, pool_max=2))
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def embedding(settings: Settings) -> AsyncIterator[HttpEmbedder]:
    """Open the embedding provider for one job."""
    embedder = HttpEmbedder(settings.embedding)
    try:
        yield embedder
    finally:
        await embedder.close()
