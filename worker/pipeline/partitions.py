"""
The partitions of this worker: claimed, drained, and told how far they are done.

Owns the lives of the assigned partitions. On assignment a loader of each one claims it in the
table, decides where it starts and lets the source begin; on revocation everything is drained
and committed under one deadline. Never waits for the poll task; a listener never raises.

The committer writes the table first and tells Kafka only what the table returned, so Kafka is
never ahead (protocol, change 7). A partition that is fenced but still assigned is claimed
again, after a heartbeat has confirmed the assignment (change 10); so is a halted one, once an
operator has begun its topic anew.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

import structlog

from schemas.dead_letter import Reason
from worker import failpoints
from worker.config import KafkaOptions
from worker.core.isolation import Isolation
from worker.core.lifecycle import (
    Halt,
    Lives,
    PartitionLife,
    Phase,
    Start,
    decide_start,
    other_topic,
)
from worker.core.model import Claim, Partition, Progress
from worker.errors import FencedError, TransientError
from worker.pipeline.backoff import backoff, until_done
from worker.pipeline.dispatch import Dispatch
from worker.pipeline.floods import Floods
from worker.pipeline.give_up import GiveUp
from worker.pipeline.isolation import OneByOne
from worker.ports import Claims, Clock, Crashes, Source, Spawn
from worker.telemetry import Counters

log = structlog.get_logger(__name__)

_COMMIT_AGAIN_SECONDS = 60.0
"""A stale commit of somebody else may have rewound ours; nobody would notice without this."""
# Together below the 5 s that `kafka.rebalance_seconds` leaves behind a drain.
_FINAL_COMMIT_SECONDS = 2.5
_GIVE_BACK_SECONDS = 1.5


class Partitions:
    """What the group assigns to this worker; the `Assignments` of a source."""

    def __init__(
        self,
        claims: Claims,
        dispatch: Dispatch,
        lives: Lives,
        options: KafkaOptions,
        *,
        crashes: Crashes,
        floods: Floods,
        one_by_one: OneByOne,
        give_up: GiveUp,
        owner: str,
        counters: Counters,
        clock: Clock,
        jitter: Callable[[], float],
        spawn: Spawn,
    ) -> None:
        self._claims = claims
        self._dispatch = dispatch
        self._lives = lives
        self._options = options
        self._crashes = crashes
        self._floods = floods
        self._one_by_one = one_by_one
        self._give_up = give_up
        self._owner = owner
        self._counters = counters
        self._clock = clock
        self._jitter = jitter
        self._spawn = spawn
        self._source: Source | None = None
        self._committing = asyncio.Lock()
        self._committed: dict[Partition, tuple[int, float]] = {}

    def use(self, source: Source) -> None:
        """Take the source that the next assignments come from; those of the last have ended."""
        self._source = source
        for life in self._lives:
            if life.claim is not None:
                self._dispatch.release(life.claim)
            self._lives.end(life.partition)

    def assigned(self, assignment: int, partitions: frozenset[Partition]) -> None:
        """Begin to claim what is assigned."""
        self._counters.rebalances += 1
        log.info("assigned", action="assigned", partitions=len(partitions))
        for partition in sorted(partitions):
            life = PartitionLife(partition, assignment)
            self._lives.begin(life)
            self._spawn(self._load(life))

    async def revoked(self) -> None:
        """Drain all that is assigned and commit it; then it is somebody else's."""
        lives = list(self._lives)
        for life in lives:
            life.drain()
        claims = [life.claim for life in lives if life.claim is not None]
        await self._dispatch.drain(claims, self._options.drain_seconds)
        await failpoints.reach("in_rebalance")
        try:
            async with asyncio.timeout(_FINAL_COMMIT_SECONDS):
                await self.commit()
        except (TimeoutError, TransientError) as error:
            log.warning("last commit failed", action="commit_failed", error=str(error))
        await self._give_back(claims)
        for life in lives:
            self._lives.end(life.partition)
        log.info("revoked", action="revoked", partitions=len(lives))

    async def _give_back(self, claims: list[Claim]) -> None:
        """Say that these claims end in order, or their ends count as crashes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await until_done(lambda: self._crashes.end(claims), self._jitter)

    def failed(self, partition: Partition, reason: str) -> None:
        """Halt a partition that cannot be polled; the others go on."""
        self._counters.poll_errors += 1
        life = self._lives.find(partition)
        if life is not None and self._source is not None:
            self._dispatch.halt(life, self._source, reason)

    def unreadable(self, partition: Partition, offset: int, error: str) -> None:
        """Give up a batch that cannot be read, and go on behind it."""
        self._counters.poll_errors += 1
        life = self._lives.find(partition)
        if life is not None and life.phase is Phase.RUNNING and self._source is not None:
            reason = Reason.UNREADABLE_BATCH
            self._spawn(self._give_up(life, self._source, offset, reason, error))

    async def _load(self, life: PartitionLife) -> None:
        # A claim once taken is kept while Kafka does not answer. Taken again and again by a
        # worker that is cut off from Kafka alone, it would fence the next owner for ever.
        claim: Claim | None = None
        waits = backoff(self._jitter)
        while life.is_claiming():
            try:
                claim = claim or await self._claim(life.partition)
                await self._start(life, claim)
            except FencedError:
                if life.is_claiming():
                    life.phase = Phase.FENCED
                return
            except TransientError as error:
                log.warning("claim failed", action="claim_failed", error=str(error))
                await asyncio.sleep(next(waits))

    async def _claim(self, partition: Partition) -> Claim:
        await failpoints.reach("before_claim")
        claim = await self._claims.claim(self._options.group, partition, self._owner)
        self._counters.claims += 1
        await failpoints.reach("after_claim")
        return claim

    async def _start(self, life: PartitionLife, claim: Claim) -> None:
        assert self._source is not None
        ids = await self._source.topic_ids()
        topic_id = ids.get(life.partition.topic, claim.topic_id)
        start = other_topic(claim.topic_id, topic_id) or await self._decide(self._source, claim)
        if not life.is_claiming():
            return  # the group has moved on, and may have given us the partition anew
        if isinstance(start, Halt):
            self._dispatch.halt(life, self._source, start.problem)
            return
        if start.alarm:
            log.error(start.alarm, action="start_alarm", partition=life.partition.name)
        claim = claim._replace(topic_id=topic_id)
        await self._claims.begin(claim, start.offset)
        life.claim = claim  # what begins in the crash ledger now, `revoked` ends there
        entry = await self._crashes.begin(claim, self._owner, start.offset)
        flood = await self._floods.guard(claim)
        if not life.is_claiming():
            await self._give_back([claim])
            return
        life.start(claim, start.offset, flood=flood, isolation=Isolation.of(entry))
        self._committed.pop(life.partition, None)
        if not self._source.begin(life.assignment, life.partition, start.offset):
            life.end()
        elif life.isolation is not None:
            self._spawn(self._one_by_one.run(life, self._source, self.commit))

    async def _decide(self, source: Source, claim: Claim) -> Start | Halt:
        partition, next_offset = claim.partition, claim.next_offset
        committed = await source.committed(partition)
        if committed is not None and next_offset is not None and committed > next_offset:
            # An old owner may have raised it between our claim and its last commit.
            next_offset = await self._claims.next_offset(claim.group, partition)
        mark = claim.landmark
        if mark is not None:
            seen = await source.landmark(partition, mark.offset)
            if seen is not None and seen != mark:
                return Halt(
                    f"the record at offset {mark.offset} is not the one that was settled: "
                    "the topic was re-created"
                )
        return decide_start(committed, next_offset, await source.bounds(partition))

    async def run(self) -> None:
        """Commit on a timer, and claim again what was fenced."""
        while True:
            await asyncio.sleep(self._options.commit_interval_seconds)
            try:
                await self._compare_topics()
                await self.commit()
                async for life in self._floods.due(self._lag):
                    life.phase = Phase.CLAIMING
                    self._spawn(self._load(life))
                await self._heed_operators()
            except TransientError as error:
                log.warning("commit failed", action="commit_failed", error=str(error))
            for life in self._lives.in_phase(Phase.FENCED):
                life.phase = Phase.CLAIMING
                self._spawn(self._reclaim(life))

    async def _compare_topics(self) -> None:
        """Halt what is read from a topic that was created again, before more of it is told."""
        claims = [life.claim for life in self._lives if life.claim is not None]
        if not claims or self._source is None:
            return
        with suppress(TransientError):
            ids = await self._source.topic_ids()
            for claim in claims:
                life = self._lives.under(claim)
                halt = other_topic(claim.topic_id, ids.get(claim.partition.topic))
                if life is not None and halt is not None:
                    self._dispatch.halt(life, self._source, halt.problem)

    async def _heed_operators(self) -> None:
        """Take a halted partition for fenced once it has no progress: its topic begins anew."""
        for life in self._lives.in_phase(Phase.HALTED):
            known = await self._claims.next_offset(self._options.group, life.partition)
            if known is None and life.phase is Phase.HALTED:
                life.phase = Phase.FENCED

    def _lag(self, partition: Partition) -> int | None:
        return None if self._source is None else self._source.lag(partition)

    async def commit(self) -> None:
        """Write how far we are to the table, then tell Kafka what the table returned."""
        async with self._committing:
            due = {life.claim: life.progress for life in self._lives if self._is_due(life)}
            progress = {claim: far for claim, far in due.items() if claim is not None}
            if not progress:
                return
            saved = await self._claims.save_progress(progress)
            self._fence(claim for claim in progress if claim.partition not in saved)
            await failpoints.reach("before_kafka_commit")
            await self._tell(progress, saved)

    async def _tell(self, progress: dict[Claim, Progress], saved: dict[Partition, int]) -> None:
        offsets = {
            claim.partition: saved[claim.partition]
            for claim in progress
            if claim.partition in saved and self._lives.under(claim) is not None
        }
        if not offsets or self._source is None:
            return
        try:
            await self._source.commit(offsets)
        except FencedError:
            return  # the group has moved on; its callbacks will say so
        now = self._clock()
        self._committed.update({part: (offset, now) for part, offset in offsets.items()})
        self._counters.commits += 1

    def _is_due(self, life: PartitionLife) -> bool:
        if life.claim is None or not life.owns(life.claim):
            return False
        offset, at = self._committed.get(life.partition, (None, 0.0))
        return life.progress.next_offset != offset or self._clock() - at > _COMMIT_AGAIN_SECONDS

    def _fence(self, claims: Iterable[Claim]) -> None:
        for claim in claims:
            life = self._lives.under(claim)
            if life is not None and life.fence(claim):
                self._counters.fenced += 1
                self._dispatch.release(claim)

    async def _reclaim(self, life: PartitionLife) -> None:
        """Claim anew what was fenced, once the group has confirmed that it is ours."""
        assert self._source is not None
        await asyncio.sleep(self._jitter())
        self._source.pause(life.partition)
        while life.is_claiming():
            try:
                assignment, partitions = await self._source.confirm()
            except (TransientError, FencedError):
                await asyncio.sleep(0.5 + self._jitter())
                continue
            if assignment == life.assignment and life.partition in partitions:
                log.warning("fenced", action="reclaim", partition=life.partition.name)
                await self._load(life)
            else:
                life.end()
