"""Documents and chunks, and the collections they are in."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from schemas.events import ScopeDeleted
from worker.core.model import (
    Base,
    ChangeSet,
    ChunkId,
    Claim,
    Collection,
    DocumentKey,
    Order,
    Rank,
    Vector,
)
from worker.ports.partitions import Verdict


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


class Catalog(Protocol):
    """The collections there are."""

    async def collection(self, name: str) -> Collection | None:
        """Return a collection, None where there is none of that name."""

    async def collections(self) -> list[Collection]:
        """Return all collections by name."""

    async def create(self, collection: Collection) -> Collection:
        """
        Create a collection with its chunk table and view; returns it with its id.

        Its index is created where it should always be there. Creating it again with the same
        settings changes nothing, and the index that it should have is not among them.

        Raises:
            ConfigError: it exists with other settings, or its dimensions do not fit.
        """
