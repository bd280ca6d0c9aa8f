"""
The port `Ledger` in memory; it means what `pg_ledger` means.

Its times are those of the loop: in a simulation they repeat exactly.
"""

import asyncio
from collections.abc import Sequence

from worker.adapters.dead_letter_text import storable
from worker.adapters.memory_database import LetterKey, LetterRow, MemoryDatabase
from worker.core.model import Claim, Partition
from worker.ports import DeadLetter, LetterPlace, Recorded


class MemoryLedger:
    """The dead letters as the database knows them."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def record(self, letters: Sequence[DeadLetter]) -> list[Recorded | None]:
        """Write rows under the fence, pending where a letter is to be published."""
        claims = {letter.claim for letter in letters}
        async with self._database.transaction("record", claims) as transaction:
            return self._record(letters, transaction.live)

    def _record(
        self, letters: Sequence[DeadLetter], live: frozenset[Claim]
    ) -> list[Recorded | None]:
        rows = {LetterKey.of(letter): letter for letter in letters if letter.claim in live}
        recorded = {key: self._write(key, letter) for key, letter in rows.items()}
        return [
            recorded[LetterKey.of(letter)] if letter.claim in live else None
            for letter in letters
        ]

    def _write(self, key: LetterKey, letter: DeadLetter) -> Recorded:
        table = self._database.state.letters
        now_ms = int(asyncio.get_running_loop().time() * 1000)
        old = table.get(key)
        is_told = old is not None and old.letter.reason is letter.reason
        state = old.state if old and is_told else "pending"
        recorded = Recorded(
            attempts=1 + (old.recorded.attempts if old else 0),
            first_seen_ms=old.recorded.first_seen_ms if old else now_ms,
            last_seen_ms=now_ms,
            is_published=state != "pending",
        )
        table[key] = LetterRow(storable(letter), state, recorded)
        return recorded

    async def mark_published(self, group: str, places: Sequence[LetterPlace]) -> None:
        """Mark rows whose letters the dead-letter topic has acknowledged."""
        async with self._database.transaction("mark_published"):
            letters = self._database.state.letters
            for topic, number, offset, incarnation in places:
                key = LetterKey(group, Partition(topic, number), incarnation, offset)
                row = letters.get(key)
                if row is not None and row.state == "pending":
                    letters[key] = row._replace(state="published")
