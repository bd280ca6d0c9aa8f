"""
Partitions that run one record at a time, to find the record of which workers die.

Owns which of them may be polled, and what was polled and not begun. Each takes its next record
when the one before has ended, or only waits for something: then it is in no danger, and goes on
beside. A suspect has the worker to itself (`core.isolation`): nothing else is polled, and it
begins when nothing else is being worked on. For that it waits for a while, then lets the others
go on for a while, and so forth, so that it never holds them up for good.

Never tracks a record: the poll task does.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from schemas.dead_letter import Reason
from worker.core.isolation import Alone, Isolation
from worker.core.lifecycle import PartitionLife
from worker.core.model import Claim, Record, Work
from worker.errors import FencedError, TransientError
from worker.pipeline.decode import Decode
from worker.pipeline.dispatch import Dispatch
from worker.pipeline.give_up import GiveUp
from worker.pipeline.marks import Marks
from worker.ports import PolledBatch, Source

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.02
# Longer than a record is worked on that does not wait for anybody.
_PATIENCE_SECONDS = 10.0
# A suspect holds the others up for a quarter of the time, while it waits for its turn.
_OTHERS_SECONDS = 30.0


class OneByOne:
    """The partitions of a worker that run one record at a time."""

    def __init__(
        self, marks: Marks, dispatch: Dispatch, decode: Decode, give_up: GiveUp
    ) -> None:
        self._marks = marks
        self._dispatch = dispatch
        self._decode = decode
        self._give_up = give_up
        self._suspects = asyncio.Lock()
        self._suspect: PartitionLife | None = None
        self._only: PartitionLife | None = None
        self._polled: set[PartitionLife] = set()
        self._taken: dict[PartitionLife, Record] = {}
        self._turns = 0

    def turn(self) -> None:
        """Take note that the poll task has taken in all it polled, and asks `may_poll` anew."""
        self._turns += 1

    def may_poll(self, life: PartitionLife) -> bool:
        """Tell whether a partition may be polled now."""
        if self._only is not None and self._only is not life:
            return False
        return life.isolation is None or life in self._polled

    def take(self, life: PartitionLife, batch: PolledBatch) -> None:
        """Take over what was polled, and tracked, of a partition whose turn it is."""
        self._polled.discard(life)
        self._taken.update((life, record) for record in batch.records)

    async def run(
        self, life: PartitionLife, source: Source, commit: Callable[[], Awaitable[None]]
    ) -> None:
        """
        Work on a partition one record at a time, until it may run freely or has ended.

        Commits behind each record: the next owner begins at the one that this one dies of.
        """
        claim, isolation = life.claim, life.isolation
        assert claim is not None
        assert isolation is not None
        name = life.partition.name
        log.warning("one record at a time", action="isolated", partition=name)
        try:
            while life.runs(claim) and not isolation.is_over(life.handed_out):
                await _until(lambda: not life.runs(claim) or bool(source.lag(life.partition)))
                await self._next(life, claim, isolation, source)
                with suppress(TransientError):
                    await commit()
        except FencedError:
            life.fence(claim)
            return
        if life.runs(claim):
            log.info("runs freely again", action="isolation_over", partition=name)
            life.isolation = None

    async def _next(
        self, life: PartitionLife, claim: Claim, isolation: Isolation, source: Source
    ) -> None:
        try:
            here = Alone(life.handed_out, fetching=True)
            if isolation.is_convicted(here):
                await self._convict(claim, isolation)
                why = "the worker died twice of fetching it"
                await self._give_up(life, source, here.offset, Reason.WORKER_KILLER, why)
                return
            record = await self._fetch(life, claim, isolation, here)
            if record is not None and life.runs(claim):
                await self._work(life, claim, isolation, record)
        finally:
            self._polled.discard(life)
            self._taken.pop(life, None)
            self._let_go(life)

    async def _fetch(
        self, life: PartitionLife, claim: Claim, isolation: Isolation, here: Alone
    ) -> Record | None:
        await self._begin(life, claim, isolation, here)
        self._polled.add(life)
        # It also moves where its batch cannot be read, and is given up.
        await _until(lambda: not life.runs(claim) or life.handed_out != here.offset)
        if life.runs(claim):
            await self._marks.set(claim, None)
        return self._taken.pop(life, None)

    async def _work(
        self, life: PartitionLife, claim: Claim, isolation: Isolation, record: Record
    ) -> None:
        this = Alone(record.position.offset, fetching=False)
        if isolation.is_convicted(this):
            await self._convict(claim, isolation)
            why = "the worker died twice while it was alone with it"
            rejected = self._decode.rejected(life, record, Reason.WORKER_KILLER, why)
            await self._carry(life, claim, rejected)
            return
        await self._begin(life, claim, isolation, this)
        if not life.runs(claim):
            return
        work = self._decode(life, record)
        work.is_alone = True
        await self._marks.set(claim, None)
        has_passed = await self._carry(life, claim, work)
        work.is_alone = False
        if has_passed and isolation.given_up:
            isolation.given_up = 0
            await self._marks.gave_up(claim, 0)

    async def _carry(self, life: PartitionLife, claim: Claim, work: Work) -> bool:
        """Let a work run for as long as it need not wait; tell whether it has ended."""
        self._dispatch.add(work)
        self._dispatch.pump()
        offset = work.position.offset
        await _until(
            lambda: not (life.runs(claim) and life.has_in_flight(offset)), _PATIENCE_SECONDS
        )
        return life.runs(claim) and not life.has_in_flight(offset)

    async def _convict(self, claim: Claim, isolation: Isolation) -> None:
        isolation.given_up += 1
        await self._marks.gave_up(claim, isolation.given_up)

    async def _begin(
        self, life: PartitionLife, claim: Claim, isolation: Isolation, alone: Alone
    ) -> None:
        """Mark a record; a suspect waits until it has the worker to itself."""
        if isolation.is_suspect(alone) and self._suspect is not life:
            await self._suspects.acquire()
            self._suspect = self._only = life
            while life.runs(claim) and not await self._is_by_itself(life, claim):
                log.warning(
                    "a record of which workers died waits until nothing else is in flight",
                    action="suspect_waits",
                    partition=life.partition.name,
                )
                self._only = None
                await _until(lambda: not life.runs(claim), _OTHERS_SECONDS)
                self._only = life
        await self._marks.set(claim, alone)

    async def _is_by_itself(self, life: PartitionLife, claim: Claim) -> bool:
        turns = self._turns
        await _until(lambda: not life.runs(claim) or self._turns > turns)
        return await _until(
            # What waits for a collection or a model that is left alone is not worked on.
            lambda: self._dispatch.in_flight <= self._dispatch.patient,
            _PATIENCE_SECONDS,
        )

    def _let_go(self, life: PartitionLife) -> None:
        if self._suspect is life:
            self._suspect = self._only = None
            self._suspects.release()


async def _until(fact: Callable[[], bool], limit_seconds: float | None = None) -> bool:
    """Wait until something is true, for a while at most; tell whether it is."""
    try:
        async with asyncio.timeout(limit_seconds):
            while not fact():  # noqa: ASYNC110 - rare, and of facts of several owners
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        return fact()
    return True
