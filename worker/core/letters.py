"""
Dead letters as the ledger knows them, and whether one is still worth a replay.

Values and two decisions. A letter is *covered* when a committed row stands at or above its
rank, which is its version and the place where its record *first* stood: a replay could then
change nothing, and never brings an older text back. A missing row is no doubt about that:
tombstones are kept for ever, and what a scope delete sweeps away its own tombstone still
reaches, so no row means that no delete was stored. No letter is therefore too old to replay.
Never waits, never reads a clock.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from schemas.dead_letter import NO_FACTS, Facts, Header, Reason
from worker.core.changeset import newer, reaches
from worker.core.model import Base, DocumentKey, Order, Partition, Position, Rank


class State(StrEnum):
    """What has become of a letter; all but `pending` say that the topic has it."""

    PENDING = "pending"
    PUBLISHED = "published"
    PARKED = "parked"
    REPLAYED = "replayed"
    DISCARDED = "discarded"
    RESOLVED = "resolved"


OPEN = (State.PUBLISHED, State.PARKED)
"""Nobody has dealt with these yet."""


@dataclass(frozen=True, slots=True)
class Letter:
    """
    A row of the ledger.

    `origin` is where the record first stood: its own place, but after a replay. `document_id`
    is None where the record could not be read, and of a delete of a scope.
    """

    group: str
    position: Position
    incarnation: int
    timestamp_ms: int
    state: State
    reason: str
    stage: str
    detail: str
    fingerprint: str
    tenant: str | None
    collection: str | None
    document_id: str | None
    version: int | None
    origin: Order
    key: bytes | None
    traceparent: str | None
    passes: int
    attempts: int
    replays: int
    first_seen: datetime
    last_seen: datetime
    facts: Facts = NO_FACTS
    state_changed_at: datetime | None = None

    @property
    def partition(self) -> Partition:
        """The partition that the record came from."""
        return Partition(self.position.topic, self.position.partition)

    @property
    def document_key(self) -> DocumentKey | None:
        """The document that the record is about, None where the ledger does not know it."""
        if self.tenant is None or self.collection is None or self.document_id is None:
            return None
        return DocumentKey(self.tenant, self.collection, self.document_id)

    @property
    def place(self) -> Order:
        """Where the record stood when it failed."""
        return Order(*self.position, self.timestamp_ms, self.incarnation)


class Original(NamedTuple):
    """The record of a letter, as it was when it failed."""

    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which letters of a group are meant; what is None or empty does not restrict."""

    group: str
    positions: tuple[Position, ...] = ()
    states: tuple[State, ...] = ()
    reasons: tuple[str, ...] = ()
    fingerprint: str | None = None
    tenant: str | None = None
    collection: str | None = None
    document: str | None = None
    key: bytes | None = None
    since: datetime | None = None
    until: datetime | None = None


_OBJECTIONS: dict[str, str] = {
    Reason.WORKER_KILLER: (
        "workers died whenever they were alone with it; only --force sends it to them again"
    ),
    Reason.VERSION_IN_FUTURE: (
        "its version stays ahead of its record, so it is refused again, but where "
        "ingest.version_clock was changed; only --force sends it"
    ),
}


def objection(letter: Letter) -> str | None:
    """
    Return why a letter is replayed as it is by force only; None where it is not.

    By its reason. With another value than its own nothing is to be said against it.
    """
    return _OBJECTIONS.get(letter.reason)


def covered(rank: Rank, base: Base) -> bool:
    """Tell whether what is stored stands at or above a document's record of this rank."""
    if not newer(rank, base.document):
        return True
    return rank.version is not None and reaches(base.scope_version, rank.version)


def origin_of(letter: Letter, claimed: Order | None) -> Order | None:
    """
    Return the origin that a record's own headers claim, where it can be a truer one.

    The ledger has it already, but for a replay that failed before it was looked up there
    (unreadable again, unknown collection). Whether it is true, the ledger must still say.
    """
    if claimed is None or claimed[:2] != letter.partition:
        return None
    return claimed if letter.origin.is_after(claimed) else None
