"""
A batch that cannot be read is given up: a pointer to it is dead-lettered in its place.

Goes by the raw header of the batch alone. Where that says nothing that fits, going on would
lose something, so the partition is halted. Tracks the pointer itself: nobody polls meanwhile.
"""

import asyncio

import structlog

from schemas.dead_letter import Reason
from worker.core.lifecycle import PartitionLife
from worker.core.model import Claim, Position, Record
from worker.errors import PermanentError, TransientError
from worker.pipeline.decode import Decode
from worker.pipeline.dispatch import Dispatch
from worker.ports import BatchSpan, Clock, Source

log = structlog.get_logger(__name__)

_AGAIN_SECONDS = 0.5


class GiveUp:
    """What goes on behind a batch that nobody can read."""

    def __init__(self, dispatch: Dispatch, decode: Decode, *, clock: Clock) -> None:
        self._dispatch = dispatch
        self._decode = decode
        self._clock = clock

    async def __call__(
        self, life: PartitionLife, source: Source, offset: int, reason: Reason, why: str
    ) -> None:
        """Give up the batch at an offset, and go on behind it, or halt the partition."""
        claim = life.claim
        assert claim is not None
        life.gives_up = True
        try:
            span = await self._span(life, claim, source, offset)
        except PermanentError as error:
            if life.runs(claim):
                self._dispatch.halt(life, source, f"{why}; {error}")
            return
        finally:
            life.gives_up = False
        if not life.runs(claim):
            return
        following = offset
        if span is not None:
            self._point_at(life, span, max(offset, span.first), reason, why)
            following = span.last + 1
        if not source.begin(life.assignment, life.partition, following):
            life.end()
        self._dispatch.pump()

    async def _span(
        self, life: PartitionLife, claim: Claim, source: Source, offset: int
    ) -> BatchSpan | None:
        tries = 0
        while life.runs(claim):
            try:
                return await source.batch(life.partition, offset)
            except TransientError as error:
                if not tries:
                    log.warning(
                        "a batch that cannot be read cannot be looked up either",
                        action="batch_lookup_failed",
                        partition=life.partition.name,
                        error=str(error),
                    )
                tries += 1
                await asyncio.sleep(_AGAIN_SECONDS)
        return None

    def _point_at(
        self, life: PartitionLife, span: BatchSpan, first: int, reason: Reason, why: str
    ) -> None:
        record = Record(Position(*life.partition, first), span.timestamp_ms, None, None)
        detail = (
            f"offsets {span.first} to {span.last}: a batch of {span.records} record(s), "
            f"{span.size_bytes} bytes, compression {span.codec}: {why}"
        )
        life.track(record, self._clock())
        self._dispatch.add(self._decode.rejected(life, record, reason, detail))
        life.advance(span.last + 1)
