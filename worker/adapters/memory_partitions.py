"""
The ports `Crashes` and `Holds` in memory.

They mean what the adapters of PostgreSQL mean (`tests/contracts` runs on both). Every check and
write of a call happens in one step of the loop.
"""

from collections.abc import Collection
from typing import Any

from worker.adapters.memory_database import MemoryDatabase
from worker.core.isolation import Alone, CrashEntry, begun
from worker.core.model import Claim, Partition
from worker.errors import FencedError
from worker.ports import Hold


class MemoryCrashes:
    """The crash ledger of all partitions."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def begin(self, claim: Claim, owner: str, start: int) -> CrashEntry:
        """Write that an owner begins, and return its entry."""
        async with self._database.transaction("crashes begin", [claim]) as transaction:
            if claim not in transaction.live:
                raise FencedError
            crashes = self._database.state.crashes
            place = claim.group, claim.partition
            old = crashes.get(place)
            if old is None or old.claim_id != claim.claim_id:
                crashes[place] = begun(old, claim, owner, start)
            return crashes[place]

    async def mark(self, claim: Claim, alone: Alone | None) -> None:
        """Write which record is alone in flight now."""
        async with self._database.transaction("mark"):
            self._replace(claim, alone=alone)

    async def gave_up(self, claim: Claim, records: int) -> None:
        """Write how many records in a row were given up."""
        async with self._database.transaction("gave_up"):
            self._replace(claim, given_up=records)

    def _replace(self, claim: Claim, **columns: Any) -> None:
        crashes, place = self._database.state.crashes, (claim.group, claim.partition)
        entry = crashes.get(place)
        if entry is None or entry.claim_id != claim.claim_id:
            raise FencedError
        crashes[place] = entry._replace(**columns)

    async def end(self, claims: Collection[Claim]) -> None:
        """Write that these claims are given back in order."""
        async with self._database.transaction("crashes end"):
            crashes = self._database.state.crashes
            ids = {claim.claim_id for claim in claims}
            for place, entry in crashes.items():
                if entry.claim_id in ids:
                    crashes[place] = entry._replace(ended=True, alone=None)


class MemoryHolds:
    """The partitions that are held."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def hold(self, claim: Claim, problem: str) -> None:
        """Write that a partition is held; again, that it still is."""
        async with self._database.transaction("hold", [claim]) as transaction:
            if claim not in transaction.live:
                raise FencedError
            holds, place = self._database.state.holds, (claim.group, claim.partition)
            old = holds.get(place)
            holds[place] = Hold(problem, is_resumed=old is not None and old.is_resumed)

    async def found(self, group: str, partition: Partition) -> Hold | None:
        """Return what is written about a partition, None where it is not held."""
        await self._database.reach("hold found", "before")
        return self._database.state.holds.get((group, partition))

    async def lift(self, claim: Claim) -> None:
        """Write that a partition is not held any more."""
        async with self._database.transaction("lift", [claim]) as transaction:
            if claim not in transaction.live:
                raise FencedError
            self._database.state.holds.pop((claim.group, claim.partition), None)

    async def resume(self, group: str, partition: Partition) -> bool:
        """Ask its owner to go on; False where it is not held."""
        async with self._database.transaction("resume"):
            holds = self._database.state.holds
            hold = holds.get((group, partition))
            if hold is not None:
                holds[group, partition] = hold._replace(is_resumed=True)
            return hold is not None
