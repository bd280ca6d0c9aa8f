"""
The port `Claims` on PostgreSQL: who may write for a partition, and how far it is done.

A claim is one transaction for one partition: its row is locked FOR UPDATE first (a claim that
forgets it could pass by the share locks of writers), then epoch + 1 and a fresh claim id. It
thereby waits for open writers; where one of our own role keeps it waiting, that one is ended.
Saving progress takes no lock: what it says is a stable fact (protocol, section 1.2).

Invariants: an epoch never falls; `next_offset` falls only by `begin`.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from worker.adapters.pg_client import Connection, Database, LockNotAvailable
from worker.adapters.pg_statements import LOCK_CLAIM, live_claims
from worker.core.model import Claim, Landmark, Partition, Progress
from worker.errors import FencedError

logger = logging.getLogger(__name__)

# Blockers are looked for well before the server's `lock_timeout` ends the wait.
_PATIENCE = 0.5
# Every look can show one holder of a shared lock only, so many may be needed in one wait.
_LOOKS = 20
_LOOK_SECONDS = 0.05
# Waits of `lock_timeout_seconds` each, for a blocker that is not ours to end.
_ATTEMPTS = 3

_ENSURE_CLAIM = """
insert into partition_claim (grp, topic, partition, epoch, claim_id, owner, incarnation)
values ($1, $2, $3, 0, $4, $5, coalesce(
    (select max(incarnation) from partition_claim where topic = $2), 0
)) on conflict do nothing
"""
_TAKE_CLAIM = """
update partition_claim
set epoch = epoch + 1, claim_id = $4, owner = $5, claimed_at = clock_timestamp()
where grp = $1 and topic = $2 and partition = $3
returning epoch, incarnation, {history} as history
"""
_PROGRESS = """
select next_offset, topic_id, landmark_offset, landmark_timestamp_ms, landmark_key_hash
from partition_progress where grp = $1 and topic = $2 and partition = $3
"""
_BEGIN = """
insert into partition_progress (grp, topic, partition, next_offset, topic_id)
values ($1, $2, $3, $4, $5)
on conflict (grp, topic, partition)
do update set next_offset = excluded.next_offset, topic_id = excluded.topic_id,
              updated_at = now()
"""
# Never an insert: the row stands since `begin`, unless an operator has said since then that the
# topic is another one.
_SAVE = """
update partition_progress p set
    next_offset = greatest(p.next_offset, w.next_offset),
    landmark_offset = case when {keeps} then p.landmark_offset else w.landmark_offset end,
    landmark_timestamp_ms = case when {keeps} then p.landmark_timestamp_ms
                                 else w.landmark_timestamp_ms end,
    landmark_key_hash = case when {keeps} then p.landmark_key_hash
                             else w.landmark_key_hash end,
    updated_at = now()
from unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::uuid[], $6::text[],
            $7::bigint[], $8::bigint[], $9::bigint[], $10::bytea[])
     as w (grp, topic, partition, epoch, claim_id, history,
           next_offset, landmark_offset, landmark_timestamp_ms, landmark_key_hash)
join partition_claim c using (grp, topic, partition, epoch, claim_id)
where w.history = {history}
  and (p.grp, p.topic, p.partition) = (c.grp, c.topic, c.partition)
returning p.topic, p.partition, p.next_offset
"""
_KEEPS_LANDMARK = "w.landmark_offset is null or w.next_offset < p.next_offset"
# Only what blocks us, and only workers: same database, role and application name.
# The end stands in the select list: conditions are checked in no certain order.
_END_BLOCKERS = """
select a.pid, pg_terminate_backend(a.pid) from pg_stat_activity a
where a.pid = any (pg_blocking_pids($1))
  and a.datname = current_database() and a.usename = current_user
  and a.application_name = current_setting('application_name')
"""


class PostgresClaims:
    """The claims and the progress of all partitions; `blockers_ended` counts since start."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._take_claim = _TAKE_CLAIM.format(history=database.history)
        self._save = _SAVE.format(history=database.history, keeps=_KEEPS_LANDMARK)
        # A claim that waits keeps its connection, and whoever looks for its blockers needs one.
        self._slots = asyncio.Semaphore(max(1, database.options.pool_max // 2))
        self.blockers_ended = 0

    async def claim(self, group: str, partition: Partition, owner: str) -> Claim:
        """
        Become the owner: one transaction, epoch + 1, a fresh claim id.

        Raises:
            StoreUnavailable: somebody whom we may not end holds the row, or no answer.
        """
        for _ in range(_ATTEMPTS - 1):
            try:
                return await self._claim(group, partition, owner)
            except LockNotAvailable as error:
                logger.warning("the claim of %s is blocked, again: %s", partition, error)
        return await self._claim(group, partition, owner)

    async def _claim(self, group: str, partition: Partition, owner: str) -> Claim:
        async with self._slots, self._database.transaction() as connection:
            await self._lock(connection, group, partition, owner)
            claim_id = uuid4()
            place = (group, *partition)
            taken = await connection.fetchrow(self._take_claim, *place, claim_id, owner)
            progress = await connection.fetchrow(_PROGRESS, *place)
        return Claim(
            group=group,
            partition=partition,
            epoch=taken["epoch"],
            claim_id=claim_id,
            history=taken["history"],
            incarnation=taken["incarnation"],
            next_offset=progress["next_offset"] if progress else None,
            landmark=_landmark(progress) if progress else None,
            topic_id=progress["topic_id"] if progress else None,
        )

    async def _lock(
        self, connection: Connection, group: str, partition: Partition, owner: str
    ) -> None:
        """Lock the claim's row, made where it is missing; end those who block us."""
        # Structured: the group ends with this call. Only a backend that waits shows who
        # blocks it, so somebody else must look meanwhile.
        locked = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._end_blockers(connection.get_server_pid(), locked))
                place = (group, *partition)
                await connection.execute(_ENSURE_CLAIM, *place, uuid4(), owner)
                await connection.execute(LOCK_CLAIM, *place)
                locked.set()
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _end_blockers(self, pid: int, locked: asyncio.Event) -> None:
        # Ending takes a moment, in which a backend is seen again.
        ended: set[int] = set()
        pause = _PATIENCE * self._database.options.lock_timeout_seconds
        for _ in range(_LOOKS):
            if await _within(pause, locked):
                return
            pause = _LOOK_SECONDS
            async with self._database.connection() as connection:
                blockers = await connection.fetch(_END_BLOCKERS, pid)
            new = {row["pid"] for row in blockers} - ended
            if new:
                ended |= new
                self.blockers_ended += len(new)
                logger.warning("ended %d transactions that held up a claim", len(new))

    async def begin(self, claim: Claim, start: int) -> None:
        """
        Write the start back as `next_offset` (also downwards), with the claim's topic id.

        Raises:
            FencedError: the claim is not the newest any more.
        """
        async with self._database.transaction() as connection:
            if not await live_claims(connection, [claim], self._database.history):
                raise FencedError
            place = (claim.group, *claim.partition)
            await connection.execute(_BEGIN, *place, start, claim.topic_id)

    async def save_progress(self, progress: Mapping[Claim, Progress]) -> dict[Partition, int]:
        """Raise `next_offset` where a claim has begun and is the newest; return what it is."""
        if not progress:
            return {}
        rows = [
            (
                claim.group,
                *claim.partition,
                claim.epoch,
                claim.claim_id,
                claim.history,
                new.next_offset,
                *(new.landmark or (None, None, None)),
            )
            for claim, new in progress.items()
        ]
        async with self._database.connection() as connection:
            saved = await connection.fetch(self._save, *map(list, zip(*rows, strict=True)))
        return {Partition(row["topic"], row["partition"]): row["next_offset"] for row in saved}

    async def next_offset(self, group: str, partition: Partition) -> int | None:
        """Return what the table says now, without a claim."""
        async with self._database.connection() as connection:
            found: int | None = await connection.fetchval(_PROGRESS, group, *partition)
        return found


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Wait for an event for a while; tell whether it came."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _landmark(progress: Any) -> Landmark | None:
    offset, timestamp_ms, key_hash = tuple(progress)[2:]
    return None if offset is None else Landmark(offset, timestamp_ms, key_hash)
