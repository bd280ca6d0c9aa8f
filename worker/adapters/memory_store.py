"""
The ports `Claims`, `Store` and `Catalog` in memory.

They mean what the adapters of PostgreSQL mean (`tests/contracts` runs on both) and refuse what
PostgreSQL refuses. Every check and write of a call happens in one step of the loop.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from msgspec import UNSET

from schemas.dead_letter import Facts, Reason
from schemas.events import ScopeDeleted
from worker.adapters.memory_database import (
    ClaimRow,
    DocumentRow,
    LetterKey,
    MemoryDatabase,
)
from worker.adapters.pgvector_format import check_collection, is_same, wire
from worker.core.changeset import newer, reaches
from worker.core.model import (
    Base,
    ChangeSet,
    Chunk,
    ChunkId,
    Claim,
    Collection,
    DocumentKey,
    Order,
    Partition,
    Progress,
    Rank,
    StoredChunk,
    StoredDocument,
    Vector,
)
from worker.errors import ConfigError, FencedError, PermanentError
from worker.ports import Query, Verdict, Write

# \u0000 in a JSON string: after an even number of backslashes (jsonb refuses it).
_JSON_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


class MemoryClaims:
    """Who may write for a partition, and how far it is done."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    @property
    def blockers_ended(self) -> int:
        """How many transactions a claim had to end."""
        return self._database.blockers_ended

    async def claim(self, group: str, partition: Partition, owner: str) -> Claim:
        """Become the owner; waits for writers of the old claim, and ends them at last."""
        database = self._database
        await database.reach("claim", "before")
        await database.writers_gone(group, partition, end=True)
        old = database.state.claims.get((group, partition))
        row = ClaimRow(
            epoch=old.epoch + 1 if old else 1,
            claim_id=database.fresh_claim_id(),
            owner=owner,
            incarnation=old.incarnation if old else self._incarnation(partition.topic),
        )
        database.state.claims[group, partition] = row
        progress = database.state.progress.get((group, partition))
        claim = Claim(
            group=group,
            partition=partition,
            epoch=row.epoch,
            claim_id=row.claim_id,
            history=database.history,
            incarnation=row.incarnation,
            next_offset=progress.next_offset if progress else None,
            landmark=progress.landmark if progress else None,
            topic_id=progress.topic_id if progress else None,
        )
        await database.reach("claim", "committed")
        return claim

    def _incarnation(self, topic: str) -> int:
        claims = self._database.state.claims
        known = (row.incarnation for (_, one), row in claims.items() if one.topic == topic)
        return max(known, default=0)

    async def begin(self, claim: Claim, start: int) -> None:
        """Write the start back as `next_offset`, also downwards, with the topic's id."""
        async with self._database.transaction("begin", [claim]) as transaction:
            if claim not in transaction.live:
                raise FencedError
            progress = self._database.state.progress
            old = progress.get((claim.group, claim.partition))
            progress[claim.group, claim.partition] = Progress(
                start, old.landmark if old else None, claim.topic_id
            )

    async def save_progress(self, progress: Mapping[Claim, Progress]) -> dict[Partition, int]:
        """Raise `next_offset` where a claim has begun and is the newest; return what it is."""
        # No lock, as in PostgreSQL: a claim does not wait for it.
        saved: dict[Partition, int] = {}
        async with self._database.transaction("save_progress"):
            for claim, new in progress.items():
                old = self._database.state.progress.get((claim.group, claim.partition))
                if old is not None and self._database.is_live(claim):
                    saved[claim.partition] = self._raise(claim, old, new)
        return saved

    def _raise(self, claim: Claim, old: Progress, new: Progress) -> int:
        if old.next_offset > new.next_offset:
            return old.next_offset
        self._database.state.progress[claim.group, claim.partition] = old._replace(
            next_offset=new.next_offset, landmark=new.landmark or old.landmark
        )
        return new.next_offset

    async def next_offset(self, group: str, partition: Partition) -> int | None:
        """Return what the table says now."""
        await self._database.reach("next_offset", "before")
        progress = self._database.state.progress.get((group, partition))
        return progress.next_offset if progress else None


class MemoryStore:
    """Documents and chunks, changed only by compare-and-set under a fence."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def read(self, queries: Sequence[Query]) -> list[Base]:
        """Return each document's row and chunks, in the order of `queries`."""
        await self._database.reach("read", "before")
        return [self._base(query) for query in queries]

    def _base(self, query: Query) -> Base:
        state, origin = self._database.state, query.origin
        if query.key.collection not in state.collections:
            return Base()
        row = state.documents.get(query.key)
        return Base(
            document=row.stored if row else None,
            scope_version=self._scope_version(query.key),
            origin_known=origin is not None
            and _letter_key(query.group, origin) in state.letters,
            has_poison=any(one.tenant == query.key.tenant for one in state.poisons),
        )

    def _scope_version(self, key: DocumentKey) -> int | None:
        scopes = self._database.state.scopes
        reaching = [scopes.get((key.tenant, name)) for name in ("", key.collection)]
        versions = [rank.version for rank in reaching if rank is not None]
        return max((version for version in versions if version is not None), default=None)

    async def apply(self, writes: Sequence[Write]) -> list[Verdict]:
        """Apply change sets in one transaction, each wholly or not at all."""
        for write in writes:
            _refuse_bad_vectors(write)
        claims = {write.claim for write in writes}
        async with self._database.transaction("apply", claims) as transaction:
            verdicts = self._decide(writes, transaction.live)
            applied = [
                write
                for write, verdict in zip(writes, verdicts, strict=True)
                if verdict is Verdict.APPLIED
            ]
            for write in applied:
                _refuse_bad_text(write.change)
            for write in applied:
                self._write(write)
            self._database.resolve_letters(write.change.key for write in applied)
        return verdicts

    def _decide(self, writes: Sequence[Write], live: frozenset[Claim]) -> list[Verdict]:
        verdicts: list[Verdict] = []
        keys: set[DocumentKey] = set()
        for write in writes:
            key = write.change.key
            if write.claim not in live:
                verdicts.append(Verdict.FENCED)
            elif key in keys or not self._applies(write.change):
                verdicts.append(Verdict.BASE_CHANGED)
            else:
                verdicts.append(Verdict.APPLIED)
            keys.add(key)
        return verdicts

    def _applies(self, change: ChangeSet) -> bool:
        row = self._database.state.documents.get(change.key)
        version = change.rank.version
        if version is not None and reaches(self._scope_version(change.key), version):
            return False
        if row is None or change.base is None:
            return row is None and change.base is None
        return _identity(row.stored) == _identity(change.base) and newer(
            change.rank, row.stored
        )

    def _write(self, write: Write) -> None:
        change, documents = write.change, self._database.state.documents
        row = documents.get(change.key)
        if change.keeps_row and row is not None:
            barrier_raised = replace(
                row.stored, revision=row.stored.revision + 1, barrier=change.barrier
            )
            documents[change.key] = replace(row, stored=barrier_raised)
            return
        chunks = _changed_chunks(write, dict(row.chunks) if row else {})
        stored = StoredDocument(
            revision=row.stored.revision + 1 if row else 1,
            version=change.rank.version,
            order=change.rank.order,
            barrier=change.barrier,
            deleted=change.deleted,
            content_hash=change.content_hash,
            chunks=_stored_chunks(chunks),
        )
        documents[change.key] = DocumentRow(
            stored=stored,
            chunks=chunks,
            metadata=change.metadata,
            content_type=change.content_type,
            trace_id=change.trace_id,
            occurred_at_ms=change.occurred_at_ms,
        )

    async def delete_scope(self, claim: Claim, scope: ScopeDeleted, rank: Rank) -> Verdict:
        """Delete what a scope reaches, in three steps; repeating it changes nothing."""
        database = self._database
        name = "" if scope.collection is UNSET else scope.collection
        async with database.transaction("delete_scope", [claim]) as transaction:
            if claim not in transaction.live:
                return Verdict.FENCED
            scopes = database.state.scopes
            old = scopes.get((scope.tenant, name))
            if old is None or old.version is None or old.version < scope.version:
                scopes[scope.tenant, name] = Rank(scope.version, rank.order)
        await database.reach("delete_scope", "barrier")
        for group, partition in list(database.state.claims):
            await database.writers_gone(group, partition, end=False)
        await database.reach("delete_scope", "sweep")
        for key, row in list(database.state.documents.items()):
            version = row.stored.version
            in_scope = key.tenant == scope.tenant and name in ("", key.collection)
            if in_scope and version is not None and version <= scope.version:
                self._sweep(key, row)
        return Verdict.APPLIED

    def _sweep(self, key: DocumentKey, row: DocumentRow) -> None:
        documents, barrier = self._database.state.documents, row.stored.barrier
        if barrier is None:
            del documents[key]
            return
        left = StoredDocument(
            revision=row.stored.revision + 1,
            version=None,
            order=barrier,
            barrier=barrier,
            deleted=True,
            content_hash=None,
        )
        documents[key] = DocumentRow(stored=left, chunks={})


class MemoryCatalog:
    """The collections there are."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def collection(self, name: str) -> Collection | None:
        """Return a collection, None where there is none of that name."""
        await self._database.reach("collection", "before")
        return self._database.state.collections.get(name)

    async def collections(self) -> list[Collection]:
        """Return all collections by name."""
        await self._database.reach("collections", "before")
        return [found for _, found in sorted(self._database.state.collections.items())]

    async def create(self, collection: Collection) -> Collection:
        """Create a collection; again with the same settings changes nothing."""
        check_collection(collection)
        async with self._database.transaction("create"):
            collections = self._database.state.collections
            old = collections.get(collection.name)
            if old is None:
                old = replace(collection, id=len(collections) + 1, generation=1)
                collections[collection.name] = old
            elif not is_same(old, collection):
                raise ConfigError(
                    f"the collection {collection.name!r} exists with other settings"
                )
        return old


def _letter_key(group: str, origin: Order) -> LetterKey:
    partition = Partition(origin.topic, origin.partition)
    return LetterKey(group, partition, origin.incarnation, origin.offset)


def _identity(document: StoredDocument) -> tuple[int, int | None, Order]:
    # Not the revision alone: a row that a scope delete has removed begins at 1 again.
    return document.revision, document.version, document.order


def _changed_chunks(
    write: Write, chunks: dict[ChunkId, tuple[Chunk, Vector]]
) -> dict[ChunkId, tuple[Chunk, Vector]]:
    change = write.change
    for chunk in change.insert:
        chunks[chunk.id] = chunk, write.vectors[chunk.id]
    for chunk in change.move:
        if chunk.id in chunks:
            old, vector = chunks[chunk.id]
            chunks[chunk.id] = replace(chunk, content=old.content), vector
    for identity in change.remove:
        chunks.pop(identity, None)
    return chunks


def _stored_chunks(
    chunks: Mapping[ChunkId, tuple[Chunk, Vector]],
) -> tuple[StoredChunk, ...]:
    in_order = sorted((chunk for chunk, _ in chunks.values()), key=lambda chunk: chunk.seq)
    return tuple(
        StoredChunk(chunk.id, chunk.seq, chunk.start, chunk.end, chunk.heading)
        for chunk in in_order
    )


def _refuse_bad_vectors(write: Write) -> None:
    change = write.change
    vectors = [write.vectors[chunk.id] for chunk in change.insert]
    wire(vectors, change.collection.dimensions, change.collection.storage)


def _refuse_bad_text(change: ChangeSet) -> None:
    texts = [*change.key, change.content_type or "", change.trace_id or ""]
    for chunk in (*change.insert, *change.move):
        texts += chunk.content, chunk.heading or ""
    if any("\0" in text for text in texts):
        raise _refused("22021", "PostgreSQL takes no U+0000")
    if _JSON_NUL.search(change.metadata or b""):
        raise _refused("22P05", "PostgreSQL takes no U+0000")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        # As asyncpg has it, which does not ask the server.
        raise _refused("22000", "a text is no valid UTF-8") from error


def _refused(sqlstate: str, message: str) -> PermanentError:
    return PermanentError(Reason.REJECTED_BY_STORE, message, facts=Facts(sqlstate=sqlstate))
