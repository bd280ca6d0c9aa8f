"""
The mark of the record that is alone in flight, in the crash ledger (`core.isolation`).

It stands while the worker is busy with the record, not while that only waits for the provider:
a process that is killed meanwhile has not died of it.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from worker.core.isolation import Alone
from worker.core.model import Claim, Work
from worker.errors import TransientError
from worker.ports import Crashes

_AGAIN_SECONDS = 0.5


class Marks:
    """The mark of the record that is alone in flight."""

    def __init__(self, crashes: Crashes) -> None:
        self._crashes = crashes

    async def set(self, claim: Claim, alone: Alone | None) -> None:
        """
        Write a mark, or take it back; as long as the database is away, wait.

        Raises:
            FencedError: another claim has begun.
        """
        while True:
            try:
                return await self._crashes.mark(claim, alone)
            except TransientError:
                await asyncio.sleep(_AGAIN_SECONDS)

    @asynccontextmanager
    async def lifted(self, work: Work) -> AsyncIterator[None]:
        """Take the mark of a work back while it waits; where that fails it stays away."""
        await self.set(work.claim, None)
        yield
        await self.set(work.claim, Alone(work.position.offset, fetching=False))
