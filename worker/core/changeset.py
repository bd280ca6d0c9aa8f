"""
What an event does to a document, decided against the row that prepare has read.

Owns the order among the records of one document (protocol, sections 2 and 7): version, then
position; a delete without a version is a barrier that beats every record before it. The store
applies a change set only where the row still is its base, so a decision made here can be late
but never wrong. Never waits, never reads a clock.

Invariants: the rank of a row never falls, but over a barrier; what is decided `Superseded` or
`Unchanged` is covered by a row that is committed already.
"""

from collections.abc import Iterable
from datetime import UTC, datetime

from msgspec import UNSET, json

from schemas.events import DocumentDeleted, DocumentUpserted, Tombstone
from worker.core.model import (
    Base,
    ChangeSet,
    Chunk,
    Collection,
    Order,
    Rank,
    StoredDocument,
    Superseded,
    Unchanged,
    Work,
)

_FIRST_MS = round(datetime.min.replace(tzinfo=UTC).timestamp() * 1000)
_LAST_MS = round(datetime.max.replace(tzinfo=UTC).timestamp() * 1000) - 1


def newer(rank: Rank, document: StoredDocument | None) -> bool:
    """Tell whether a record of this rank changes what the row says."""
    if document is None:
        return True
    if document.barrier is not None and not rank.order.is_after(document.barrier):
        return False
    if rank.version is None or document.version is None:
        return True
    if rank.version != document.version:
        return rank.version > document.version
    return rank.order.is_after(document.order)


def settled(work: Work, base: Base) -> Unchanged | Superseded | None:
    """Return how a record ends that committed rows cover already, None where none does."""
    rank, document = work.rank, base.document
    if document is not None and _carries(document, rank):
        return Unchanged()
    if not newer(rank, document):
        return Superseded()
    if rank.version is not None and reaches(base.scope_version, rank.version):
        return Superseded()
    return None


def reaches(scope_version: int | None, version: int) -> bool:
    """Tell whether a scope delete reaches a document of this version."""
    return scope_version is not None and scope_version >= version


def _carries(document: StoredDocument, rank: Rank) -> bool:
    if rank.version is None:
        return document.barrier == rank.order
    return (document.version, document.order) == (rank.version, rank.order)


def delete(work: Work, collection: Collection, base: Base) -> ChangeSet:
    """
    Return the change set of a delete: the row becomes a tombstone, its chunks go.

    A delete without a version that stands before the row's record only raises the barrier.
    """
    event, document, rank = work.event, base.document, work.rank
    assert isinstance(event, DocumentDeleted | Tombstone)
    keeps_row = (
        rank.version is None and document is not None and document.order.is_after(rank.order)
    )
    return ChangeSet(
        key=work.document_key,
        collection=collection,
        base=document,
        rank=rank,
        barrier=rank.order if rank.version is None else _barrier(document),
        deleted=True,
        keeps_row=keeps_row,
        trace_id=_trace_id(work),
        occurred_at_ms=_occurred_at_ms(event),
        remove=() if keeps_row or document is None else tuple(c.id for c in document.chunks),
    )


def upsert(
    work: Work,
    collection: Collection,
    base: Base,
    content_hash: bytes,
    chunks: Iterable[Chunk] | None,
) -> ChangeSet:
    """
    Return the change set of an upsert.

    `chunks` None says that the row's content hash is the same: no chunk changes.
    """
    event, document = work.event, base.document
    assert isinstance(event, DocumentUpserted)
    have = {chunk.id: chunk for chunk in document.chunks} if document else {}
    insert: list[Chunk] = []
    move: list[Chunk] = []
    kept = len(have)
    if chunks is not None:
        wanted = {chunk.id: chunk for chunk in chunks}
        insert = [chunk for chunk in wanted.values() if chunk.id not in have]
        kept = len(wanted) - len(insert)
        move = [
            chunk
            for chunk in wanted.values()
            if chunk.id in have and _place(chunk) != have[chunk.id][1:]
        ]
        have = {identity: chunk for identity, chunk in have.items() if identity not in wanted}
    return ChangeSet(
        key=work.document_key,
        collection=collection,
        base=document,
        rank=work.rank,
        barrier=_barrier(document),
        deleted=False,
        content_hash=content_hash,
        metadata=_metadata(event),
        content_type=event.content_type if event.content_type is not UNSET else None,
        trace_id=_trace_id(work),
        occurred_at_ms=_occurred_at_ms(event),
        insert=tuple(insert),
        move=tuple(move),
        remove=() if chunks is None else tuple(have),
        kept=kept,
    )


def same_content(base: Base, content_hash: bytes) -> bool:
    """Tell whether the row holds exactly this content, so that no chunk changes."""
    document = base.document
    return (
        document is not None and not document.deleted and document.content_hash == content_hash
    )


def _place(chunk: Chunk) -> tuple[int, int, int, str | None]:
    return chunk.seq, chunk.start, chunk.end, chunk.heading


def _barrier(document: StoredDocument | None) -> Order | None:
    return document.barrier if document else None


def _metadata(event: DocumentUpserted) -> bytes | None:
    return None if event.metadata is UNSET else json.encode(event.metadata)


def _trace_id(work: Work) -> str | None:
    # version-traceid-parentid-flags (W3C Trace Context, section 3.2)
    return work.traceparent[3:35] if work.traceparent else None


def _occurred_at_ms(event: DocumentUpserted | DocumentDeleted | Tombstone) -> int | None:
    occurred_at = getattr(event, "occurred_at", UNSET)
    if occurred_at is UNSET:
        return None
    # Of UTC's years 1 to 9999 an offset, or rounding, may leave; who reads them has no others.
    occurred_at_ms: int = round(occurred_at.timestamp() * 1000)
    return min(max(occurred_at_ms, _FIRST_MS), _LAST_MS)
