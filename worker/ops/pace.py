"""A steady load: things offered at a rate, whatever becomes of them."""

import asyncio
import time
from collections.abc import AsyncIterator


async def offered(count: int, per_second: float) -> AsyncIterator[int]:
    """Yield the numbers below `count` in time; one that is late does not delay the next."""
    began = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        yield number
