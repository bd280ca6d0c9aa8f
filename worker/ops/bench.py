"""
One-shot job: what workers reach with this Kafka, this PostgreSQL and this provider.

Three workloads: new documents as fast as they are taken, the same published again as new
versions, and new ones offered at half the rate of the first ones. Reads what workers count by
themselves, and only while each partition has its owner: who takes one over does some records
again, which two would count. Rates are from when the first event is sent to when the last one
is settled, and how late a document is counts from when it was to be sent (coordinated
omission).
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from operator import sub
from typing import NamedTuple, Protocol

from msgspec.structs import replace

from schemas.events import DocumentUpserted
from worker.core.progress import Pace, Progress, Watch
from worker.errors import JobFailed
from worker.ops.offered_load import offered
from worker.ops.synthetic_texts import SyntheticTexts
from worker.ports import Clock
from worker.telemetry import Counters
from worker.telemetry.instruments import FRESHNESS_SECONDS

COLLECTION = "bench"
TENANT = "bench"
SEED = 20_261_125
WORKLOADS = 3
"""In this order; the last one says how soon documents are found."""
LOOK_SECONDS = 0.05
SILENT_SECONDS = 120.0
"""A provider whose quota is a minute's may be silent for one."""


class Totals(NamedTuple):
    """
    What workers have done and used so far, in numbers that only grow and add up.

    `settled` are events, `embedded` chunks; `refused` are requests that were answered 429.
    """

    settled: int = 0
    embedded: int = 0
    requests: int = 0
    refused: int = 0
    cpu_seconds: float = 0.0


Lateness = tuple[int, ...]
"""Stored documents by how late they were, in the buckets of the instrument `freshness`."""


class Look(NamedTuple):
    """
    What workers are and have done so far, in sum; `peak_bytes` of memory is the largest one's.

    They own so many `partitions`, and `idle` of them none. `letters` are dead letters by their
    reason.
    """

    partitions: int = 0
    idle: int = 0
    letters: tuple[tuple[str, int], ...] = ()
    peak_bytes: int = 0
    totals: Totals = Totals()
    late: Lateness = (0,) * (len(FRESHNESS_SECONDS) + 1)


class Workers(Protocol):
    """Some workers of one group that run."""

    def look(self) -> Look:
        """
        Return what they have done so far.

        Raises:
            JobFailed: one has ended by itself.
        """


class Measurement(NamedTuple):
    """What was seen of one workload: what was done in so many seconds."""

    workload: str
    seconds: float
    used: Totals
    late: Lateness
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Events settled a second."""
        return self.used.settled / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of the workers' processor time an event."""
        return self.used.cpu_seconds / self.used.settled * 1e6

    @property
    def requests_for_1000_chunks(self) -> float | None:
        """Requests to the provider; None where nothing was embedded."""
        return self.used.requests / self.used.embedded * 1000 if self.used.embedded else None


def look_at(
    counters: Counters, *, partitions: int, cpu_seconds: float, peak_bytes: int
) -> Look:
    """Return what one worker has done."""
    letters = [
        (reason, count)
        for (how, reason), count in counters.outcomes.items()
        if how == "deadlettered" and count
    ]
    requests = counters.provider_requests_total
    totals = Totals(
        settled=counters.documents_total,
        embedded=counters.chunks_embedded_total,
        requests=requests.total(),
        refused=requests["429"],
        cpu_seconds=cpu_seconds,
    )
    return Look(
        partitions=partitions,
        idle=int(partitions == 0),
        letters=tuple(letters),
        peak_bytes=peak_bytes,
        totals=totals,
        late=tuple(counters.freshness.counts),
    )


def summed(looks: Iterable[Look]) -> Look:
    """Return what several workers have done together."""
    each = list(looks) or [Look()]
    return Look(
        partitions=sum(one.partitions for one in each),
        idle=sum(one.idle for one in each),
        letters=tuple(letter for one in each for letter in one.letters),
        peak_bytes=max(one.peak_bytes for one in each),
        totals=Totals(*map(sum, zip(*(one.totals for one in each), strict=True))),
        late=tuple(map(sum, zip(*(one.late for one in each), strict=True))),
    )


def measurement(workload: str, seconds: float, first: Look, last: Look) -> Measurement:
    """Return what was done between two looks; the peak is the later one."""
    return Measurement(
        workload,
        seconds,
        used=Totals(*map(sub, last.totals, first.totals)),
        late=tuple(map(sub, last.late, first.late)),
        peak_bytes=last.peak_bytes,
    )


def within_seconds(late: Sequence[int], share: float) -> float | None:
    """
    Return a bound that this share of documents did not exceed.

    None: above all bounds, or there are no documents.

        >>> within_seconds([50, 49, 1] + [0] * 13, 0.99)
        0.1
    """
    wanted = share * sum(late) or 1
    below = 0
    for bound, count in zip(FRESHNESS_SECONDS, late[:-1], strict=True):
        below += count
        if below >= wanted:
            return float(bound)
    return None


class Measuring:
    """Looks at workers until so many events are settled."""

    def __init__(self, workers: Workers, *, clock: Clock, watch: Watch) -> None:
        self._workers = workers
        self._clock = clock
        self._watch = watch

    async def joined(self, partitions: int) -> None:
        """
        Return when all partitions have an owner, and all workers have some.

        Raises:
            JobFailed: that takes two minutes, or a worker has ended.
        """
        await self._until(
            lambda look: look.partitions == partitions and not look.idle,
            "workers join the group",
            lambda look: look.partitions / partitions,
        )

    async def workload(self, name: str, events: int) -> Measurement:
        """
        Return what is seen from now on until so many events more are settled.

        Raises:
            JobFailed: nothing was settled for two minutes, a worker has ended, a partition
                has another owner, or a document became a dead letter.
        """
        first, began = self._workers.look(), self._clock()

        def share(look: Look) -> float:
            _check_sound(name, first, look)
            return (look.totals.settled - first.totals.settled) / events

        last = await self._until(lambda look: share(look) >= 1, name, share)
        return measurement(name, self._clock() - began, first, last)

    async def _until(
        self, done: Callable[[Look], bool], name: str, share: Callable[[Look], float]
    ) -> Look:
        began = changed = self._clock()
        look = self._workers.look()
        while not done(look):
            now = self._clock()
            left_seconds = Pace(began, 0.0).left_seconds(now, share(look))
            self._watch(Progress(name, share(look), left_seconds))
            await asyncio.sleep(LOOK_SECONDS)
            seen = self._workers.look()
            if share(seen) != share(look):
                changed = now
            elif now - changed > SILENT_SECONDS:
                raise JobFailed(
                    f"nothing was done for {SILENT_SECONDS:g} s ({name}): "
                    "`embedfleet doctor` looks closer"
                )
            look = seen
        return look


def _check_sound(workload: str, first: Look, look: Look) -> None:
    """
    See that what is counted means something.

    Raises:
        JobFailed: a document became a dead letter, or a partition has another owner.
    """
    if look.letters:
        why = ", ".join(f"{reason} {count}" for reason, count in look.letters)
        raise JobFailed(f"documents become dead letters: {why}")
    if (look.partitions, look.idle) != (first.partitions, first.idle):
        raise JobFailed(f"a partition has lost its worker ({workload}): bench again")


def documents(
    characters: int, count: int, *, version: int = 1, series: str = "d"
) -> Iterator[DocumentUpserted]:
    """Return documents of about so many characters; a series is the same every time."""
    texts = SyntheticTexts(random.Random(f"{SEED} {series}"))  # noqa: S311 - a load, no secret
    return (
        DocumentUpserted(
            tenant=TENANT,
            collection=COLLECTION,
            id=f"{series}{number:07d}",
            version=version,
            text=texts.take(characters),
        )
        for number in range(count)
    )


async def on_time(
    events: Iterable[DocumentUpserted],
    count: int,
    per_second: float,
    *,
    clock: Clock,
    now: Callable[[], datetime],
) -> AsyncIterator[DocumentUpserted]:
    """Yield so many events at this rate, each of which says when it was to be sent."""
    source, began = iter(events), now()
    async for number in offered(count, per_second, clock):
        due = began + timedelta(seconds=number / per_second)
        yield replace(next(source), occurred_at=due)
