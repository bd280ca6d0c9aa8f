"""
One-shot job: bring the index of a collection to what it should be, step by step.

Looks at what is there under the collection's lock and does what leads to what is wanted, so
it can be ended anywhere and called again. While an index is built it tells how far that is.
Never stops readers or writers.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from worker.config import IndexBuildOptions
from worker.core.index_facts import BuildProgress, IndexFacts
from worker.core.model import Collection
from worker.core.progress import Pace, Progress, Watch
from worker.core.vector_index import (
    MIB,
    WRONG,
    Create,
    Drop,
    Place,
    Places,
    Step,
    VectorIndex,
    build_bytes,
    memory_bytes,
    steps,
)
from worker.errors import ConfigError, WorkerError
from worker.ports import Catalog, Clock

_LOOK_SECONDS = 0.5
_FEWEST_ROWS_FOR_A_RATE = 1_000
"""A build of fewer rows says more about the server's start than about its speed."""
_LEAST_MEMORY_BYTES = 64 * MIB
"""PostgreSQL's own default. It gives each process of a parallel build 32 MiB, or has fewer."""


class Builder(Protocol):
    """Works on the index of one collection, under its lock; `notices`: what was said."""

    notices: list[str]

    async def count(self) -> int:
        """Return how many rows there are."""

    async def create(
        self,
        place: Place,
        index: VectorIndex,
        *,
        rows: int,
        memory_bytes: int,
        workers: int | None,
    ) -> None:
        """Build an index on the living table."""

    async def analyse(self) -> None:
        """Tell the planner what is stored."""

    async def drop(self, place: Place) -> None:
        """Take an index away, or what is left of one."""

    async def promote(self) -> None:
        """Let the next index be the main one, which is gone."""


class Indexes(Protocol):
    """The vector indexes of all collections."""

    async def look(self, collection: Collection) -> IndexFacts:
        """Return what there is."""

    async def found(self, collection: Collection) -> Places:
        """Return which indexes there are; that costs next to nothing."""

    async def progress(self, collection: Collection) -> BuildProgress | None:
        """Return how far a build is, or whom a drop waits for; None where there is neither."""

    async def keep_rate(self, collection: Collection, rows_per_second: float) -> None:
        """Keep how fast an index was built."""

    def locked(
        self, collection: Collection, application: str
    ) -> AbstractAsyncContextManager[Builder]:
        """Be the only one who works on a collection's index."""


class Built(NamedTuple):
    """What was done about an index; `seconds` are those of its build, None: none was built."""

    collection: str
    did: list[str]
    rows: int | None = None
    seconds: float | None = None
    notices: tuple[str, ...] = ()


async def current(catalog: Catalog, collection: Collection) -> Collection:
    """
    Return a collection with the index that it should have by now.

    Raises:
        ConfigError: its rows are in another table, or it is gone.
    """
    found = await catalog.collection(collection.name)
    if found is None or replace(found, index=collection.index) != collection:
        raise ConfigError(f"the collection {collection.name!r} was changed just now: try again")
    return found


async def is_due(indexes: Indexes, collection: Collection) -> bool:
    """Tell whether somebody has to do something about a collection's index."""
    found = await indexes.found(collection)
    # Rows are counted only where there is no index that readers can use.
    has_one = Place.MAIN in found and all(there.is_valid for there in found.values())
    return not has_one and (await indexes.look(collection)).state in WRONG


async def each(
    collections: Iterable[Collection], work: Callable[[Collection], Awaitable[object]]
) -> None:
    """Work on each, also behind one where that fails; raises the first failure then."""
    errors = []
    for one in collections:
        try:
            await work(one)
        except WorkerError as error:
            errors.append(error)
    if errors:
        raise errors[0]


class IndexBuild:
    """Brings indexes to what they should be; `watch` is told how far that is."""

    def __init__(
        self,
        indexes: Indexes,
        catalog: Catalog,
        options: IndexBuildOptions,
        *,
        clock: Clock,
        watch: Watch,
    ) -> None:
        self._indexes = indexes
        self._catalog = catalog
        self._options = options
        self._clock = clock
        self._watch = watch

    async def run(self, collection: Collection, *, by: str, rebuild: bool = False) -> Built:
        """
        Bring an index to what it should be; `by` is who does it, as others are told.

        Raises:
            ConfigError: somebody else is at it, or it cannot be built.
            StoreUnavailable: it was ended; calling it again goes on.
        """
        async with self._indexes.locked(collection, by) as builder:
            return await self.under_lock(builder, collection, rebuild=rebuild)

    async def under_lock(
        self, builder: Builder, collection: Collection, *, rebuild: bool = False
    ) -> Built:
        """Do the same where the lock is held already."""
        # The lock may have been waited for, and what should be was said anew meanwhile.
        collection = await current(self._catalog, collection)
        found = await self._indexes.found(collection)
        built = Built(collection.name, [])
        for step in steps(collection.index, found, rebuild=rebuild):
            if isinstance(step, Create):
                rows, seconds = await self._create(builder, collection, step.place)
                built = built._replace(rows=rows, seconds=seconds)
            elif isinstance(step, Drop):
                await self._drop(builder, collection, step.place)
            else:
                self._watch(Progress("putting the new index in its place"))
                await builder.promote()
            built.did.append(_did(step))
        return built._replace(notices=tuple(builder.notices))

    async def drop_all(self, builder: Builder, collection: Collection) -> None:
        """Take away what there is, and what is left of a build, where the lock is held."""
        for place in await self._indexes.found(collection):
            await self._drop(builder, collection, place)

    async def _drop(self, builder: Builder, collection: Collection, place: Place) -> None:
        self._watch(Progress("dropping an index"))
        await self._followed(collection, builder.drop(place))

    async def _create(
        self, builder: Builder, collection: Collection, place: Place
    ) -> tuple[int, float]:
        self._watch(Progress("counting rows"))
        rows = await builder.count()
        memory_bytes = memory_for(self._options, collection, rows)
        began = self._clock()
        await self._followed(
            collection,
            builder.create(
                place,
                collection.index,
                rows=rows,
                memory_bytes=memory_bytes,
                workers=self._options.parallel_workers,
            ),
        )
        seconds = self._clock() - began
        self._watch(Progress("analysing"))
        await builder.analyse()
        if rows >= _FEWEST_ROWS_FOR_A_RATE:
            await self._indexes.keep_rate(collection, rows / seconds)
        return rows, seconds

    async def _followed(self, collection: Collection, work: Coroutine[Any, Any, None]) -> None:
        """Await what is done about an index, and tell how far that is meanwhile."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._tell_until_done(collection, tasks.create_task(work))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _tell_until_done(self, collection: Collection, doing: asyncio.Task[None]) -> None:
        """Tell how far a build or a drop is until it has ended."""
        phase, pace = None, Pace(self._clock(), 0.0)
        while (await asyncio.wait({doing}, timeout=_LOOK_SECONDS))[1]:
            # A look that fails says nothing about what is done.
            with suppress(WorkerError):
                progress = await self._indexes.progress(collection)
                if progress is None or doing.done():
                    continue
                now, share = self._clock(), progress.share
                if progress.phase != phase:
                    phase, pace = progress.phase, Pace(now, share or 0.0)
                self._watch(Progress(progress.phase, share, pace.left_seconds(now, share)))


def memory_for(options: IndexBuildOptions, collection: Collection, rows: int) -> int:
    """
    Return what a build is given of the server's memory.

    Raises:
        ConfigError: it cannot be done with what it may take.
    """
    index = collection.index
    need = build_bytes(index, rows, collection.dimensions, collection.storage)
    wanted = max(_LEAST_MEMORY_BYTES, memory_bytes(need))
    if index.kind == "ivfflat" and wanted > options.max_memory_bytes:
        raise ConfigError(
            f"ivfflat needs {wanted // MIB} MiB to learn the lists of {collection.name}: "
            "raise index.max_memory_bytes, or give it fewer lists"
        )
    return min(wanted, options.max_memory_bytes)


def _did(step: Step) -> str:
    match step:
        case Create(Place.MAIN):
            return "built the index"
        case Create():
            return "built the index that replaces it"
        case Drop(Place.MAIN):
            return "dropped the index"
        case Drop():
            return "dropped what was left of a build"
    return "put the new index in its place"
