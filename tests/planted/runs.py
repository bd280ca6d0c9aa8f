"""
What the planted bugs are looked for with: the tests that are there anyway, run one by one.

A run is named by the test that it is. In memory it is called, on real servers it is awaited
with the servers; either way it raises where it is red. `signs` says by what.
"""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tests.adapters import test_http_embedder
from tests.conftest import CreateTopic
from tests.pipeline import test_simulation
from tests.support.embedders import options_for
from tests.support.kafka_worlds import KafkaWorld
from tests.support.provider import Provider
from tests.support.store_worlds import memory_world, postgres_world
from tests.support.universe import live
from tests.support.virtual_time import run
from worker.adapters.http_embedder import HttpEmbedder
from worker.config import DatabaseOptions, KafkaOptions

TESTS = Path(__file__).parents[1]
SEEDS = 300
"""Universes that are looked through, until one is red."""
PATIENCE_SECONDS = 3_000
"""Of virtual time: a universe that is not settled by then never is."""


class Servers(NamedTuple):
    """What a run on real servers is given."""

    kafka: KafkaOptions
    database: DatabaseOptions
    create_topic: CreateTopic


class Run(NamedTuple):
    """One run: where it stands, and how to let it live; `real` if on real servers."""

    where: str
    live: Callable[..., Any]
    real: bool = False


def _where(test: Callable[..., Any]) -> str:
    path = Path(test.__code__.co_filename).relative_to(TESTS.parent)
    return f"{path}::{test.__qualname__.replace('.', '::')}"


# ---- in memory ----


def simulation() -> Run:
    where = Path(test_simulation.__file__).relative_to(TESTS.parent)
    return Run(f"{where}::{test_simulation.test_no_fault_breaks_a_promise.__name__}", _simulate)


def _simulate() -> None:
    story, settings = test_simulation.story, test_simulation.SETTINGS
    for seed in range(SEEDS):
        live(story, seed=seed, settings=settings, limit_seconds=PATIENCE_SECONDS)


def story(test: Callable[..., None], **given: Any) -> Run:
    """A test of the pipeline, which has virtual time of its own."""
    return Run(_where(test), partial(test, **given))


def alone(test: Callable[[], Any]) -> Run:
    """A coroutine that needs nothing."""
    return Run(_where(test), lambda: run(test()))


def in_memory(contract: type, check: Callable[..., Any]) -> Run:
    """A check of the contract of a port of the database."""

    async def on_memory():
        await check(contract(), await memory_world())

    return Run(_where(check), lambda: run(on_memory()))


def by_http(check: Callable[..., Any]) -> Run:
    """A check of the embedder that asks a provider by HTTP."""

    async def on_loopback():
        async with Provider(test_http_embedder.SIZE) as provider:
            embedder = HttpEmbedder(options_for(provider.url))
            try:
                await check(test_http_embedder.TestAnswers(), provider, lambda: embedder)
            finally:
                await embedder.close()

    return Run(_where(check), lambda: asyncio.run(on_loopback()))


# ---- on real servers ----


def on_postgres(check: Callable[..., Any], *contract: type) -> Run:
    """A check that takes a database with a collection."""

    async def on_servers(servers: Servers) -> None:
        async with postgres_world(servers.database) as world:
            await check(*(one() for one in contract), world)

    return Run(_where(check), on_servers, real=True)


@asynccontextmanager
async def _kafka_world(servers: Servers, partitions: int):
    world = KafkaWorld(servers.kafka, await servers.create_topic(partitions=partitions))
    try:
        yield world
    finally:
        await world.close()


def on_kafka(check: Callable[..., Any], *contract: type) -> Run:
    """A check that takes a topic, or makes one where it is of a contract."""

    async def on_servers(servers: Servers) -> None:
        async with _kafka_world(servers, 1 if contract else 2) as world:

            async def make_world():
                return world

            await check(*(one() for one in contract), make_world if contract else world)

    return Run(_where(check), on_servers, real=True)


def on_a_topic(check: Callable[..., Any]) -> Run:
    """A check that makes a topic of its own."""

    async def on_servers(servers: Servers) -> None:
        await check(servers.kafka, servers.create_topic)

    return Run(_where(check), on_servers, real=True)


# ---- why it is red ----


def signs(error: BaseException) -> Iterator[str]:
    """Yield what an error and its causes say, each with the line of a test it came from."""
    places = [
        frame.line
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(str(TESTS))
    ]
    yield f"{type(error).__name__}: {error} @ {places[-1] if places else ''}"
    causes = [error.__cause__] if error.__cause__ is not None else []
    if isinstance(error, BaseExceptionGroup):
        causes += error.exceptions
    for cause in causes:
        yield from signs(cause)
