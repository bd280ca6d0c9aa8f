"""
Builds the indexes that are due, beside the work of a worker that has caught up.

A worker builds them, not a timer of an operator's, so that a collection that grows is not
forgotten; `index.build_due` leaves it to `embedfleet index build --due`. Only where little
waits in the topic: what is written while an index is built is put into it row by row at its
end, and so is all that comes later, so a first load is faster without one. At the threshold an
index is small: it is built in seconds, and a restart of the worker costs little; what that
leaves behind is repaired by whoever looks next. Of all workers one builds, under the
collection's lock. One whose index cannot be built keeps no other
from its own. Never ends a worker: what fails is logged and tried again, ever more seldom.
"""

import asyncio
from collections.abc import Callable

import structlog

from worker.core.model import Collection
from worker.errors import WorkerError
from worker.ops.index_build import IndexBuild, Indexes, each, is_due
from worker.ports import Catalog

log = structlog.get_logger(__name__)

BY = "embedfleet run"
_LONGEST_PAUSE_SECONDS = 3600.0


class IndexUpkeep:
    """Looks for indexes that are due; `has_caught_up` tells whether this is the time."""

    def __init__(
        self,
        catalog: Catalog,
        indexes: Indexes,
        build: IndexBuild,
        *,
        check_seconds: float,
        has_caught_up: Callable[[], bool],
    ) -> None:
        self._catalog = catalog
        self._indexes = indexes
        self._build = build
        self._check_seconds = check_seconds
        self._has_caught_up = has_caught_up

    async def run(self) -> None:
        """Look for ever."""
        pause_seconds = self._check_seconds
        while True:
            await asyncio.sleep(pause_seconds)
            try:
                if self._has_caught_up():
                    await each(await self._catalog.collections(), self._work)
                pause_seconds = self._check_seconds
            except WorkerError as error:
                longest = max(self._check_seconds, _LONGEST_PAUSE_SECONDS)
                pause_seconds = min(2 * pause_seconds, longest)
                log.warning(
                    "indexes that are due are not built",
                    action="index_failed",
                    error=str(error),
                    again_in_seconds=round(pause_seconds),
                )

    async def _work(self, collection: Collection) -> None:
        if not await is_due(self._indexes, collection):
            return
        log.info("an index is due", action="index_due", collection=collection.name)
        built = await self._build.run(collection, by=BY)
        if not built.did:
            return  # another worker was quicker
        log.info(
            "built an index",
            action="index_built",
            collection=collection.name,
            did=built.did,
            rows=built.rows,
            seconds=None if built.seconds is None else round(built.seconds, 1),
            notices=built.notices,
        )
