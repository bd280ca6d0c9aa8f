"""
The values that flow through a worker, and the order among the records of one document.

Owns the words of `worker/DESIGN.md` section 3. Values only: nothing here waits, decides
about retries or knows a library.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, NewType
from uuid import UUID

from schemas.dead_letter import NO_FACTS, Facts, Reason
from schemas.events import DocumentDeleted, DocumentUpserted, Event, ScopeDeleted, Tombstone
from worker.core.vector_index import DEFAULT_INDEX, VectorIndex
from worker.errors import RefusedText

Vector = NewType("Vector", bytes)
"""One embedding: little-endian float32, 4 bytes a dimension, as providers send it."""


class Partition(NamedTuple):
    """A partition of a topic."""

    topic: str
    number: int

    @property
    def name(self) -> str:
        """What people and commands call it: `documents/3`."""
        return f"{self.topic}/{self.number}"


class Position(NamedTuple):
    """Where a record stands in the log."""

    topic: str
    partition: int
    offset: int


class DocumentKey(NamedTuple):
    """What names a document; the order of the fields is the order of all keys and locks."""

    tenant: str
    collection: str
    id: str


class Order(NamedTuple):
    """
    Where a record stands among the others of its document.

    Inside one partition (of one incarnation of the topic) the offset decides; elsewhere
    offsets do not compare and (timestamp, topic, partition, offset) decides, which is
    arbitrary but the same for all workers.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    incarnation: int = 0

    def is_after(self, other: "Order") -> bool:
        """Tell whether this record comes later; False for the record itself."""
        if self[:2] == other[:2]:
            return (self.incarnation, self.offset) > (other.incarnation, other.offset)
        return (self.timestamp_ms, *self[:3]) > (other.timestamp_ms, *other[:3])


class Rank(NamedTuple):
    """Version, then order; `version` None is a delete without a version (a barrier)."""

    version: int | None
    order: Order


class Claim(NamedTuple):
    """
    The right to write for one partition: what every write is fenced with.

    `history` names the server's timeline at claim time; another one means that the table may
    have been restored, and counts as fenced. `next_offset`, `landmark` and `topic_id` are what
    the table says about the partition, None where it has seen nothing.
    """

    group: str
    partition: Partition
    epoch: int
    claim_id: UUID
    history: str
    incarnation: int
    next_offset: int | None
    landmark: "Landmark | None" = None
    topic_id: UUID | None = None


class Landmark(NamedTuple):
    """A settled record by which a re-created topic is recognised (`key_hash`: 8 bytes)."""

    offset: int
    timestamp_ms: int
    key_hash: bytes


class Progress(NamedTuple):
    """
    How far a partition is done, and by what the log is known: a settled record, the topic's id.

    The id is written where a claim begins, and stays.
    """

    next_offset: int
    landmark: Landmark | None = None
    topic_id: UUID | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """A Kafka record as polled; `headers` keep order and duplicates."""

    position: Position
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()

    @property
    def size_bytes(self) -> int:
        """What the record and its decoded twin take in memory, roughly."""
        return 2 * len(self.value or b"") + len(self.key or b"") + 1024


@dataclass(frozen=True, slots=True)
class Rejected:
    """
    What stands in the place of an event where a record could not be decoded, or must not be.

    Names and version are those of an event that could be read, and is refused all the same.
    """

    reason: Reason
    detail: str
    tenant: str = ""
    collection: str | None = None
    id: str | None = None
    version: int | None = None


@dataclass(slots=True, eq=False)
class Work:
    """
    An event with its position, ready to process; one outcome ends it.

    `claimed_origin` is the origin a replayed dead letter says it has; `rank` is ordered by
    the record's own position until prepare has found that origin in the ledger. `is_alone`:
    it runs with no other of its partition, as a worker may die of it (`core.isolation`).
    """

    event: Event | Rejected
    record: Record
    claim: Claim
    rank: Rank
    size_bytes: int
    traceparent: str | None = None
    claimed_origin: Order | None = None
    passes: int = 0
    is_alone: bool = False
    parked: list["Work"] = field(default_factory=list)

    @property
    def position(self) -> Position:
        """Where the record stands in the log."""
        return self.record.position

    @property
    def partition(self) -> Partition:
        """The partition that the record came from."""
        return self.claim.partition

    @property
    def tenant(self) -> str:
        """Whose document it is; the unit of fairness."""
        return self.event.tenant

    @property
    def document_key(self) -> DocumentKey:
        """
        The document that the event is about.

        A scope, and a record that could not be decoded, have keys that no document can have.
        """
        match self.event:
            case ScopeDeleted(tenant=tenant, collection=collection):
                return DocumentKey(
                    tenant, collection if isinstance(collection, str) else "", ""
                )
            case Rejected():
                return DocumentKey("", "", f"{self.position.partition}/{self.position.offset}")
            case DocumentUpserted() | DocumentDeleted() | Tombstone() as event:
                return DocumentKey(event.tenant, event.collection, event.id)


@dataclass(frozen=True, slots=True)
class Collection:
    """
    A collection as the store knows it.

    `id` and `generation` name its chunk table; `chunking` is what `core.chunking` takes;
    `index` is what it should have, whatever it has.
    """

    id: int
    name: str
    model: str
    dimensions: int
    storage: str
    metric: str
    chunking: "ChunkingOptions"
    generation: int = 1
    embedding_space: str = ""
    index: VectorIndex = DEFAULT_INDEX


@dataclass(frozen=True, slots=True)
class ChunkingOptions:
    """How the texts of a collection are split: sizes in characters."""

    strategy: str = "text"
    size: int = 1200
    overlap: int = 0


class ChunkId(NamedTuple):
    """What names a chunk inside its document: its content, and which of equal ones it is."""

    hash: bytes
    occurrence: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """
    A piece of a document: exactly what is embedded, and where it stands.

    `start` and `end` are character offsets into the text as it was published.
    """

    id: ChunkId
    seq: int
    content: str
    start: int
    end: int
    heading: str | None = None


class StoredChunk(NamedTuple):
    """A chunk as the store has it, without text and vector."""

    id: ChunkId
    seq: int
    start: int
    end: int
    heading: str | None = None


@dataclass(frozen=True, slots=True)
class StoredDocument:
    """
    The row of a document: the base that a change set is computed from.

    `version` None: the last word was a delete without a version. `barrier` is the latest
    such delete, whatever came after it.
    """

    revision: int
    version: int | None
    order: Order
    barrier: Order | None
    deleted: bool
    content_hash: bytes | None
    chunks: tuple[StoredChunk, ...] = ()


@dataclass(frozen=True, slots=True)
class Base:
    """
    What prepare read of one document in one statement.

    `scope_version` is the highest version of a scope delete that reaches it. `origin_known`:
    the ledger has a dead letter of this group at the origin that the work claims. `has_poison`:
    chunks of this tenant are known to be refused by the provider.
    """

    document: StoredDocument | None = None
    scope_version: int | None = None
    origin_known: bool = False
    has_poison: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class ChangeSet:
    """
    What one write does to one document, computed from `base`.

    Applies only where the row still is `base` and is older than `rank`. `insert` are chunks
    whose vectors are to be bought, `move` those that stay but stand elsewhere, `remove` those
    that go. `rank` is always the record's own; `barrier` is the row's barrier after the write.
    With `keeps_row` only barrier and revision change: a delete without a version that came
    late, under a row whose record stands after it.
    """

    key: DocumentKey
    collection: Collection
    base: StoredDocument | None
    rank: Rank
    barrier: Order | None
    deleted: bool
    keeps_row: bool = False
    content_hash: bytes | None = None
    metadata: bytes | None = None
    content_type: str | None = None
    trace_id: str | None = None
    occurred_at_ms: int | None = None
    insert: tuple[Chunk, ...] = ()
    move: tuple[Chunk, ...] = ()
    remove: tuple[ChunkId, ...] = ()
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Stored:
    """The row now carries this version; `embedded` chunks were bought, `kept` were not."""

    embedded: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Deleted:
    """The row is now a tombstone of this version."""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The row already carries exactly this version and position."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A later version, or a delete that reaches this one, is already committed."""


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """
    The record cannot pass; it goes to the dead-letter topic with this reason.

    `refused` is what the provider was asked for and has refused just now.
    """

    reason: Reason
    detail: str = ""
    stage: str = ""
    facts: Facts = NO_FACTS
    refused: RefusedText | None = None


@dataclass(frozen=True, slots=True)
class Released:
    """Our claim of the partition has ended: whoever owns it now meets the record again."""


Outcome = Stored | Deleted | Unchanged | Superseded | DeadLettered | Released
