"""Works for tests, as intake would make them."""

from uuid import UUID

from schemas.dead_letter import Reason
from schemas.events import DocumentDeleted, DocumentUpserted, Event, ScopeDeleted, Tombstone
from worker.core.model import (
    ChunkingOptions,
    Claim,
    Collection,
    Order,
    Partition,
    Position,
    Rank,
    Record,
    Rejected,
    Work,
)

CLAIM_ID = UUID("00000000-0000-4000-8000-000000000001")


def claim(partition: int = 0, *, epoch: int = 1, topic: str = "documents") -> Claim:
    return Claim(
        group="group",
        partition=Partition(topic, partition),
        epoch=epoch,
        claim_id=CLAIM_ID,
        history="history",
        incarnation=0,
        next_offset=None,
    )


def work(
    event: Event | Rejected,
    *,
    offset: int = 0,
    of: Claim | None = None,
    size_bytes: int | None = None,
    timestamp_ms: int = 0,
    claimed_origin: Order | None = None,
) -> Work:
    of = of or claim()
    position = Position(of.partition.topic, of.partition.number, offset)
    record = Record(position, timestamp_ms, b"key", b"value")
    version = None if isinstance(event, Tombstone | Rejected) else event.version
    return Work(
        event=event,
        record=record,
        claim=of,
        rank=Rank(version, Order(*position, timestamp_ms)),
        size_bytes=record.size_bytes if size_bytes is None else size_bytes,
        claimed_origin=claimed_origin,
    )


def upsert(
    document: str,
    *,
    version: int = 1,
    text: str = "text",
    tenant: str = "tenant",
    collection: str = "articles",
    **place: object,
) -> Work:
    event = DocumentUpserted(
        tenant=tenant, collection=collection, id=document, version=version, text=text
    )
    return work(event, **place)


def delete(document: str, *, version: int = 1, tenant: str = "tenant", **place: object) -> Work:
    event = DocumentDeleted(tenant=tenant, collection="articles", id=document, version=version)
    return work(event, **place)


def tombstone(document: str, *, tenant: str = "tenant", **place: object) -> Work:
    return work(Tombstone(tenant=tenant, collection="articles", id=document), **place)


def scope(*, version: int = 1, tenant: str = "tenant", **place: object) -> Work:
    return work(ScopeDeleted(tenant=tenant, version=version), **place)


def rejected(**place: object) -> Work:
    return work(Rejected(Reason.UNDECODABLE, "no JSON"), **place)


def collection(name: str = "articles") -> Collection:
    return Collection(
        id=1,
        name=name,
        model="model",
        dimensions=4,
        storage="halfvec",
        metric="cosine",
        chunking=ChunkingOptions(),
    )
