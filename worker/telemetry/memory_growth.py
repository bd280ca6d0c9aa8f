"""
Where memory grows: the lines of code whose allocations grew most since the last look.

For staging: tracing every allocation makes a worker about twice as slow. A snapshot is taken
and compared off the loop.
"""

import asyncio
import tracemalloc
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

from worker.ports import Offload

TOP_LINES = 10


class Growth(NamedTuple):
    """One line of code and what it holds more than at the last look."""

    line: str
    grown_bytes: int
    held_bytes: int


class MemoryGrowth:
    """Reports the top growth every so often."""

    def __init__(
        self,
        report: Callable[[list[Growth]], None],
        *,
        every_seconds: float = 60,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        offload: Offload = asyncio.to_thread,
    ) -> None:
        self._report = report
        self._every_seconds = every_seconds
        self._sleep = sleep
        self._offload = offload

    async def run(self) -> None:
        """Trace, look and report until cancelled; tracing ends with it."""
        tracemalloc.start()
        try:
            before = await self._offload(_snapshot)
            while True:
                await self._sleep(self._every_seconds)
                now = await self._offload(_snapshot)
                self._report(await self._offload(partial(_growth, before, now)))
                before = now
        finally:
            tracemalloc.stop()


def _snapshot() -> tracemalloc.Snapshot:
    ours = (tracemalloc.Filter(inclusive=False, filename_pattern=tracemalloc.__file__),)
    return tracemalloc.take_snapshot().filter_traces(ours)


def _growth(before: tracemalloc.Snapshot, now: tracemalloc.Snapshot) -> list[Growth]:
    lines = now.compare_to(before, "lineno")[: 4 * TOP_LINES]
    grown = [
        Growth(str(line.traceback), line.size_diff, line.size)
        for line in lines
        if line.size_diff > 0
    ]
    return grown[:TOP_LINES]
