"""
One-shot job: a worker that works until what was in the topics at its start is done.

Decides whether a load without an index is worth it, and when it has ended: when the progress
that the table has of every partition has reached the log's end of then, whoever of the group
did the work. A partition that is halted here waits for an operator and is not waited for. Never
writes; the worker does, under its claims and fences, beside all others of its group.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import islice
from types import MappingProxyType
from typing import NamedTuple

from worker.core.model import Partition
from worker.core.progress import Pace, Progress, Watch
from worker.core.vector_index import FEW_ROWS, WRONG, State
from worker.errors import TransientError
from worker.ports import Clock

_LOOK_SECONDS = 1.0
_NAMED_PARTITIONS = 3
_HELD = "waiting for partitions that are held (`embedfleet partitions resume`)"
_FEW_ROWS_SHARE = 0.1
"""Of the records that wait: an index of more chunks is not worth being built anew for them."""


class Bounds(NamedTuple):
    """The first offset of a log that is still there, and its end."""

    first: int
    end: int

    def left(self, done: int | None) -> int:
        """Return how many offsets are to be done; `done` None: nothing was read yet."""
        return max(0, self.end - max(self.first, done or 0))


Goal = Mapping[Partition, Bounds]
Done = Mapping[Partition, int | None]
Problems = Mapping[Partition, str]


class Seen(NamedTuple):
    """What the table says of the group: how far partitions are done, and why some are held."""

    done: Done
    held: Problems


class Loading(NamedTuple):
    """A collection that is loaded: how many chunks it has, and how its index is."""

    name: str
    rows: int
    state: State

    @property
    def has_index(self) -> bool:
        """Tell whether readers have an index."""
        return self.state in (State.VALID, State.DIFFERS)


class Ended(NamedTuple):
    """How a load ended: offsets done, those that are left by partition, and why they are."""

    records: int
    left: dict[Partition, int]
    halted: dict[Partition, str]


def left_of(goal: Goal, done: Done) -> dict[Partition, int]:
    """Return how many offsets are to be done yet, of partitions that have any."""
    left = {partition: bounds.left(done.get(partition)) for partition, bounds in goal.items()}
    return {partition: count for partition, count in left.items() if count}


def why_not(lag: int, threshold: int, collections: list[Loading]) -> str | None:
    """
    Say why a load should be left to ordinary workers, None where it should not.

    One that was ended in its midst, and has left an index that is due, goes on whatever waits.
    """
    if not collections:
        return "no collection should have an index, so there is none to do without"
    if any(one.state in WRONG for one in collections):
        return None
    if lag < threshold:
        return f"{lag:,} records wait, fewer than the threshold of {threshold:,}"
    large = [one for one in collections if one.has_index and one.rows > _FEW_ROWS_SHARE * lag]
    if large:
        return (
            f"{large[0].name} has {large[0].rows:,} chunks under an index already, and "
            f"{lag:,} records wait: its readers would miss it for too little"
        )
    return None


def missed(collections: list[Loading]) -> list[Loading]:
    """Return the collections whose readers would miss their index."""
    return [one for one in collections if one.has_index and one.rows >= FEW_ROWS]


class Load:
    """
    Watches a worker until the goal is reached, and stops it then.

    `halted` tells which partitions of this worker wait for an operator, and why: they are not
    waited for. One that is held, of whichever worker, may go on by itself, and is.
    """

    def __init__(
        self,
        goal: Goal,
        look: Callable[[], Awaitable[Seen]],
        *,
        halted: Callable[[], Problems],
        stop: asyncio.Event,
        clock: Clock,
        watch: Watch,
    ) -> None:
        self._goal = goal
        self._look = look
        self._halted = halted
        self._stop = stop
        self._clock = clock
        self._watch = watch
        self.ended: Ended | None = None

    async def run(self) -> None:
        """Stop the worker when nothing is left but what is halted."""
        before = left_of(self._goal, (await self._patient_look()).done)
        all_, began = sum(before.values()), self._clock()
        while True:
            seen = await self._patient_look()
            left = left_of(self._goal, seen.done)
            halted = {part: why for part, why in self._halted().items() if part in left}
            records = all_ - sum(left.values())
            if left.keys() == halted.keys():
                self.ended = Ended(records, left, halted)
                self._stop.set()
                return
            share = records / all_ if all_ else 0.0
            left_seconds = Pace(began, 0.0).left_seconds(self._clock(), share)
            held = {part: why for part, why in seen.held.items() if part in left}
            if left.keys() == halted.keys() | held.keys():
                self._watch(Progress(_HELD, share, None, _detail(left, held)))
            else:
                self._watch(Progress("loading", share, left_seconds, _detail(left)))
            await asyncio.sleep(_LOOK_SECONDS)

    async def _patient_look(self) -> Seen:
        while True:
            with suppress(TransientError):
                return await self._look()
            await asyncio.sleep(_LOOK_SECONDS)


def _detail(left: Mapping[Partition, int], held: Problems = MappingProxyType({})) -> str:
    """Say how much is left, and where, once that is not everywhere; and why it is held."""
    where = ""
    if len(left) <= _NAMED_PARTITIONS:
        where = f" in {', '.join(sorted(partition.name for partition in left))}"
    why = "".join(
        f"; {partition.name}: {problem}"
        for partition, problem in islice(held.items(), _NAMED_PARTITIONS)
    )
    return f"{sum(left.values()):,} records to go{where}{why}"
