"""
Records come in: tracked, decoded, queued.

Owns the poll loop. Every record of a batch is tracked in the same step in which the batch was
taken, before anything is awaited, and only this loop says how far a partition is handed out
(protocol, change 6). Back-pressure: while the queue is full, or the provider is left alone, no
partition is asked for. A record that cannot be decoded becomes a work as well, so that it is
counted, bounded and settled like any other.
"""

import asyncio
from collections.abc import Callable

import structlog

from schemas.codec import Limits, Undecodable, decode_record, traceparent_of
from schemas.dead_letter import Origin, parse_origin
from schemas.events import Event, Tombstone
from schemas.keys import InvalidKey, decode_key
from worker.config import IngestOptions
from worker.core.lifecycle import Lives, PartitionLife, Phase
from worker.core.model import Order, Partition, Rank, Record, Rejected, Work
from worker.core.versions import refuse_future
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
        wall_clock: Callable[[], float],
        progress_seconds: float,
        is_held: Callable[[], bool],
    ) -> None:
        self._dispatch = dispatch
        self._lives = lives
        self._limits = Limits(max_text_bytes=options.max_text_bytes, nul=options.nul)
        self._version_clock = options.version_clock
        self._wall_clock = wall_clock
        self._counters = counters
        self._clock = clock
        self._progress_seconds = progress_seconds
        self._is_held = is_held
        self._moved_at = clock()
        self.turned_at = clock()

    def turn(self) -> None:
        """Take note that the poll loop goes on, or waits for a source with good reason."""
        self.turned_at = self._clock()

    async def run(self, source: Source, stop: asyncio.Event) -> bool:
        """
        Poll until stopped, or until the source delivers nothing although it should.

        Records of partitions whose claim has ended are not tracked: their next owner reads
        them again. Returns whether it was of use: something came, or nothing was to come.

        Raises:
            BrokerUnavailable: this source will never deliver again; another one may.
        """
        has_delivered = False
        self._moved_at = self._clock()
        while not stop.is_set() and not self._is_stuck(source):
            wanted = self._wanted()
            self.turn()
            batches = await source.poll(wanted)
            has_delivered = has_delivered or bool(batches)
            if batches or not wanted:
                self._moved_at = self._clock()
            for batch in batches:
                self._take(batch)
            self._dispatch.pump()
        return has_delivered

    def _wanted(self) -> list[Partition]:
        # Held, but with nothing to do: then go on, or nobody would ever try the provider.
        is_held = self._is_held() and self._dispatch.scheduler.documents > 0
        if is_held or not self._dispatch.room.is_set():
            return []
        return [life.partition for life in self._lives.in_phase(Phase.RUNNING)]

    def _is_stuck(self, source: Source) -> bool:
        if self._clock() - self._moved_at < self._progress_seconds:
            return False
        # Only of what we ask for: a partition that is halted has a lag for good.
        running = self._lives.in_phase(Phase.RUNNING)
        lag = sum(source.lag(life.partition) or 0 for life in running)
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
        event: Event | Rejected
        try:
            decoded = decode_record(record.key, record.value, record.headers, self._limits)
            refuse_future(decoded.event, self._version_clock, self._wall_clock())
        except Undecodable as error:
            event = Rejected(error.reason, error.detail, _tenant(record))
            traceparent, claimed = traceparent_of(record.headers), parse_origin(record.headers)
        else:
            self._counters.nul_replaced += decoded.nul_replaced
            event, traceparent, claimed = decoded.event, decoded.traceparent, decoded.origin
        version = None if isinstance(event, Tombstone | Rejected) else event.version
        return Work(
            event=event,
            record=record,
            claim=claim,
            rank=Rank(version, order),
            size_bytes=record.size_bytes,
            traceparent=traceparent,
            claimed_origin=_credible(claimed, order),
        )


def _tenant(record: Record) -> str:
    """Return whose record it is, as far as its key can be read."""
    try:
        return decode_key(record.key or b"").tenant
    except InvalidKey:
        return ""


def _credible(claimed: Origin | None, own: Order) -> Order | None:
    """Return the origin a replay claims, where it can be true: same partition, before it."""
    if claimed is None:
        return None
    origin = Order(*claimed)
    return origin if origin[:2] == own[:2] and own.is_after(origin) else None
