"""
Partitions that run one record at a time, and batches that are given up unread.

Owns whose turn it is: of all such partitions of a worker one record is in flight at a time,
and while it is a suspect nothing else is (`core.isolation`). What is in flight is marked in the
crash ledger before it is fetched and before it is worked on; the mark is taken back while it
waits for the provider, and when it has ended.

Never tracks a record: the poll task does, or, of a batch that nobody polls, `skip`.
"""

import asyncio
from collections.abc import Callable

import structlog

from schemas.dead_letter import Reason
from worker.core.isolation import Alone
from worker.core.lifecycle import PartitionLife, Phase
from worker.core.model import Claim, Position, Record
from worker.errors import FencedError, TransientError
from worker.pipeline.decode import Decode
from worker.pipeline.dispatch import Dispatch
from worker.pipeline.marks import Marks
from worker.ports import BatchSpan, PolledBatch, Source

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.02
_AGAIN_SECONDS = 0.5


class Skip:
    """Gives up a batch that cannot be read: a pointer to it is dead-lettered in its place."""

    def __init__(self, dispatch: Dispatch, decode: Decode) -> None:
        self._dispatch = dispatch
        self._decode = decode

    async def __call__(
        self, life: PartitionLife, source: Source, offset: int, reason: Reason, why: str
    ) -> None:
        """Go on behind the batch at an offset of a partition that nobody polls meanwhile."""
        claim = life.claim
        assert claim is not None
        while _runs(life, claim):
            try:
                span = await source.batch(life.partition, offset)
            except TransientError:
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                if _runs(life, claim):
                    self._pass(life, source, offset, span, reason, why)
                return

    def _pass(
        self,
        life: PartitionLife,
        source: Source,
        offset: int,
        span: BatchSpan | None,
        reason: Reason,
        why: str,
    ) -> None:
        following = offset
        if span is not None:
            first, following = max(offset, span.first), span.last + 1
            record = Record(Position(*life.partition, first), span.timestamp_ms, None, None)
            life.track(record)
            self._dispatch.add(self._decode.rejected(life, record, reason, _named(span, why)))
            life.advance(following)
        if not source.begin(life.assignment, life.partition, following):
            life.end()
        self._dispatch.pump()


class OneByOne:
    """The partitions of a worker that run one record at a time."""

    def __init__(self, marks: Marks, dispatch: Dispatch, decode: Decode, skip: Skip) -> None:
        self._marks = marks
        self._dispatch = dispatch
        self._decode = decode
        self._skip = skip
        self._turn = asyncio.Lock()
        self._polled: PartitionLife | None = None
        self._record: Record | None = None
        self._only: PartitionLife | None = None
        self._turns = 0

    def turn(self) -> None:
        """Take note that the poll task has taken in all it polled, and asks `may_poll` anew."""
        self._turns += 1

    def may_poll(self, life: PartitionLife) -> bool:
        """Tell whether a partition may be polled now."""
        if life.isolation is not None:
            return life is self._polled
        return self._only is None

    def take(self, batch: PolledBatch) -> None:
        """Take over what was polled, and tracked, of the partition whose turn it is."""
        self._polled = None
        self._record = batch.records[0] if batch.records else None

    async def run(self, life: PartitionLife, source: Source) -> None:
        """Work on a partition one record at a time, until it may run freely or has ended."""
        claim = life.claim
        assert claim is not None
        log.warning("one record at a time", action="isolated", **_place(life))
        try:
            while _runs(life, claim) and not self._is_over(life):
                await _until(lambda: not _runs(life, claim) or bool(source.lag(life.partition)))
                async with self._turn:
                    await self._one(life, claim, source)
        except FencedError:
            return  # the committer notices, and claims anew
        if _runs(life, claim):
            log.info("runs freely again", action="isolation_over", **_place(life))
            life.isolation = None

    def _is_over(self, life: PartitionLife) -> bool:
        return life.isolation is None or life.isolation.is_over(life.handed_out)

    async def _one(self, life: PartitionLife, claim: Claim, source: Source) -> None:
        try:
            here = Alone(life.handed_out, fetching=True)
            if life.isolation is not None and life.isolation.is_convicted(here):
                why = "the worker died twice of fetching it"
                await self._skip(life, source, here.offset, Reason.WORKER_KILLER, why)
                return
            record = await self._fetch(life, claim, here)
            if record is not None and _runs(life, claim):
                await self._work(life, claim, record)
                await self._marks.set(claim, None)
        finally:
            self._polled = self._record = self._only = None

    async def _fetch(self, life: PartitionLife, claim: Claim, here: Alone) -> Record | None:
        await self._begin(life, claim, here)
        self._polled = life
        # It also moves where its batch cannot be read, and is skipped.
        await _until(lambda: not _runs(life, claim) or life.handed_out != here.offset)
        return self._record

    async def _work(self, life: PartitionLife, claim: Claim, record: Record) -> None:
        this = Alone(record.position.offset, fetching=False)
        if life.isolation is not None and life.isolation.is_convicted(this):
            why = "the worker died twice while it was alone with it"
            work = self._decode.rejected(life, record, Reason.WORKER_KILLER, why)
        else:
            await self._begin(life, claim, this)
            if not _runs(life, claim):
                return
            work = self._decode(life, record)
            work.is_alone = True
        self._dispatch.add(work)
        self._dispatch.pump()
        await _until(lambda: not _runs(life, claim) or life.in_flight == 0)

    async def _begin(self, life: PartitionLife, claim: Claim, alone: Alone) -> None:
        """Mark a record; a suspect waits until nothing else is in flight."""
        if life.isolation is not None and life.isolation.is_suspect(alone):
            self._only = life
            queue, turns = self._dispatch.scheduler, self._turns
            await _until(lambda: not _runs(life, claim) or self._turns > turns)
            await _until(lambda: not _runs(life, claim) or queue.documents == 0)
        await self._marks.set(claim, alone)


def _runs(life: PartitionLife, claim: Claim) -> bool:
    return life.claim == claim and life.phase is Phase.RUNNING


def _place(life: PartitionLife) -> dict[str, str | int]:
    return {
        "partition": f"{life.partition.topic}/{life.partition.number}",
        "offset": life.handed_out,
    }


def _named(span: BatchSpan, why: str) -> str:
    return (
        f"offsets {span.first} to {span.last}: a batch of {span.records} records, "
        f"{span.size_bytes} bytes, compression {span.codec}: {why}"
    )


async def _until(fact: Callable[[], bool]) -> None:
    while not fact():  # noqa: ASYNC110 - rare, and of facts of several owners
        await asyncio.sleep(_LOOK_SECONDS)
