"""
An event loop whose time is a number and whose ready callbacks are shuffled by a seed.

Nothing is slept for: when no callback is ready, time jumps to the next timer. The same seed
gives the same order of everything, so a failure replays. Timers come a little early then, as
those of uvloop may by its clock: it counts whole milliseconds. When neither a callback nor a
timer is left, the code waits for something that will never happen: `Stalled` says so.
"""

import asyncio
import heapq
import random
import selectors
from collections.abc import Coroutine
from typing import Any

_EARLY_SECONDS = 1e-6


class Stalled(AssertionError):
    """The coroutine waits, and nothing can ever wake it."""


class _NoSelector(selectors.SelectSelector):
    """Only what the loop needs to be built; there is no input and output in virtual time."""

    def select(self, timeout=None):
        return []


class _Task(asyncio.Task):
    """A task that a set, where asyncio keeps tasks, orders by its number and not by chance."""

    def __init__(self, *arguments, number, **named) -> None:
        self._number = number
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self._number


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """The loop of one universe."""

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(_NoSelector())
        self._now = 1_000.0
        self._random = random.Random(seed) if seed is not None else None
        self._clock_resolution = _EARLY_SECONDS if seed is not None else 1e-9
        self._tasks = 0
        self.set_task_factory(self._numbered)
        self.trace = 0
        """A digest of when how much was ready: equal only where all has run alike."""

    def time(self) -> float:
        return self._now

    def _numbered(self, loop, coroutine, **named) -> _Task:
        self._tasks += 1
        return _Task(coroutine, loop=loop, number=self._tasks, **named)

    def _fires(self, when: float) -> float:
        """Return when a timer comes; time moves, or who waits for the rest never ends."""
        if self._random is None:
            return when
        early = when - self._random.random() * _EARLY_SECONDS
        return early if early > self._now else when

    def _run_once(self) -> None:
        while self._scheduled and self._scheduled[0]._cancelled:
            heapq.heappop(self._scheduled)._scheduled = False
        if not self._ready and not self._stopping:
            if not self._scheduled:
                raise Stalled("everything waits and nothing can wake it")
            self._now = max(self._now, self._fires(self._scheduled[0]._when))
        if self._random is not None and len(self._ready) > 1:
            ready = list(self._ready)
            self._random.shuffle(ready)
            self._ready.clear()
            self._ready.extend(ready)
        self.trace = hash((self.trace, self._now, len(self._ready)))
        self._timer_cancelled_count = 0
        super()._run_once()


def run(main: Coroutine[Any, Any, Any], seed: int | None = None, limit_seconds=1e6):
    """Run a coroutine in a universe of its own; virtual time beyond the limit is a failure."""
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(seed)) as runner:
        return runner.run(_limited(main, limit_seconds))


async def _limited(main, limit_seconds):
    async with asyncio.timeout(limit_seconds):
        return await main
