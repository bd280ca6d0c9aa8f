"""The one-shot jobs on vector indexes put together: look, change, build, drop, advise."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_client import Database
from worker.adapters.pg_indexes import PostgresIndexes, table_of
from worker.adapters.pg_readers import Readers, Recall
from worker.adapters.pgvector_format import index_definition
from worker.app.jobs import opened
from worker.config import IndexBuildOptions, Settings
from worker.core.index_facts import IndexFacts
from worker.core.model import Collection
from worker.core.progress import WatchEach
from worker.core.vector_index import State, VectorIndex
from worker.errors import ConfigError
from worker.ops import search as searching
from worker.ops.index_advice import Advice, Situation, advise_on
from worker.ops.index_build import Built, IndexBuild, current, each, is_due

BUILDER = "embedfleet index build"
DROPPER = "embedfleet index drop"


class IndexRow(NamedTuple):
    """
    A collection's index as it is.

    `serves` tells whether it serves a query of the largest tenant, None: there is no index, or
    nothing is stored; `recall` is None where it was not asked for, or nothing is stored.
    """

    facts: IndexFacts
    serves: bool | None
    recall: Recall | None


class Jobs(NamedTuple):
    """What the jobs work with."""

    database: Database
    catalog: PostgresCatalog
    indexes: PostgresIndexes

    async def named(self, names: Sequence[str]) -> list[Collection]:
        """Return the collections of these names, all where there are none."""
        if not names:
            return await self.catalog.collections()
        return [await searching.named(self.catalog, name) for name in dict.fromkeys(names)]

    def build_of(
        self, collection: Collection, options: IndexBuildOptions, watch: WatchEach
    ) -> IndexBuild:
        """Return what works on a collection's index, and tells how far it is."""
        return IndexBuild(
            self.indexes,
            self.catalog,
            options,
            clock=time.monotonic,
            watch=partial(watch, collection.name),
        )


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Jobs]:
    async with opened(settings.database) as database:
        yield Jobs(database, PostgresCatalog(database), PostgresIndexes(database))


async def status(
    settings: Settings, names: Sequence[str], *, queries: int | None, k: int
) -> list[IndexRow]:
    """Return how the indexes are, and with `queries` what they find of the k nearest."""
    async with _opened(settings) as jobs:
        readers = Readers(jobs.database)
        rows = []
        for collection in await jobs.named(names):
            facts = await jobs.indexes.look(collection)
            has_one = any(one.is_valid for one in facts.found.values())
            serves = await readers.is_served_by_index(collection, k) if has_one else None
            recall = await readers.recall(collection, queries, k) if queries else None
            rows.append(IndexRow(facts, serves, recall))
    return rows


async def build(
    settings: Settings,
    names: Sequence[str],
    *,
    rebuild: bool,
    watch: WatchEach,
    ended: Callable[[Built], object],
) -> None:
    """
    Build the indexes of these collections, or, without names, those that are due.

    Raises:
        ConfigError: a collection should have none, or somebody else is at it.
    """

    async def work(collection: Collection) -> None:
        if not names and not await is_due(jobs.indexes, collection):
            return
        job = jobs.build_of(collection, settings.index, watch)
        ended(await job.run(collection, by=BUILDER, rebuild=rebuild))

    async with _opened(settings) as jobs:
        collections = await jobs.named(names)
        if names:
            for collection in collections:
                await _check_wanted(jobs, collection)
        await each(collections, work)


async def _check_wanted(jobs: Jobs, collection: Collection) -> None:
    """Refuse to build none; what is left of one is taken away."""
    found = await jobs.indexes.found(collection)
    if collection.index.kind == "none" and all(one.is_valid for one in found.values()):
        raise ConfigError(
            f"{collection.name} should have no index; say which one: "
            f"`embedfleet index set {collection.name} --index hnsw`"
        )


async def drop(
    settings: Settings,
    names: Sequence[str],
    *,
    really: bool,
    watch: WatchEach,
    ended: Callable[[IndexFacts], object],
) -> None:
    """Drop indexes for good, or only say what that would drop."""
    async with _opened(settings) as jobs:
        found = [await jobs.indexes.look(one) for one in await jobs.named(names)]
        for facts in found:
            if really:
                build = jobs.build_of(facts.collection, settings.index, watch)
                await _drop(jobs, facts.collection, build)
            ended(facts)


async def _drop(jobs: Jobs, collection: Collection, build: IndexBuild) -> None:
    async with jobs.indexes.locked(collection, DROPPER) as builder:
        # First that there should be none, or a worker would build it again.
        wanted = (await current(jobs.catalog, collection)).index
        index = replace(wanted, kind="none")
        await jobs.catalog.set_index(collection, index)
        await build.drop_all(builder, collection)


async def set_index(
    settings: Settings, name: str, change: Callable[[VectorIndex], VectorIndex]
) -> tuple[Collection, State]:
    """Change what index a collection should have; returns it, and how its index is now."""
    async with _opened(settings) as jobs:
        (found,) = await jobs.named([name])
        wanted = await jobs.catalog.set_index(found, change(found.index))
        return wanted, (await jobs.indexes.look(wanted)).state


async def advise(settings: Settings, names: Sequence[str]) -> dict[str, list[Advice]]:
    """Return what is to be done about each collection's index, and why."""
    async with _opened(settings) as jobs:
        server, readers = await jobs.indexes.server(), Readers(jobs.database)
        advice = {}
        for collection in await jobs.named(names):
            facts = await jobs.indexes.look(collection)
            situation = Situation(
                collection=collection,
                state=facts.state,
                found=facts.found,
                rows=facts.rows,
                built_as=_definition(settings, facts),
                rows_per_second=facts.rows_per_second,
                tenants=await readers.tenants(collection),
                server=server,
                options=settings.index,
            )
            advice[collection.name] = advise_on(situation)
    return advice


def _definition(settings: Settings, facts: IndexFacts) -> str:
    table = f'"{settings.database.schema}".{table_of(facts.collection)}'
    return f"{table} {index_definition(facts.collection, facts.rows)}"
