"""
Records come in: tracked, decoded, queued.

Owns the poll loop. Every record of a batch is tracked in the same step in which the batch was
taken, before anything is awaited, and only this loop says how far a partition is handed out
(protocol, change 6). Back-pressure: while the queue is full no partition is asked for.
A record that cannot be decoded becomes a work as well, so that it is counted, bounded and
settled like any other.
"""

import asyncio

import structlog

from schemas.codec import Decoded, Limits, Undecodable, decode_record
from schemas.events import Tombstone
from worker.config import IngestOptions
from worker.core.lifecycle import Lives, PartitionLife, Phase
from worker.core.model import Order, Partition, Rank, Record, Rejected, Work
from worker.pipeline.dispatch import Dispatch
from worker.ports import Clock, PolledBatch, Source
from worker.telemetry import Counters

log = structlog.get_logger(__name__)


class Intake:
    """The poll loop of a worker."""

    def __init__(
        self,
        dispatch: Dispatch,
        lives: Lives,
        options: IngestOptions,
        *,
        counters: Counters,
        clock: Clock,
        progress_seconds: float,
    ) -> None:
        self._dispatch = dispatch
        self._lives = lives
        self._limits = Limits(max_text_bytes=options.max_text_bytes, nul=options.nul)
        self._counters = counters
        self._clock = clock
        self._progress_seconds = progress_seconds
        self._moved_at = clock()
        self.turned_at = clock()

    async def run(self, source: Source, stop: asyncio.Event) -> None:
        """
        Poll until stopped, or until the source delivers nothing although it should.

        Records of partitions whose claim has ended are not tracked: their next owner reads
        them again.

        Raises:
            BrokerUnavailable: this source will never deliver again; another one may.
        """
        self._moved_at = self._clock()
        while not stop.is_set() and not self._is_stuck(source):
            wanted = self._wanted()
            self.turned_at = self._clock()
            batches = await source.poll(wanted)
            if batches or not wanted:
                self._moved_at = self._clock()
            for batch in batches:
                self._take(batch)
            self._dispatch.pump()

    def _wanted(self) -> list[Partition]:
        if not self._dispatch.room.is_set():
            return []
        return [life.partition for life in self._lives.in_phase(Phase.RUNNING)]

    def _is_stuck(self, source: Source) -> bool:
        if self._clock() - self._moved_at < self._progress_seconds:
            return False
        lag = sum(source.lag(life.partition) or 0 for life in self._lives)
        if lag == 0:
            self._moved_at = self._clock()
            return False
        log.error("the consumer delivers nothing", action="consumer_stuck", lag=lag)
        return True

    def _take(self, batch: PolledBatch) -> None:
        life = self._lives.find(batch.partition)
        if life is None or life.phase is not Phase.RUNNING:
            return
        for record in batch.records:
            life.track(record)
            self._dispatch.add(self._work(life, record))
        life.advance(batch.next_offset)

    def _work(self, life: PartitionLife, record: Record) -> Work:
        claim = life.claim
        assert claim is not None
        order = Order(*record.position, record.timestamp_ms, claim.incarnation)
        try:
            decoded = decode_record(record.key, record.value, record.headers, self._limits)
        except Undecodable as error:
            rejected = Rejected(error.reason, error.detail)
            return Work(rejected, record, claim, Rank(None, order), record.size_bytes)
        self._counters.nul_replaced += decoded.nul_replaced
        event = decoded.event
        version = None if isinstance(event, Tombstone) else event.version
        return Work(
            event=event,
            record=record,
            claim=claim,
            rank=Rank(version, order),
            size_bytes=record.size_bytes,
            traceparent=decoded.traceparent,
            claimed_origin=_claimed_origin(decoded, order),
        )


def _claimed_origin(decoded: Decoded, own: Order) -> Order | None:
    """Return the origin a replay claims, where it can be true: same partition, before it."""
    if decoded.origin is None:
        return None
    origin = Order(*decoded.origin)
    return origin if origin[:2] == own[:2] and own.is_after(origin) else None
