"""What the database knows of partitions: who owns them, how they ended, what is held."""

from collections.abc import Collection as Several
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple, Protocol

from worker.core.isolation import Alone, CrashEntry
from worker.core.model import (
    Claim,
    Partition,
    Progress,
)


class Verdict(Enum):
    """What became of one write of a transaction that was committed."""

    APPLIED = "applied"
    BASE_CHANGED = "base_changed"
    FENCED = "fenced"


class Claims(Protocol):
    """Who may write for a partition, and how far it is done."""

    async def claim(self, group: str, partition: Partition, owner: str) -> Claim:
        """
        Become the owner: one transaction, epoch + 1, a fresh claim id.

        Waits for writers of the old claim; after a while ends those of our own role.
        """

    async def begin(self, claim: Claim, start: int) -> None:
        """
        Write the start back as `next_offset` (also downwards), with the claim's topic id.

        Raises:
            FencedError: the claim is not the newest any more.
        """

    async def save_progress(self, progress: Mapping[Claim, Progress]) -> dict[Partition, int]:
        """
        Raise `next_offset` (never lower it) where the claim has begun and is the newest.

        Returns what the table now says for those; what is missing is fenced.
        """

    async def next_offset(self, group: str, partition: Partition) -> int | None:
        """Return what the table says now, without a claim."""


class Crashes(Protocol):
    """The crash ledger: how the owners of partitions ended (`core.isolation`)."""

    async def begin(self, claim: Claim, owner: str, start: int) -> CrashEntry:
        """
        Write that an owner begins, and return its entry.

        Raises:
            FencedError: the claim is not the newest any more.
        """

    async def mark(self, claim: Claim, alone: Alone | None) -> None:
        """
        Write which record its owner is busy with now; durable when this returns.

        Raises:
            FencedError: another claim has begun.
        """

    async def gave_up(self, claim: Claim, records: int) -> None:
        """
        Write how many records in a row were given up.

        Raises:
            FencedError: another claim has begun.
        """

    async def end(self, claims: Several[Claim]) -> None:
        """Write that these claims are given back in order; those of before are left alone."""


class Hold(NamedTuple):
    """A partition that is held, and whether an operator has said that it should go on."""

    problem: str
    is_resumed: bool


class Holds(Protocol):
    """Partitions that are held because of a flood of dead letters."""

    async def hold(self, claim: Claim, problem: str) -> None:
        """
        Write that a partition is held; again, that it still is: an operator's word stands.

        Raises:
            FencedError: the claim is not the newest any more.
        """

    async def found(self, group: str, partition: Partition) -> Hold | None:
        """Return what is written about a partition, None where it is not held."""

    async def lift(self, claim: Claim) -> None:
        """
        Write that a partition is not held any more.

        Raises:
            FencedError: the claim is not the newest any more.
        """

    async def resume(self, group: str, partition: Partition) -> bool:
        """Ask its owner to go on, as an operator; False where it is not held."""
