"""Change sets for tests of the store, computed from a base as prepare would."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import replace

from worker.core.model import (
    Base,
    ChangeSet,
    Chunk,
    ChunkId,
    ChunkingOptions,
    Claim,
    Collection,
    DocumentKey,
    Order,
    Partition,
    Rank,
    StoredDocument,
    Vector,
)
from worker.core.vector_index import NO_INDEX, VectorIndex
from worker.ports import Write

GROUP = "group"
PARTITION = Partition("documents", 0)
ARTICLES = Collection(
    id=0,
    name="articles",
    model="model",
    dimensions=2,
    storage="halfvec",
    metric="cosine",
    chunking=ChunkingOptions(),
    index=NO_INDEX,
)
INDEXED = VectorIndex(build_at_rows=0)
"""Of a collection that always has its index."""
KEY = DocumentKey("tenant", "articles", "document")


def key(document: str = "document", *, tenant: str = "tenant", collection: str = "articles"):
    return DocumentKey(tenant, collection, document)


def at(offset: int, *, partition: int = 0, topic: str = "documents", **other: int) -> Order:
    return Order(topic, partition, offset, other.pop("timestamp_ms", 0), **other)


def chunk(text: str, seq: int = 0, *, occurrence: int = 0, heading: str | None = None) -> Chunk:
    identity = ChunkId(hashlib.sha256(text.encode(errors="replace")).digest(), occurrence)
    return Chunk(identity, seq, text, 10 * seq, 10 * seq + len(text), heading)


def vector(*values: float) -> Vector:
    return Vector(struct.pack(f"<{len(values)}f", *values))


def vector_of(text: str, dimensions: int) -> Vector:
    """Small whole numbers: a halfvec holds them exactly."""
    return vector(*hashlib.shake_128(text.encode(errors="replace")).digest(dimensions))


def upsert(
    collection: Collection,
    base: Base,
    *,
    version: int,
    offset: int = 0,
    texts: Sequence[str] = (),
    of: DocumentKey = KEY,
    order: Order | None = None,
    **columns: object,
) -> ChangeSet:
    """Return what makes the document hold exactly these texts, in this order."""
    document = base.document
    have = {stored.id: stored for stored in document.chunks} if document else {}
    wanted = [chunk(text, seq) for seq, text in enumerate(texts)]
    return ChangeSet(
        key=of,
        collection=collection,
        base=document,
        rank=Rank(version, order or at(offset)),
        barrier=document.barrier if document else None,
        deleted=False,
        content_hash="\n".join(texts).encode(errors="replace"),
        insert=tuple(found for found in wanted if found.id not in have),
        move=tuple(
            found for found in wanted if found.id in have and have[found.id].seq != found.seq
        ),
        remove=tuple(identity for identity in have if identity not in {w.id for w in wanted}),
        **columns,
    )


def delete(
    collection: Collection,
    base: Base,
    *,
    version: int | None,
    offset: int = 0,
    of: DocumentKey = KEY,
    order: Order | None = None,
) -> ChangeSet:
    """Return a delete; without a version it is a barrier, and keeps a row that stands after."""
    document, order = base.document, order or at(offset)
    keeps_row = version is None and document is not None and document.order.is_after(order)
    chunks = () if document is None or keeps_row else document.chunks
    barrier = document.barrier if document else None
    return ChangeSet(
        key=of,
        collection=collection,
        base=document,
        rank=Rank(version, order),
        barrier=order if version is None else barrier,
        deleted=True,
        keeps_row=keeps_row,
        remove=tuple(stored.id for stored in chunks),
    )


def write(change: ChangeSet, claim: Claim) -> Write:
    dimensions = change.collection.dimensions
    vectors = {found.id: vector_of(found.content, dimensions) for found in change.insert}
    return Write(change, claim, vectors)


def based_on(change: ChangeSet, document: StoredDocument | None) -> ChangeSet:
    return replace(change, base=document)
