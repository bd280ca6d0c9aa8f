"""What every stage takes from its surroundings: the clock, tasks, CPU work."""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

Clock = Callable[[], float]
"""A monotonic clock, in seconds."""

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Start a task in the runner's TaskGroup."""

Offload = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Run CPU work off the loop; in a simulation, in line."""
