"""
One measured run: a backlog is worked off, and what it took is read from outside.

Measured from the first document that is stored to the last, so that nobody's start counts.
Every event raises a document's version by one, so the sum of the stored versions is the number
of events that are settled, superseded ones included.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.bench.load import Load
from tests.bench.servers import Provider, Servers, cost
from tests.bench.subject import Subject

LOOK_SECONDS = 0.05
QUIET_SECONDS = 20
"""A subject that stores nothing for longer is done, whatever is missing."""
START_SECONDS = 60


class Costs(NamedTuple):
    """CPU seconds so far, by who used them."""

    own: float
    postgres: float
    kafka: float
    provider: float


@dataclass(frozen=True)
class Run:
    """What one run showed."""

    events: int
    seconds: float
    costs: Costs
    peak_bytes: int
    provider: Mapping[str, Any]
    wrong: Mapping[str, int]

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def own_us(self) -> float:
        """CPU microseconds of the subject for an event."""
        return self.costs.own / self.events * 1e6

    @property
    def is_right(self) -> bool:
        """Whether the table shows exactly what was published."""
        return not any(self.wrong.values())


class Look(NamedTuple):
    """What was seen at one moment."""

    at: float
    settled: int
    costs: Costs


class Meter:
    """Looks at a subject and the servers around it."""

    def __init__(
        self,
        servers: Servers,
        subject: Subject,
        provider: Provider,
        progress: Callable[[], Awaitable[int]] | None = None,
    ) -> None:
        self.servers = servers
        self.subject = subject
        self.provider = provider
        self._progress = progress or subject.versions

    async def look(self) -> Look:
        """Return how far it is, and what all have used so far."""
        self.subject.check_alive()
        settled = await self._progress()
        return Look(time.monotonic(), settled, self.costs())

    def costs(self) -> Costs:
        """Return what all have used so far."""
        return Costs(
            self.subject.costs().cpu_seconds,
            *(
                cost(pid).cpu_seconds
                for pid in (
                    self.servers.postgres.pid,
                    self.servers.kafka.pid,
                    self.provider.pid,
                )
            ),
        )

    async def begun(self, above: int = 0) -> Look:
        """Wait until something more is stored."""
        async with asyncio.timeout(START_SECONDS):
            while (look := await self.look()).settled <= above:  # noqa: ASYNC110 - a table's
                await asyncio.sleep(LOOK_SECONDS)
        return look

    async def done(self, goal: int) -> Look:
        """Wait until all is stored, or nothing more comes; return the last change."""
        last = await self.look()
        while last.settled < goal:
            await asyncio.sleep(LOOK_SECONDS)
            look = await self.look()
            if look.settled != last.settled:
                last = look
            elif look.at - last.at > QUIET_SECONDS:
                break
        return last


async def work_off(
    servers: Servers, subject: Subject, provider: Provider, load: Load, goal: int
) -> Run:
    """Measure a backlog that was published before the subject was started."""
    return await measured(Meter(servers, subject, provider), load, 0, goal)


async def measured(meter: Meter, load: Load, settled: int, goal: int) -> Run:
    """Measure from the first event that is settled beyond `settled` to the goal."""
    first = await meter.begun(settled)
    last = await meter.done(goal)
    return Run(
        events=last.settled - first.settled,
        seconds=last.at - first.at,
        costs=Costs(*(end - start for end, start in zip(last.costs, first.costs, strict=True))),
        peak_bytes=meter.subject.costs().peak_bytes,
        provider=await meter.provider.stats(),
        wrong=await meter.subject.wrong(load.newest),
    )
