"""
The one-shot job `bulk-load` put together: a worker without vector indexes, and their builds.

Holds the locks of the indexes from before they are dropped until they are built, so no other
worker builds them in the midst of it. What an index should be is stored with its collection,
and how far the load is by the group, so a run that was killed anywhere is gone on with by
the next one; or ordinary workers finish the load, and build what is due.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple
from uuid import UUID

from worker.adapters.kafka_group import KafkaGroup
from worker.adapters.kafka_topics import Topics
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_client import Database
from worker.adapters.pg_indexes import IndexBuilder, PostgresIndexes
from worker.adapters.pg_progress import PostgresProgress
from worker.app.assembly import Worker
from worker.app.jobs import opened
from worker.app.observation import Observation
from worker.app.process import stopped_by_signals
from worker.app.worker import work
from worker.config import KafkaOptions, Settings
from worker.core.lifecycle import Lives, Phase, other_topic
from worker.core.model import Collection, Partition
from worker.core.progress import WatchEach
from worker.errors import ConfigError
from worker.ops import bulk_load
from worker.ops import search as searching
from worker.ops.bulk_load import Bounds, Ended, Goal, Load, Loading, Problems, Seen
from worker.ops.index_build import Built, IndexBuild, current

BY = "embedfleet bulk-load"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """
    What is loaded: `names` are the collections whose index is done without, all where empty.

    `auto` loads only where that is worth it; `yes` also where readers will miss an index.
    """

    names: Sequence[str] = ()
    auto: bool = False
    threshold: int
    yes: bool = False


class Loaded(NamedTuple):
    """
    What came of it; `why_not` is set where nothing was done.

    So are `missed`, where it was not said that readers may be without these indexes. `ended`
    None: it was interrupted, and no index was built.
    """

    why_not: str | None = None
    missed: tuple[Loading, ...] = ()
    ended: Ended | None = None
    built: tuple[Built, ...] = ()


async def run(settings: Settings, asked: Asked, watch: WatchEach) -> Loaded:
    """
    Load what is in the topics now.

    Raises:
        ConfigError: somebody else works on an index, or a worker cannot start like this.
        StoreUnavailable: it was ended; calling it again goes on.
    """
    goal, topic_ids = await _goal(settings.kafka)
    async with opened(settings.database) as database, AsyncExitStack() as stack:
        job = _Job(settings, database, topic_ids, watch)
        indexed = await job.indexed(asked)
        lag = sum(bulk_load.left_of(goal, (await job.seen()).done).values())
        refused = _refused(asked, lag, [one for _, one in indexed])
        if refused is not None:
            return refused
        held = [
            (one, await stack.enter_async_context(job.indexes.locked(one, BY)))
            for one, _ in indexed
        ]
        ended: Ended | None = Ended(0, {}, {})
        if lag:
            for one, builder in held:
                await job.build_of(one).drop_all(builder, one)
            ended = await job.load(goal)
        if ended is None:
            return Loaded()
        built = [await job.build(one, builder) for one, builder in held]
        return Loaded(ended=ended, built=tuple(built))


def _refused(asked: Asked, lag: int, loading: list[Loading]) -> Loaded | None:
    """Return why nothing is done, None where it is."""
    if asked.auto:
        why_not = bulk_load.why_not(lag, asked.threshold, loading)
        return None if why_not is None else Loaded(why_not)
    if lag and not asked.yes and (missed := bulk_load.missed(loading)):
        return Loaded(missed=tuple(missed))
    return None


async def _goal(options: KafkaOptions) -> tuple[Goal, Mapping[str, UUID]]:
    """Return the bounds of all partitions as they are now, and the ids of their topics."""
    found = await Topics(options).describe()
    if missing := [name for name in options.topics if name not in found]:
        raise ConfigError(f"there is no topic {missing[0]!r}: run `embedfleet topics create`")
    places = [
        Partition(name, number)
        for name in options.topics
        for number in range(found[name].partitions)
    ]
    async with KafkaGroup.open(options, committed_only=True) as group:
        goal = {place: Bounds(*await group.bounds(place)) for place in places}
        return goal, await group.topic_ids(options.topics)


class _Job:
    """The parts of one load."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        topic_ids: Mapping[str, UUID],
        watch: WatchEach,
    ) -> None:
        self._settings = settings
        self._topic_ids = topic_ids
        self._watch = watch
        self._catalog = PostgresCatalog(database)
        self._progress = PostgresProgress(database)
        self.indexes = PostgresIndexes(database)

    async def indexed(self, asked: Asked) -> list[tuple[Collection, Loading]]:
        """
        Return the collections that should have an index, and how that is.

        Raises:
            ConfigError: one that is named should have none, and would be loaded all the same.
        """
        if asked.names:
            names = dict.fromkeys(asked.names)
            found = [await searching.named(self._catalog, name) for name in names]
            without = [one.name for one in found if one.index.kind == "none"]
            if without and not asked.auto:
                raise ConfigError(
                    f"{without[0]} should have no index, so there is none to do without: name "
                    "another collection, or let ordinary workers load"
                )
        else:
            found = await self._catalog.collections()
        facts = [await self.indexes.look(one) for one in found if one.index.kind != "none"]
        return [
            (one.collection, Loading(one.collection.name, one.rows, one.state)) for one in facts
        ]

    async def seen(self) -> Seen:
        """Return how far the table is with each partition, of which it knows this log."""
        known = {
            Partition(one.topic, one.partition): one
            for one in await self._progress.partitions(self._settings.kafka.group)
            if other_topic(one.topic_id, self._topic_ids.get(one.topic)) is None
        }
        return Seen(
            done={place: one.next_offset for place, one in known.items()},
            held={
                place: one.held_because
                for place, one in known.items()
                if one.held_because is not None
            },
        )

    async def load(self, goal: Goal) -> Ended | None:
        """Work until the goal is reached; None where a signal came first."""
        settings, stop = _as_loader(self._settings), asyncio.Event()
        loads: list[Load] = []

        def watch_goal(worker: Worker, _database: Database, _observation: Observation) -> None:
            load = Load(
                goal,
                self.seen,
                halted=partial(_halted, worker.lives),
                stop=stop,
                clock=time.monotonic,
                watch=partial(self._watch, f"group {settings.kafka.group}"),
            )
            worker.runner.beside.append(load.run)
            loads.append(load)

        with stopped_by_signals(stop, settings.kafka.drain_seconds) as was_signalled:
            await work(settings, stop, watch_goal)
            if was_signalled() or not loads:
                return None
        return loads[0].ended

    async def build(self, collection: Collection, builder: IndexBuilder) -> Built:
        """Build the index that the collection should have by now."""
        # A load takes its time, in which it may be said anew what index there should be.
        collection = await current(self._catalog, collection)
        facts = await self.indexes.look(collection)
        if not facts.found and facts.rows < (rows := collection.index.build_at_rows):
            return Built(
                collection.name, [f"left without an index, which is due at {rows} rows"]
            )
        async with _still_locked(self.indexes, collection, builder) as holding:
            return await self.build_of(collection).under_lock(holding, collection)

    def build_of(self, collection: Collection) -> IndexBuild:
        """Return what works on a collection's index, and tells how far it is."""
        return IndexBuild(
            self.indexes,
            self._catalog,
            self._settings.index,
            clock=time.monotonic,
            watch=partial(self._watch, collection.name),
        )


@asynccontextmanager
async def _still_locked(
    indexes: PostgresIndexes, collection: Collection, builder: IndexBuilder
) -> AsyncIterator[IndexBuilder]:
    """Take the lock again where the connection that held it was lost during the load."""
    if not builder.is_lost:
        yield builder
        return
    async with indexes.locked(collection, BY) as another:
        yield another


def _halted(lives: Lives) -> Problems:
    return {life.partition: life.problem or "" for life in lives.in_phase(Phase.HALTED)}


def _as_loader(settings: Settings) -> Settings:
    # It stands beside an ordinary worker, perhaps on the same machine, and is soon gone.
    return replace(settings, telemetry=replace(settings.telemetry, admin_port=None))
