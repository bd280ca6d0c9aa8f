"""
What the memory adapters share: the state, transactions under a fence, faults on demand.

Behaves as PostgreSQL does for its callers: a transaction that is open under a claim makes the
next claim of that partition wait, and after a while that claim ends it; what is not committed
is not seen; `restore` makes another history, under which no claim of before is good. A `hook`
is awaited at each call's moments (`before`, `open`, `committed`): it may raise, which after
`committed` is a lost answer, or wait, which holds the transaction open. Deterministic: no
clock but the loop's, no randomness.

Invariant: whatever reads or writes the state does it in one step, without waiting.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields
from typing import NamedTuple, Self
from uuid import UUID

from worker.core.changeset import newer
from worker.core.isolation import CrashEntry
from worker.core.model import (
    Chunk,
    ChunkId,
    Claim,
    Collection,
    DocumentKey,
    Order,
    Partition,
    Progress,
    Rank,
    StoredDocument,
    Vector,
)
from worker.errors import StoreUnavailable
from worker.ports import DeadLetter, Hold, Poison, PoisonKey, Recorded

Hook = Callable[[str, str], Awaitable[None]]
"""Awaited with the name of a port's call and the moment: `before`, `open`, `committed`."""


class ClaimRow(NamedTuple):
    """The newest claim of a partition."""

    epoch: int
    claim_id: UUID
    owner: str
    incarnation: int


class LetterKey(NamedTuple):
    """What names a dead letter in the ledger."""

    group: str
    partition: Partition
    incarnation: int
    offset: int

    @classmethod
    def of(cls, letter: DeadLetter) -> Self:
        """Return what names this letter."""
        claim, position = letter.claim, letter.record.position
        return cls(claim.group, claim.partition, claim.incarnation, position.offset)


class LetterRow(NamedTuple):
    """A dead letter as the ledger knows it; `state` is pending, published or resolved."""

    letter: DeadLetter
    state: str
    recorded: Recorded


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document's row with its chunks, their texts and vectors; replaced, never changed."""

    stored: StoredDocument
    chunks: Mapping[ChunkId, tuple[Chunk, Vector]]
    metadata: bytes | None = None
    content_type: str | None = None
    trace_id: str | None = None
    occurred_at_ms: int | None = None


@dataclass(slots=True)
class State:
    """All tables."""

    collections: dict[str, Collection] = field(default_factory=dict)
    documents: dict[DocumentKey, DocumentRow] = field(default_factory=dict)
    scopes: dict[tuple[str, str], Rank] = field(default_factory=dict)
    claims: dict[tuple[str, Partition], ClaimRow] = field(default_factory=dict)
    progress: dict[tuple[str, Partition], Progress] = field(default_factory=dict)
    letters: dict[LetterKey, LetterRow] = field(default_factory=dict)
    crashes: dict[tuple[str, Partition], CrashEntry] = field(default_factory=dict)
    holds: dict[tuple[str, Partition], Hold] = field(default_factory=dict)
    poisons: dict[PoisonKey, Poison] = field(default_factory=dict)

    def copy(self) -> "State":
        """Return the same rows in tables of their own."""
        return State(**{table.name: dict(getattr(self, table.name)) for table in fields(self)})


@dataclass(slots=True, eq=False)
class Transaction:
    """An open transaction: the claims it locks, those of them that are good, and its end."""

    locked: frozenset[tuple[str, Partition]]
    live: frozenset[Claim]
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False


class MemoryDatabase:
    """A database inside the process: what all adapters of ports of a database work on."""

    def __init__(self, *, hook: Hook | None = None, patience_seconds: float = 5) -> None:
        self.state = State()
        self.hook = hook
        self.blockers_ended = 0
        self._patience_seconds = patience_seconds
        self._open: list[Transaction] = []
        self._restores = 0
        self._claim_ids = 0

    @property
    def history(self) -> str:
        """What a server's system identifier, timeline and start are to PostgreSQL."""
        return f"memory/{self._restores}"

    def snapshot(self) -> State:
        """Return a backup."""
        return self.state.copy()

    def restore(self, backup: State) -> None:
        """Put the tables back: another history, and no transaction survives it."""
        self.state = backup.copy()
        self._restores += 1
        for transaction in self._open:
            transaction.ended = True

    def fresh_claim_id(self) -> UUID:
        """Return an id that no claim ever had, whatever was restored."""
        self._claim_ids += 1
        return UUID(int=self._claim_ids)

    def resolve_letters(self, keys: Iterable[DocumentKey]) -> None:
        """Resolve the published letters of documents whose rows now stand at or above them."""
        changed = frozenset(keys)
        for key, row in self.state.letters.items():
            letter = row.letter
            if row.state == "published" and letter.document_id is not None:
                document = DocumentKey(
                    letter.tenant or "", letter.collection or "", letter.document_id
                )
                order = letter.origin or Order(
                    *letter.record.position, letter.record.timestamp_ms, key.incarnation
                )
                rank = Rank(letter.version, order)
                if document in changed and not newer(
                    rank, self.state.documents[document].stored
                ):
                    self.state.letters[key] = row._replace(state="resolved")

    def is_live(self, claim: Claim) -> bool:
        """Tell whether a claim is the newest of its partition, and of this history."""
        row = self.state.claims.get((claim.group, claim.partition))
        return (
            row is not None
            and (row.epoch, row.claim_id) == (claim.epoch, claim.claim_id)
            and claim.history == self.history
        )

    async def reach(self, call: str, moment: str) -> None:
        """Let the hook fail or hold a call."""
        if self.hook is not None:
            await self.hook(call, moment)

    @asynccontextmanager
    async def transaction(
        self, call: str, claims: Iterable[Claim] = ()
    ) -> AsyncIterator[Transaction]:
        """
        Open a transaction under the fence of some claims; the body must not wait.

        Raises:
            StoreUnavailable: a claim or a restore ended it; nothing was written.
        """
        await self.reach(call, "before")
        fenced = frozenset(claims)
        transaction = Transaction(
            locked=frozenset((claim.group, claim.partition) for claim in fenced),
            live=frozenset(claim for claim in fenced if self.is_live(claim)),
        )
        self._open.append(transaction)
        try:
            await self.reach(call, "open")
            if transaction.ended:
                raise StoreUnavailable("the server ended the transaction")
            yield transaction
        finally:
            self._open.remove(transaction)
            transaction.closed.set()
        await self.reach(call, "committed")

    async def writers_gone(self, group: str, partition: Partition, *, end: bool) -> None:
        """
        Wait until no transaction is open under a partition's claim.

        Raises:
            StoreUnavailable: it takes too long, and `end` does not say to end them.
        """
        try:
            async with asyncio.timeout(self._patience_seconds):
                while writers := self._writers(group, partition):
                    await writers[0].closed.wait()
        except TimeoutError:
            if not end:
                raise StoreUnavailable("a lock was not to be had in time") from None
            for writer in self._writers(group, partition):
                writer.ended = True
                self.blockers_ended += 1

    def _writers(self, group: str, partition: Partition) -> list[Transaction]:
        return [
            transaction
            for transaction in self._open
            if (group, partition) in transaction.locked and not transaction.ended
        ]
