"""
Of which record a worker dies: found by letting a partition run one record at a time.

Owns what the crash ledger of a partition says, and what follows from it. An owner that did not
give its partition back has ended uncleanly. After two such ends that left the partition where
it was, its next owner takes one record at a time, and writes which one while it fetches it and
while it is busy with it. The record that was marked so at such an end is the suspect: from
then on it runs while nothing else of the worker does, so what dies then dies of it. At the
second end it is given up unseen, by position.

A mark stands only while the worker is busy with the record, never while that waits for the
provider, the database or a collection: so processes that are killed in an outage blame nobody.
Workers that die of whatever they get blame little: after three records in a row nothing more is
given up until one has passed. Never waits, never reads a clock.

Invariant: a record is convicted only if it was marked at two unclean ends, the second time
alone in its process, both in one history of the database.
"""

from typing import NamedTuple
from uuid import UUID

from worker.core.model import Claim

ISOLATE_AFTER = 2
"""Unclean ends at one start before a partition runs one record at a time."""
CONVICT_AFTER = 2
"""Unclean ends with the same record alone in flight before it is given up."""
GIVE_UP_AT_MOST = 3
"""Records in a row that are given up before one must have passed."""
# The killer stands among what is in flight when the worker dies, and mostly near its head:
# what was settled before is committed within a second. Where it stands further on, the
# partition has come nearer to it by so many records at the next unclean end.
ISOLATED_RECORDS = 256


class Alone(NamedTuple):
    """The record that a worker is busy with: working on it, or fetching it, not seen yet."""

    offset: int
    fetching: bool


class Suspect(NamedTuple):
    """A record that was marked, and at how many unclean ends."""

    alone: Alone
    ends: int


class CrashEntry(NamedTuple):
    """
    The crash ledger of one partition: its last owner, and what its ends have shown.

    `ended`: that owner has given it back in order. `unclean_ends` count those in a row after
    which the partition began at `start`, `given_up` the records in a row that were given up.
    `history` is the server's, as in a claim.
    """

    claim_id: UUID
    owner: str
    history: str
    start: int
    ended: bool = False
    unclean_ends: int = 0
    alone: Alone | None = None
    suspect: Suspect | None = None
    given_up: int = 0


def begun(old: CrashEntry | None, claim: Claim, owner: str, start: int) -> CrashEntry:
    """
    Return the entry of an owner that begins, from that of the one before it.

    A claim that the same process makes again, and one after an end in order, is no crash. An
    entry of another history says nothing: it may have been restored.

        >>> from tests.support.works import claim
        >>> entry = begun(None, claim(), "a", 7)
        >>> for epoch, owner in enumerate("bc", 2):
        ...     entry = begun(entry, claim(epoch=epoch), owner, 7)
        >>> entry.unclean_ends, Isolation.of(entry) is not None
        (2, True)
    """
    entry = CrashEntry(claim.claim_id, owner, claim.history, start)
    if old is None or old.history != claim.history:
        return entry
    has_crashed = not old.ended and old.owner != owner
    before = old.unclean_ends if old.start == start else 0
    suspect = _suspect(old) if has_crashed else old.suspect
    if suspect is not None and suspect.alone.offset < start:
        suspect = None  # it has passed, or was given up
    return entry._replace(
        unclean_ends=before + has_crashed, suspect=suspect, given_up=old.given_up
    )


def _suspect(old: CrashEntry) -> Suspect | None:
    if old.alone is None:
        return old.suspect
    before = old.suspect.ends if old.suspect and old.suspect.alone == old.alone else 0
    return Suspect(old.alone, before + 1)


class Isolation:
    """How far a partition runs one record at a time, and which one is suspected."""

    def __init__(self, until: int, suspect: Suspect | None, given_up: int) -> None:
        self._until = until
        self._suspect = suspect
        self.given_up = given_up

    @classmethod
    def of(cls, entry: CrashEntry) -> "Isolation | None":
        """Return what an owner that begins has to keep to, None where all is well."""
        if entry.unclean_ends < ISOLATE_AFTER and entry.suspect is None:
            return None
        return cls(entry.start + ISOLATED_RECORDS, entry.suspect, entry.given_up)

    def is_over(self, offset: int) -> bool:
        """Tell whether the partition may run freely from this offset on."""
        is_past = self._suspect is None or self._suspect.alone.offset < offset
        return is_past and offset >= self._until

    def is_suspect(self, alone: Alone) -> bool:
        """Tell whether nothing else may be in flight in the worker meanwhile."""
        return self._suspect is not None and self._suspect.alone == alone

    def is_convicted(self, alone: Alone) -> bool:
        """Tell whether this is what workers die of."""
        suspect = self._suspect
        return (
            suspect is not None
            and suspect.alone == alone
            and suspect.ends >= CONVICT_AFTER
            and self.given_up < GIVE_UP_AT_MOST
        )
