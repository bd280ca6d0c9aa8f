"""How the tests call the command line: in this process, with an environment of its own."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
import pytest

from tests.support.provider import Provider
from worker.adapters.pg_client import Database
from worker.cli.root import main

FOREIGN = ("DATABASE_URL", "KAFKA_BOOTSTRAP_SERVERS", "OPENAI_BASE_URL", "OPENAI_API_KEY")


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


Call = Callable[..., Ended]
AsyncCall = Callable[..., Awaitable[Ended]]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """No variable and no file of the machine counts."""
    for name in [*os.environ]:
        if name.startswith("EMBEDFLEET_") or name in FOREIGN:
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def embedfleet(capsys) -> Call:
    """Run one command line."""

    def call(*arguments: str) -> Ended:
        capsys.readouterr()
        code = main(arguments)
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture
def embedfleet_beside(embedfleet) -> AsyncCall:
    """Run one command line while this loop goes on: commands have a loop of their own."""

    async def call(*arguments: str) -> Ended:
        return await asyncio.to_thread(embedfleet, *arguments)

    return call


# ---- real parts ----


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    """An embedding provider behind real HTTP, with 8 dimensions."""
    async with Provider(dimensions=8) as running:
        yield running


@pytest.fixture
def on_database(database, monkeypatch):
    """The commands use the database of this run, in a schema of the test's own."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("EMBEDFLEET_DATABASE_SCHEMA", database.schema)


@pytest.fixture
def on_kafka(kafka_options, monkeypatch):
    """The commands use the broker of this run, and a group of the test's own."""
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka_options.bootstrap_servers)
    monkeypatch.setenv("EMBEDFLEET_KAFKA_GROUP", kafka_options.group)


@pytest.fixture
async def migrated(on_database, database, embedfleet_beside) -> AsyncIterator[Database]:
    """The database after `migrate up`, opened for the test itself."""
    assert (await embedfleet_beside("migrate", "up")).code == 0
    opened = await Database.open(database)
    yield opened
    await opened.close()


@pytest.fixture
async def topics(on_kafka, create_topic, monkeypatch):
    """Topics of the test's own: one of 2 partitions for documents, one for dead letters."""
    documents, letters = await create_topic(partitions=2), await create_topic()
    monkeypatch.setenv("EMBEDFLEET_KAFKA_TOPICS", documents)
    monkeypatch.setenv("EMBEDFLEET_KAFKA_DEAD_LETTER_TOPIC", letters)
    return documents, letters
