"""
The port `Embedder` within its provider's quota: no faster than told, no wider than it bears.

Owns the turn of the callers: each waits for quota (requests and tokens a minute) and for room
under the adaptive limit, in order, and only then is the embedder behind it called. So waiting
for quota never looks like a slow provider, and a breaker behind it sees calls, not queues. Who
would be refused behind it anyway is refused before: a model that is left alone takes neither a
turn nor quota from the others. Never retries; every error of the embedder passes through as it
is.
"""

import asyncio
from collections.abc import Awaitable, Callable

from worker.core.limits import AdaptiveLimit, RateLimits
from worker.core.model import Vector
from worker.core.packing import estimate_tokens
from worker.core.retry import MAX_HINT_SECONDS
from worker.errors import RateLimited, RejectedInput
from worker.ports import Clock, Embedder, EmbeddingRequest


class LimitedEmbedder:
    """An embedder that is called at a rate and a width that its provider answers."""

    def __init__(
        self,
        embedder: Embedder,
        limit: AdaptiveLimit,
        rates: RateLimits,
        *,
        clock: Clock,
        refuse: Callable[[str], None] = lambda _: None,
        max_pause_seconds: float = MAX_HINT_SECONDS,
    ) -> None:
        """
        Wrap an embedder; `refuse` raises for a model that is not to be asked for now.

        A longer pause than `max_pause_seconds` is the breaker's to keep, for one model alone.
        """
        self._embedder = embedder
        self._limit = limit
        self._rates = rates
        self._clock = clock
        self._refuse = refuse
        self._max_pause_seconds = max_pause_seconds
        # Fair: who came first has the first turn.
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self.held_back_seconds = 0.0

    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        """Return one vector a text, in order; raises what the embedder behind it raises."""
        self._refuse(request.model)
        begun = await self._begin(sum(map(estimate_tokens, request.texts)))
        end: Callable[[int], None] = self._limit.ended
        try:
            vectors = await self._embedder.embed(request)
            end = self._answered
        except RejectedInput:
            end = self._answered
            raise
        except RateLimited as error:
            end = self._limit.throttled
            hint = error.retry_after_seconds or 0.0
            if hint <= self._max_pause_seconds:
                self._rates.pause(hint, self._clock())
            raise
        else:
            return vectors
        finally:
            end(begun)
            self._room.set()

    async def close(self) -> None:
        """Close the embedder behind it."""
        await self._embedder.close()

    def _answered(self, begun: int) -> None:
        self._limit.answered(begun, self._clock())

    async def _begin(self, tokens: int) -> int:
        async with self._turn:
            # Again after each wait: a new limit holds at once, nothing is taken in between.
            while wait_seconds := self._rates.reserve(tokens, self._clock()):
                await self._wait(asyncio.sleep(wait_seconds), is_for_quota=True)
            while not self._limit.has_room:
                self._room.clear()
                await self._wait(self._room.wait(), is_for_quota=self._limit.is_narrowed)
            return self._limit.begin()

    async def _wait(self, wait: Awaitable[object], *, is_for_quota: bool) -> None:
        began = self._clock()
        try:
            await wait
        finally:
            if is_for_quota:
                self.held_back_seconds += self._clock() - began
