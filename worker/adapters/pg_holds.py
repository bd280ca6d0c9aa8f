"""
The port `Holds` on PostgreSQL: partitions that are held because of a flood of dead letters.

One row while a partition is held. Its owner writes and removes it, under the fence; an operator
says in it that the partition should go on, which its owner reads.
"""

from worker.adapters.pg_client import Connection, Database
from worker.adapters.pg_statements import live_claims
from worker.core.model import Claim, Partition
from worker.errors import FencedError
from worker.ports import Hold

_HOLD = """
insert into partition_hold as h (grp, topic, partition, problem) values ($1, $2, $3, $4)
on conflict (grp, topic, partition) do update set problem = excluded.problem
"""
_FOUND = """
select problem, resumed_at is not null as is_resumed from partition_hold
where grp = $1 and topic = $2 and partition = $3
"""
_LIFT = "delete from partition_hold where grp = $1 and topic = $2 and partition = $3"
_RESUME = """
update partition_hold set resumed_at = clock_timestamp()
where grp = $1 and topic = $2 and partition = $3
returning true
"""


class PostgresHolds:
    """The partitions of all groups that are held."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def hold(self, claim: Claim, problem: str) -> None:
        """
        Write that a partition is held; again, that it still is.

        Raises:
            FencedError: the claim is not the newest any more.
        """
        async with self._database.transaction() as connection:
            await self._check(connection, claim)
            await connection.execute(_HOLD, claim.group, *claim.partition, problem)

    async def found(self, group: str, partition: Partition) -> Hold | None:
        """Return what is written about a partition, None where it is not held."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_FOUND, group, *partition)
        return None if row is None else Hold(**dict(row))

    async def lift(self, claim: Claim) -> None:
        """
        Write that a partition is not held any more.

        Raises:
            FencedError: the claim is not the newest any more.
        """
        async with self._database.transaction() as connection:
            await self._check(connection, claim)
            await connection.execute(_LIFT, claim.group, *claim.partition)

    async def resume(self, group: str, partition: Partition) -> bool:
        """Ask its owner to go on, as an operator; False where it is not held."""
        async with self._database.connection() as connection:
            return await connection.fetchval(_RESUME, group, *partition) is not None

    async def _check(self, connection: Connection, claim: Claim) -> None:
        if not await live_claims(connection, [claim], self._database.history):
            raise FencedError
