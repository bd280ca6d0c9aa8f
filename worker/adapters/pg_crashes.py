"""
The port `Crashes` on PostgreSQL: how the owners of partitions ended.

One row a partition, written by whoever begins, under its claim's fence; what follows from the
last owner's row is `core.isolation.begun`. Marks are written under the claim id that is in the
row, so a replaced owner marks nothing.
"""

from collections.abc import Collection
from typing import Any

from worker.adapters.pg_client import Database
from worker.adapters.pg_statements import live_claims
from worker.core.isolation import Alone, CrashEntry, Suspect, begun
from worker.core.model import Claim
from worker.errors import FencedError

_FIND = """
select claim_id, owner, history, start_offset, ended, unclean_ends, alone_offset,
       alone_fetching, suspect_offset, suspect_fetching, suspect_ends, given_up
from partition_crash where grp = $1 and topic = $2 and partition = $3
for update
"""
_BEGIN = """
insert into partition_crash (
    grp, topic, partition, claim_id, owner, history, start_offset, unclean_ends, given_up,
    suspect_offset, suspect_fetching, suspect_ends
) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
on conflict (grp, topic, partition) do update set
    claim_id = excluded.claim_id, owner = excluded.owner, history = excluded.history,
    ended = false, given_up = excluded.given_up, start_offset = excluded.start_offset,
    unclean_ends = excluded.unclean_ends,
    alone_offset = null, alone_fetching = false, suspect_offset = excluded.suspect_offset,
    suspect_fetching = excluded.suspect_fetching, suspect_ends = excluded.suspect_ends,
    updated_at = now()
"""
_MARK = """
update partition_crash
set alone_offset = $5, alone_fetching = $6, updated_at = now()
where grp = $1 and topic = $2 and partition = $3 and claim_id = $4
returning true
"""
_GAVE_UP = """
update partition_crash set given_up = $5, updated_at = now()
where grp = $1 and topic = $2 and partition = $3 and claim_id = $4
returning true
"""
_END = """
update partition_crash set ended = true, alone_offset = null, updated_at = now()
where claim_id = any($1)
"""


class PostgresCrashes:
    """The crash ledger of all partitions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, claim: Claim, owner: str, start: int) -> CrashEntry:
        """
        Write that an owner begins, and return its entry.

        Raises:
            FencedError: the claim is not the newest any more.
        """
        place = claim.group, *claim.partition
        async with self._database.transaction() as connection:
            if not await live_claims(connection, [claim], self._database.history):
                raise FencedError
            found = await connection.fetchrow(_FIND, *place)
            old = _entry(found) if found else None
            if old is not None and old.claim_id == claim.claim_id:
                return old  # a repeated call, whose answer was lost
            entry = begun(old, claim, owner, start)
            await connection.execute(_BEGIN, *place, *_columns(entry))
        return entry

    async def mark(self, claim: Claim, alone: Alone | None) -> None:
        """
        Write which record is alone in flight now.

        Raises:
            FencedError: another claim has begun.
        """
        await self._write(_MARK, claim, *((None, False) if alone is None else alone))

    async def gave_up(self, claim: Claim, records: int) -> None:
        """
        Write how many records in a row were given up.

        Raises:
            FencedError: another claim has begun.
        """
        await self._write(_GAVE_UP, claim, records)

    async def _write(self, statement: str, claim: Claim, *columns: Any) -> None:
        place = claim.group, *claim.partition, claim.claim_id
        async with self._database.connection() as connection:
            written = await connection.fetchval(statement, *place, *columns)
        if written is None:
            raise FencedError

    async def end(self, claims: Collection[Claim]) -> None:
        """Write that these claims are given back in order."""
        if claims:
            async with self._database.connection() as connection:
                await connection.execute(_END, [claim.claim_id for claim in claims])


def _entry(row: Any) -> CrashEntry:
    suspect = None
    if row["suspect_offset"] is not None:
        alone = Alone(row["suspect_offset"], row["suspect_fetching"])
        suspect = Suspect(alone, row["suspect_ends"])
    return CrashEntry(
        claim_id=row["claim_id"],
        owner=row["owner"],
        history=row["history"],
        start=row["start_offset"],
        ended=row["ended"],
        unclean_ends=row["unclean_ends"],
        alone=None
        if row["alone_offset"] is None
        else Alone(row["alone_offset"], row["alone_fetching"]),
        suspect=suspect,
        given_up=row["given_up"],
    )


def _columns(entry: CrashEntry) -> tuple[Any, ...]:
    columns = (*entry[:4], entry.unclean_ends, entry.given_up)
    if entry.suspect is None:
        return *columns, None, False, 0
    return *columns, *entry.suspect.alone, entry.suspect.ends
