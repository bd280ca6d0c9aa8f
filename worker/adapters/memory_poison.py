"""
The port `Poisons` in memory; it means what `pg_poison` means.

Its times are those of the loop: in a simulation they repeat exactly.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from worker.adapters.dead_letter_text import clean
from worker.adapters.memory_database import MemoryDatabase
from worker.ports import Poison, PoisonKey, Refusal


class MemoryPoisons:
    """The chunks that the embedding provider has refused for their text."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def known(self, keys: Sequence[PoisonKey]) -> dict[PoisonKey, Poison]:
        """Return those of the chunks that are known to be refused."""
        await self._database.reach("known", "before")
        poisons = self._database.state.poisons
        return {key: poisons[key] for key in keys if key in poisons}

    async def remember(self, refusals: Mapping[PoisonKey, Refusal]) -> None:
        """Write down what was refused just now, in the place of what was known of it."""
        now = datetime.fromtimestamp(asyncio.get_running_loop().time(), UTC)
        async with self._database.transaction("remember"):
            self._database.state.poisons.update(
                {
                    key: Poison(refusal.reason, clean(refusal.detail), now)
                    for key, refusal in refusals.items()
                }
            )

    async def forget(self, keys: Sequence[PoisonKey]) -> None:
        """Know nothing of these chunks any more."""
        async with self._database.transaction("forget"):
            for key in keys:
                self._database.state.poisons.pop(key, None)
