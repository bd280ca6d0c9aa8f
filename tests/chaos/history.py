"""What a run leaves behind for its oracle: the log, the tables, and how they came to be."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple, Self

Place = tuple[str, int]
"""A topic and the number of a partition."""


class Document(NamedTuple):
    """The name of a document."""

    tenant: str
    collection: str
    id: str


class Order(NamedTuple):
    """Where a record stands: offsets inside a partition, timestamps between them."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int

    @property
    def place(self) -> Place:
        return self.topic, self.partition

    def is_after(self, other: Self) -> bool:
        if self.place == other.place:
            return self.offset > other.offset
        return (self.timestamp_ms, *self[:3]) > (other.timestamp_ms, *other[:3])


class Record(NamedTuple):
    """A record of the topic; `poison` is the reason for which it must become a dead letter."""

    order: Order
    key: bytes | None
    value: bytes | None
    poison: str | None = None


class Letter(NamedTuple):
    """A dead letter: of which record, and why."""

    topic: str
    partition: int
    offset: int
    reason: str


class Row(NamedTuple):
    """A row of `document`."""

    version: int | None
    order: Order
    barrier: Order | None = None
    deleted: bool = False


class Chunk(NamedTuple):
    """A row of a chunk table."""

    document: Document
    seq: int
    content: str
    vector: tuple[float, ...]


class Change(NamedTuple):
    """
    A committed change of a document's row: when in the audit, by whose connection.

    `at` is just before it was committed.
    """

    seq: int
    document: Document
    row: Row
    port: int | None = None
    at: datetime | None = None


class Claimed(NamedTuple):
    """A partition was claimed."""

    seq: int
    place: Place
    epoch: int
    port: int | None = None


class Progressed(NamedTuple):
    """`next_offset` of a partition was written."""

    seq: int
    place: Place
    next_offset: int


class Ledgered(NamedTuple):
    """A row of the ledger was written."""

    seq: int
    place: Place
    offset: int
    state: str
    port: int | None = None


class Sample(NamedTuple):
    """What Kafka had been told, before the audit had come to `seq`."""

    seq: int
    committed: dict[Place, int]


class State(NamedTuple):
    """One document as a snapshot showed it: its row, and its chunks as of `by_place`."""

    document: Document
    row: Row | None
    chunks: tuple[str | None, ...]


def by_place(chunks: Iterable[tuple[int, str]]) -> tuple[str | None, ...]:
    """Return the texts that stand at 0, 1, ...; None where there is none, or more than one."""
    texts: defaultdict[int, list[str]] = defaultdict(list)
    for seq, text in chunks:
        texts[seq].append(text)
    found = [texts[seq] for seq in range(max(texts, default=-1) + 1)]
    return tuple(one[0] if len(one) == 1 else None for one in found)


@dataclass
class History:
    """Everything that happened, as far as anybody outside could see it."""

    records: list[Record] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    rows: dict[Document, Row] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    claims: list[Claimed] = field(default_factory=list)
    progress: list[Progressed] = field(default_factory=list)
    ledger: list[Ledgered] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    states: set[State] = field(default_factory=set)
    ends: dict[Place, int] = field(default_factory=dict)
    workers: dict[int, str] = field(default_factory=dict)
    """Which worker a connection's port at the database belongs to."""
    embedded: Counter[str] = field(default_factory=Counter)

    def blame(self, reason: str) -> int:
        """
        Take every record with such a dead letter for poison; returns how many there are.

        Of one that had a reason of its own, and was told by it as well, that letter counts.
        """
        blamed = {letter[:3] for letter in self.letters if letter.reason == reason}
        told = {
            record.order[:3]
            for record in self.records
            if (*record.order[:3], record.poison) in self.letters
        }
        self.letters = [
            letter
            for letter in self.letters
            if letter.reason != reason or letter[:3] not in told
        ]
        self.records = [
            record._replace(poison=reason) if record.order[:3] in blamed - told else record
            for record in self.records
        ]
        return len(blamed)
