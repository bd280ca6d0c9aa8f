"""The PostgreSQL of a test run, with pgvector; `EMBEDFLEET_TEST_POSTGRES` names one to use."""

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import asyncpg

from tests.support.servers import local_image, open_folder
from worker.embedded.postgres import EmbeddedPostgres

VARIABLE = "EMBEDFLEET_TEST_POSTGRES"
REPOSITORY = "pgvector/pgvector"


@dataclass(frozen=True)
class PostgresServer:
    """Where it is, and how it was chosen. `embedded` is None where it is not ours."""

    url: str
    origin: str
    embedded: EmbeddedPostgres | None = None


@contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """Choose a server, start it where that is ours to do, and add the vector extension."""
    with _choose() as server:
        with ThreadPoolExecutor(1) as pool:  # a thread of its own: this one may have a loop
            pool.submit(asyncio.run, _add_extension(server.url)).result()
        yield server


@contextmanager
def _choose() -> Iterator[PostgresServer]:
    url = os.environ.get(VARIABLE)
    if url:
        yield PostgresServer(url, f"{VARIABLE}")
        return
    local = local_image(REPOSITORY)
    if local.image is not None:
        with _container(local.image) as url:
            yield PostgresServer(url, local.why)
        return
    with open_folder() as folder, EmbeddedPostgres(folder / "postgres") as embedded:
        yield PostgresServer(embedded.url, f"embedded ({local.why})", embedded)


@contextmanager
def _container(image: str) -> Iterator[str]:
    from testcontainers.community.postgres import PostgresContainer

    container = PostgresContainer(image, driver=None)
    with container.with_command("postgres -c max_connections=300 -c fsync=off") as postgres:
        yield postgres.get_connection_url(driver=None)


async def _add_extension(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS vector SCHEMA public")
    finally:
        await connection.close()


async def drop_schema(url: str, schema: str) -> None:
    """Drop all that a test made; locks that it still holds are an error, not a hang."""
    connection = await asyncpg.connect(url, server_settings={"lock_timeout": "10s"})
    try:
        await connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
    finally:
        await connection.close()
