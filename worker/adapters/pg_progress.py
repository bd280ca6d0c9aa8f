"""
What an operator sees and says of partitions: who owns them, how far they are done.

Reads what claims and progress say together. Writes only an operator's word that a topic was
created again: the next incarnation of its claims, and no progress, so that it is read from its
beginning. Each claim is changed in a transaction of its own, under its row's lock, as the
workers do it; its new epoch fences whoever worked under the old one.
"""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID, uuid4

from worker.adapters.pg_client import Database
from worker.adapters.pg_statements import LOCK_CLAIM

_LIST = """
select c.topic, c.partition, c.epoch, c.owner, c.claimed_at, c.incarnation,
       p.next_offset, p.topic_id, p.updated_at, h.problem as held_because,
       h.resumed_at is not null as is_resumed,
       coalesce(k.unclean_ends, 0) as unclean_ends, k.start_offset, k.suspect_offset
from partition_claim c
left join partition_progress p using (grp, topic, partition)
left join partition_hold h using (grp, topic, partition)
left join partition_crash k using (grp, topic, partition)
where c.grp = $1
order by c.topic, c.partition
"""
# Of all groups: they write the same documents, whose order compares incarnations.
_CLAIMS_OF_TOPIC = """
select grp, partition, incarnation from partition_claim where topic = $1
order by grp, partition
"""
_RAISE = """
update partition_claim
set epoch = epoch + 1, claim_id = $4, owner = $5, incarnation = $6,
    claimed_at = clock_timestamp()
where grp = $1 and topic = $2 and partition = $3
"""
_FORGET = tuple(
    f"delete from {table} where grp = $1 and topic = $2 and partition = $3"  # noqa: S608
    for table in ("partition_progress", "partition_crash", "partition_hold")
)


class PartitionProgress(NamedTuple):
    """
    One partition as the tables know it; `next_offset` None: nothing was read yet.

    `topic_id` is of the log that was read, None where the broker tells no ids.

    `held_because` is set while it is held, `is_resumed` once an operator has said that it
    should go on. `unclean_ends` are those of its owners at `start_offset`, `suspect_offset` the
    record that was alone in flight at the last one.
    """

    topic: str
    partition: int
    epoch: int
    owner: str
    claimed_at: datetime
    incarnation: int
    next_offset: int | None
    topic_id: UUID | None
    updated_at: datetime | None
    held_because: str | None
    is_resumed: bool
    unclean_ends: int
    start_offset: int | None
    suspect_offset: int | None


class PostgresProgress:
    """The partitions of all groups, for operators."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def partitions(self, group: str) -> list[PartitionProgress]:
        """Return the partitions that a group has ever claimed."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_LIST, group)
        return [PartitionProgress(**dict(row)) for row in rows]

    async def claims_of_topic(self, topic: str) -> list[tuple[str, int]]:
        """Return group and partition of each claim of a topic."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(_CLAIMS_OF_TOPIC, topic)
        return [(row["grp"], row["partition"]) for row in rows]

    async def begin_incarnation(self, topic: str, owner: str) -> None:
        """
        Begin the next incarnation of a topic: fence all its claims, forget its progress.

        Where it breaks off, it is to be repeated: it then takes the next number for all.
        """
        async with self._database.connection() as connection:
            claims = await connection.fetch(_CLAIMS_OF_TOPIC, topic)
        incarnation = 1 + max((row["incarnation"] for row in claims), default=0)
        for row in claims:
            place = (row["grp"], topic, row["partition"])
            async with self._database.transaction() as connection:
                await connection.execute(LOCK_CLAIM, *place)
                await connection.execute(_RAISE, *place, uuid4(), owner, incarnation)
                for forget in _FORGET:
                    await connection.execute(forget, *place)
