"""
What is tried again for as long as a server is away.

Longer after every try, so that nobody is kept busy; never as long as another worker waits, so
that they do not all come at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from worker.errors import TransientError

T = TypeVar("T")

_FIRST_SECONDS = 0.1
# Nobody notices a server that is back later than this.
_LONGEST_SECONDS = 5.0


def backoff(jitter: Callable[[], float]) -> Iterator[float]:
    """Yield how many seconds to wait before each next try, without an end."""
    seconds = _FIRST_SECONDS
    while True:
        yield seconds * (0.5 + jitter())
        seconds = min(2 * seconds, _LONGEST_SECONDS)


async def until_done(call: Callable[[], Awaitable[T]], jitter: Callable[[], float]) -> T:
    """Call until it is done, and return its result; what is not transient is raised."""
    waits = backoff(jitter)
    while True:
        try:
            return await call()
        except TransientError:
            await asyncio.sleep(next(waits))
