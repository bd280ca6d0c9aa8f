"""
An upstream service: publishes documents, changes some, deletes some, and makes mistakes.

Everything goes through the public publisher, but the mistakes, which it would refuse.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from aiokafka import AIOKafkaProducer

from schemas.codec import encode_event
from schemas.events import DocumentDeleted, DocumentUpserted, JsonEvent
from schemas.publisher import Publisher
from worker.embedded.demo.corpus import OBJECTS, Document
from worker.embedded.demo.known_items import SENTENCE

EDITED, DELETED, REPEATED = 200, 50, 500
ADDED_SENTENCE = "This sentence was added when the document was edited."
CUT_OFF = DocumentUpserted(
    tenant=OBJECTS,
    collection="docs",
    id="lighthouse",
    version=1,
    text="Every four hours of the night the keeper of the lighthouse winds up the clockwork "
    "that turns the lens.",
)
"""What a publisher that crashed had meant; only the half of it has arrived."""
MALFORMED: tuple[tuple[bytes | None, bytes], ...] = (
    (b"objects/docs/lighthouse", encode_event(CUT_OFF)[:120]),
    (None, b'{"type": "delete", "tenant": "objects", "collection": "docs", "id": "x"}'),
    (b"objects/docs/renamed", b'{"type": "rename", "tenant": "objects", "version": 1}'),
    (b"objects/docs/unversioned", b'{"type": "delete", "tenant": "objects"}'),
    (
        b"objects/docs/one",
        (
            b'{"type": "upsert", "tenant": "objects", "collection": "docs", "id": "two", '
            b'"version": 1, "text": "whose key is this?"}'
        ),
    ),
)


class Changes(NamedTuple):
    """What happens to a corpus after it was published: all of version 2, but the repeated."""

    edited: Sequence[Document]
    deleted: Sequence[Document]
    repeated: Sequence[Document]


def plan_changes(documents: Sequence[Document], chance: random.Random) -> Changes:
    """Edit one sentence each of the longest documents; delete and repeat some of the others."""
    by_length = sorted(documents, key=lambda one: len(one.text), reverse=True)
    count = min(EDITED, len(documents) // 3)
    edited, others = by_length[:count], by_length[count:]
    chance.shuffle(others)
    deleted = others[: min(DELETED, len(others) // 4)]
    repeated = others[len(deleted) :][:REPEATED]
    return Changes([_edit(one, chance) for one in edited], deleted, repeated)


def events(documents: Iterable[Document], collection: str, version: int) -> Iterator[JsonEvent]:
    """Return upserts of documents."""
    for one in documents:
        yield DocumentUpserted(
            tenant=one.tenant,
            collection=collection,
            id=one.id,
            version=version,
            text=one.text,
            content_type="text/markdown",
        )


def deletions(documents: Iterable[Document], collection: str) -> Iterator[JsonEvent]:
    """Return deletes of documents that were published with version 1."""
    for one in documents:
        yield DocumentDeleted(tenant=one.tenant, collection=collection, id=one.id, version=2)


async def publish(
    bootstrap_servers: str,
    topic: str,
    batch: Iterable[JsonEvent],
    published: Callable[[], None],
) -> None:
    """Publish events, telling of each that is acknowledged."""
    async with Publisher(bootstrap_servers, topic) as publisher:
        await publisher.publish_many(batch, on_delivered=lambda _event, _place: published())


async def publish_mistakes(bootstrap_servers: str, topic: str) -> None:
    """Publish records that no worker can use."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)
    await producer.start()
    try:
        for key, value in MALFORMED:
            await producer.send_and_wait(topic, value, key=key)
    finally:
        await producer.stop()


def _edit(document: Document, chance: random.Random) -> Document:
    ends = [match.start() for match in SENTENCE.finditer(document.text)] or [len(document.text)]
    end = chance.choice(ends)
    text = f"{document.text[:end]} {ADDED_SENTENCE}{document.text[end:]}"
    return replace(document, text=text)
