"""
What the admin port says of the size of the fleet (`GET /scale`).

Looks at all partitions of the group, not only at those of this worker, and compares with how it
was a while ago. Never scales anything.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from worker.core.scaling import Advice, Load, advise
from worker.ports import Clock

LOOK_SECONDS = 10.0
"""Who asks more often gets the same answer."""
SPAN_SECONDS = 60.0
"""Rates are of about this time."""


class FleetView(NamedTuple):
    """All partitions of a group at one moment; `ended` and `settled` are sums of offsets."""

    workers: int
    partitions: int
    ended: int
    settled: int


class Own(NamedTuple):
    """What a worker knows of itself; `held_back_seconds`: what quotas have cost so far."""

    busy_share: float
    is_open: bool
    held_back_seconds: float


class _Seen(NamedTuple):
    at: float
    fleet: FleetView
    own: Own


class Scaling:
    """The advice, from two looks."""

    def __init__(
        self,
        look: Callable[[], Awaitable[FleetView]],
        own: Callable[[], Own],
        *,
        drain_seconds: float,
        clock: Clock,
    ) -> None:
        self._look = look
        self._own = own
        self._drain_seconds = drain_seconds
        self._clock = clock
        self._seen: list[_Seen] = []

    async def __call__(self) -> Advice:
        """
        Return how many workers there should be.

        Raises:
            StoreUnavailable: the database does not answer.
            BrokerUnavailable: Kafka does not answer.
        """
        now = self._clock()
        if not self._seen or now - self._seen[-1].at >= LOOK_SECONDS:
            self._seen.append(_Seen(now, await self._look(), self._own()))
            # The last one that is old enough is what the new one is compared with.
            old = [n for n, seen in enumerate(self._seen) if now - seen.at >= SPAN_SECONDS]
            del self._seen[: max(old, default=0)]
        return advise(_load(self._seen[0], self._seen[-1]), self._drain_seconds)


def _load(before: _Seen, now: _Seen) -> Load:
    seconds = max(now.at - before.at, 1e-9)
    # A topic that was created again, or a restored table, goes back.
    arrived = max(0, now.fleet.ended - before.fleet.ended)
    settled = max(0, now.fleet.settled - before.fleet.settled)
    held_back = now.own.held_back_seconds - before.own.held_back_seconds
    return Load(
        workers=now.fleet.workers,
        partitions=now.fleet.partitions,
        lag=max(0, now.fleet.ended - now.fleet.settled),
        arriving=arrived / seconds,
        settled=settled / seconds,
        busy_share=now.own.busy_share,
        is_open=now.own.is_open,
        is_quota_bound=held_back > seconds / 2,
    )
