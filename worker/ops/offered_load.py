"""An offered load: things that come at a steady rate, whatever becomes of them."""

import asyncio
from collections.abc import AsyncIterator

from worker.ports import Clock


async def offered(count: int, per_second: float, clock: Clock) -> AsyncIterator[int]:
    """Yield the numbers below `count` in time; one that is late does not delay the next."""
    began = clock()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / per_second - clock()))
        yield number
