"""
What the pipeline needs from outside, in our words.

Each port has one contract suite (`tests/contracts`), run on memory and on the real thing.
Every call may raise the `TransientError` of its technology: the outcome of a write is then
unknown, and the caller repeats it, which changes nothing. All times are seconds.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from collections.abc import Collection as Several
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, NamedTuple, Protocol

from schemas.dead_letter import NO_FACTS, Facts, Reason
from schemas.events import ScopeDeleted
from worker.core.dialects import InputType
from worker.core.isolation import Alone, CrashEntry
from worker.core.model import (
    Base,
    ChangeSet,
    ChunkId,
    Claim,
    Collection,
    DocumentKey,
    Landmark,
    Order,
    Partition,
    Position,
    Progress,
    Rank,
    Record,
    Vector,
)

Clock = Callable[[], float]
"""A monotonic clock, in seconds."""

Spawn = Callable[[Coroutine[Any, Any, None]], object]
"""Start a task in the runner's TaskGroup."""

Offload = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Run CPU work off the loop; in a simulation, in line."""


@dataclass(frozen=True, slots=True)
class PolledBatch:
    """
    Records of one partition in the order of the log, perhaps none.

    `next_offset` is the position after them, also past markers and compacted records: every
    record below it has been handed out.
    """

    partition: Partition
    records: tuple[Record, ...]
    next_offset: int


@dataclass(frozen=True, slots=True)
class BatchSpan:
    """What the header of a record batch says; `timestamp_ms` is the largest."""

    first: int
    last: int
    records: int
    size_bytes: int
    codec: str
    timestamp_ms: int


class Assignments(Protocol):
    """Who is told what the group assigns; the runner."""

    def assigned(self, assignment: int, partitions: frozenset[Partition]) -> None:
        """Take note of an assignment; nothing of it is polled before `Source.begin`."""

    async def revoked(self) -> None:
        """Drain all that is assigned, under the drain deadline, and commit. Never raises."""

    def failed(self, partition: Partition, reason: str) -> None:
        """Take note that a partition cannot be polled; it is paused, the others go on."""

    def unreadable(self, partition: Partition, offset: int, error: str) -> None:
        """Take note that the batch at `offset` is unreadable: paused; all below was polled."""


class Source(Protocol):
    """
    Where records come from: a member of a consumer group.

    `assignment` numbers grow with every assignment of this member; a number that is not the
    newest any more is refused by answering False or nothing.
    """

    async def open(self, assignments: Assignments) -> None:
        """Join the group; returns when joined or when the broker is known to be reachable."""

    async def poll(
        self, wanted: Sequence[Partition], singly: Several[Partition] = frozenset()
    ) -> list[PolledBatch]:
        """
        Return what has arrived for these partitions, in fair order, waiting a short while.

        Of partitions in `singly` at most one record, and no batch behind its own is unpacked.
        With nothing wanted it only keeps the membership alive. Nothing is awaited between
        taking the records from the client and returning them: the caller tracks them at once.

        Raises:
            BrokerUnavailable: this member will never deliver again; one that is merely away is
                waited for.
        """

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's committed offset, None where there is none."""

    async def bounds(self, partition: Partition) -> tuple[int, int]:
        """Return the first offset that is still there and the end (last stable offset)."""

    async def landmark(self, partition: Partition, offset: int) -> Landmark | None:
        """Return the landmark of the record at this offset, None: gone, or not readable."""

    async def batch(self, partition: Partition, offset: int) -> BatchSpan | None:
        """
        Return the span of the batch at this offset, or of the first one behind it, if any.

        Raises:
            BrokerUnavailable: also where that is no header of message format v2.
        """

    def begin(self, assignment: int, partition: Partition, offset: int) -> bool:
        """Start polling at an offset; False where the assignment is not the newest any more."""

    def pause(self, partition: Partition) -> None:
        """Stop polling a partition until `begin`; one that is not ours is no error."""

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """
        Tell the group what is done (an offset is the next one to read).

        Raises:
            FencedError: this member is not in the group (any more).
            BrokerUnavailable: the outcome is unknown.
        """

    async def confirm(self) -> tuple[int, frozenset[Partition]]:
        """Return assignment and partitions after a heartbeat that succeeded after this call."""

    def lag(self, partition: Partition) -> int | None:
        """Return how many offsets are stable and not polled, None while unknown."""

    async def close(self) -> None:
        """Leave the group; `revoked` is not called. Safe to call twice."""


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
        Write the start back as `next_offset` (also downwards).

        Raises:
            FencedError: the claim is not the newest any more.
        """

    async def save_progress(self, progress: Mapping[Claim, Progress]) -> dict[Partition, int]:
        """
        Raise `next_offset` (never lower it) where the claim is still the newest.

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
        Write which record is alone in flight now; durable when this returns.

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
        Write that a partition is held; again, that it still is.

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


class Query(NamedTuple):
    """One document to read; `origin` is looked up in the ledger where a replay claims it."""

    key: DocumentKey
    group: str
    origin: Order | None = None


class Write(NamedTuple):
    """One change set with the claim it is fenced by and a vector for each of its inserts."""

    change: ChangeSet
    claim: Claim
    vectors: Mapping[ChunkId, Vector]


class Store(Protocol):
    """Documents and chunks, changed only by compare-and-set under a fence."""

    async def read(self, queries: Sequence[Query]) -> list[Base]:
        """Return each document's row and chunks as of one moment, in the order of `queries`."""

    async def apply(self, writes: Sequence[Write]) -> list[Verdict]:
        """
        Apply change sets in one transaction, each wholly or not at all.

        A write is `FENCED` where its claim is not the newest, `BASE_CHANGED` where the row is
        not its base, a scope delete reaches it, or an earlier write of the call has its key.

        Raises:
            PermanentError: PostgreSQL refuses a value; nothing was written.
            StoreUnavailable: the outcome is unknown.
        """

    async def delete_scope(self, claim: Claim, scope: ScopeDeleted, rank: Rank) -> Verdict:
        """Delete what a scope reaches, in three steps; repeating it changes nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A record that cannot pass, with what is known about it. `detail` holds no secret."""

    record: Record
    claim: Claim
    reason: Reason
    stage: str
    detail: str = ""
    facts: Facts = NO_FACTS
    origin: Order | None = None
    tenant: str | None = None
    collection: str | None = None
    document_id: str | None = None
    version: int | None = None
    traceparent: str | None = None
    passes: int = 0


class Recorded(NamedTuple):
    """
    What the ledger says of a letter: how often it was recorded, and when first and last.

    In milliseconds of its clock. The first time is that of the first attempt, also after a
    crash or a rewind. `is_published`: the topic has acknowledged it before.
    """

    attempts: int
    first_seen_ms: int
    last_seen_ms: int
    is_published: bool


class Ledger(Protocol):
    """The dead letters as the database knows them: the truth for replay."""

    async def record(self, letters: Sequence[DeadLetter]) -> list[Recorded | None]:
        """
        Write pending rows under the fence; None of a letter whose claim is not the newest.

        Recording one again counts an attempt and changes no state. Letters of one record in
        one call are one row, the last of them, and one attempt.
        """

    async def mark_published(self, group: str, positions: Sequence[Position]) -> None:
        """Mark rows whose letters the dead-letter topic has acknowledged."""


class DeadLetters(Protocol):
    """The dead-letter topic."""

    async def publish(self, letter: DeadLetter, recorded: Recorded) -> None:
        """
        Publish one letter, as the ledger has it, and wait for the acknowledgement.

        Raises:
            BrokerUnavailable: the outcome is unknown.
        """

    async def close(self) -> None:
        """Release the connection. Safe to call twice."""


class PoisonKey(NamedTuple):
    """What names a refused chunk: whose it is, who refused it, and the hash of its text."""

    tenant: str
    model: str
    chunk_hash: bytes


class Refusal(NamedTuple):
    """Why a chunk was refused; `detail` is without prose of the provider's."""

    reason: Reason
    detail: str


class Poison(NamedTuple):
    """A chunk that is known to be refused; `seen_at`: when it last was."""

    reason: Reason
    detail: str
    seen_at: datetime


class Poisons(Protocol):
    """The chunks that the embedding provider has refused for their text."""

    async def known(self, keys: Sequence[PoisonKey]) -> dict[PoisonKey, Poison]:
        """Return those of the chunks that are known to be refused."""

    async def remember(self, refusals: Mapping[PoisonKey, Refusal]) -> None:
        """Write down what was refused just now, in the place of what was known of it."""

    async def forget(self, keys: Sequence[PoisonKey]) -> None:
        """Know nothing of these chunks any more."""


class Catalog(Protocol):
    """The collections there are."""

    async def collection(self, name: str) -> Collection | None:
        """Return a collection, None where there is none of that name."""

    async def collections(self) -> list[Collection]:
        """Return all collections by name."""

    async def create(self, collection: Collection, *, index: bool) -> Collection:
        """
        Create a collection with its chunk table and view; returns it with its id.

        Creating it again with the same settings changes nothing.

        Raises:
            ConfigError: it exists with other settings, or its dimensions do not fit.
        """


class EmbeddingRequest(NamedTuple):
    """
    Texts for one call of the provider; it never mixes models or tenants' secrets.

    `input_type` tells texts that are searched from those that are searched for: some models
    embed the two differently.
    """

    model: str
    dimensions: int
    texts: Sequence[str]
    traceparents: Sequence[str] = ()
    input_type: InputType = "document"


class Embedder(Protocol):
    """An embedding provider."""

    async def embed(self, request: EmbeddingRequest) -> list[Vector]:
        """
        Return one vector a text, in order; one call, no retry.

        Raises:
            RejectedInput: at least one of the texts is refused.
            ProviderUnavailable: no answer, or none that can be used.
        """

    async def close(self) -> None:
        """Release the connections. Safe to call twice."""
