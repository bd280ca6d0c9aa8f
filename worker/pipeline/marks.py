"""
The mark of the record that a worker is busy with, in the crash ledger (`core.isolation`).

Only works that run alone in their partition are marked. A mark stands while the worker is busy
with the record, not while that waits: a process that is killed meanwhile has not died of it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from worker.core.isolation import Alone
from worker.core.model import Claim, Work
from worker.errors import FencedError, TransientError
from worker.pipeline.backoff import until_done
from worker.ports import Crashes


class Marks:
    """The marks of a worker's records."""

    def __init__(
        self,
        crashes: Crashes,
        *,
        jitter: Callable[[], float],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self._crashes = crashes
        self._jitter = jitter
        self._spawn = spawn

    async def set(self, claim: Claim, alone: Alone | None) -> None:
        """
        Write a mark, or take it back; as long as the database is away, wait.

        Raises:
            FencedError: another claim has begun.
        """
        await until_done(lambda: self._crashes.mark(claim, alone), self._jitter)

    async def gave_up(self, claim: Claim, records: int) -> None:
        """
        Write how many records in a row were given up; as long as the database is away, wait.

        Raises:
            FencedError: another claim has begun.
        """
        await until_done(lambda: self._crashes.gave_up(claim, records), self._jitter)

    @asynccontextmanager
    async def busy(
        self, works: Iterable[Work], limit_seconds: float | None = None
    ) -> AsyncIterator[None]:
        """
        Mark those of the works that run alone while the block runs, or for a while at most.

        Raises nothing of its own: what cannot be marked is not suspected.
        """
        alone = [work for work in works if work.is_alone]
        for work in alone:
            await self.blame(work)
        timers = [
            self._spawn(self._lift(work, limit_seconds)) for work in alone if limit_seconds
        ]
        try:
            yield
        finally:
            for timer in timers:
                timer.cancel()
            for work in alone:
                await self._lift(work)

    async def blame(self, work: Work) -> None:
        """Mark a work that runs alone: the worker is busy with it, or ends because of it."""
        if work.is_alone:
            await self._try(work, Alone(work.position.offset, fetching=False))

    async def _lift(self, work: Work, after_seconds: float | None = None) -> None:
        if after_seconds:
            await asyncio.sleep(after_seconds)
        await self._try(work, None)

    async def _try(self, work: Work, alone: Alone | None) -> None:
        with suppress(FencedError, TransientError):
            await self._crashes.mark(work.claim, alone)
