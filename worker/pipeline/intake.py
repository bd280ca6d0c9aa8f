"""
Records come in: tracked, decoded, queued.

Owns the poll loop. Every record of a batch is tracked in the same step in which the batch was
taken, before anything is awaited, and only this loop says how far a partition is handed out
(protocol, change 6). Back-pressure: while the queue is full, or the provider is left alone, no
partition is asked for. Of a partition with little room (`PartitionLife.room`) one record is
taken at a time.
"""

import asyncio
from collections.abc import Callable

import structlog

from worker.core.lifecycle import Lives, Phase
from worker.core.model import Partition
from worker.pipeline.decode import Decode
from worker.pipeline.dispatch import Dispatch
from worker.pipeline.isolation import OneByOne
from worker.ports import Clock, PolledBatch, Source

log = structlog.get_logger(__name__)


class Intake:
    """The poll loop of a worker."""

    def __init__(
        self,
        dispatch: Dispatch,
        lives: Lives,
        decode: Decode,
        one_by_one: OneByOne,
        *,
        clock: Clock,
        progress_seconds: float,
        is_held: Callable[[], bool],
    ) -> None:
        self._dispatch = dispatch
        self._lives = lives
        self._decode = decode
        self._one_by_one = one_by_one
        self._clock = clock
        self._progress_seconds = progress_seconds
        self._is_held = is_held
        self._moved_at = clock()
        self.turned_at = clock()
        self.wanted: list[Partition] = []

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
            self.turn()
            self._one_by_one.turn()
            self.wanted = self._wanted()
            batches = await source.poll(self.wanted, self._singly())
            has_delivered = has_delivered or bool(batches)
            if batches or not self.wanted:
                self._moved_at = self._clock()
            for batch in batches:
                self._take(source, batch)
            self._dispatch.pump()
        return has_delivered

    def _wanted(self) -> list[Partition]:
        # Held, but with nothing to do: then go on, or nobody would ever try the provider.
        is_held = self._is_held() and self._dispatch.scheduler.documents > 0
        if is_held or not self._dispatch.room.is_set():
            return []
        return [
            life.partition
            for life in self._lives.in_phase(Phase.RUNNING)
            if life.room != 0 and self._one_by_one.may_poll(life)
        ]

    def _singly(self) -> set[Partition]:
        return {life.partition for life in self._lives if life.room is not None}

    def _is_stuck(self, source: Source) -> bool:
        if self._clock() - self._moved_at < self._progress_seconds:
            return False
        # Only of what we ask for: a partition that is halted has a lag for good.
        lag = sum(source.lag(partition) or 0 for partition in self._wanted())
        if lag == 0:
            self._moved_at = self._clock()
            return False
        log.error("the consumer delivers nothing", action="consumer_stuck", lag=lag)
        return True

    def _take(self, source: Source, batch: PolledBatch) -> None:
        life = self._lives.find(batch.partition)
        if life is None or life.phase is not Phase.RUNNING:
            return
        if life.isolation is not None and not self._one_by_one.may_poll(life):
            # Its turn was over while it was polled: back to where it stands.
            source.begin(life.assignment, life.partition, life.handed_out)
            return
        now = self._clock()
        for record in batch.records:
            life.track(record, now)
            if life.isolation is None:
                self._dispatch.add(self._decode(life, record))
        life.advance(batch.next_offset)
        if life.flood is not None:
            life.flood.took(len(batch.records))
        if life.isolation is not None:
            self._one_by_one.take(life, batch)
