"""
What upstream services publish in a run, decided by a seed.

Documents of two tenants in three collections, chosen by Zipf's law: 70 % updates, 20 % new,
10 % deletes (some without a version), with 10 % replays of older versions and 1 % poison among
them. Each document has one partition. Batches are compressed by one of three codecs; some come
in transactions, of which some are aborted.

The texts are made so that the oracle can cut them and so that no chunk ever comes again: of the
blocks of a document a version changes one, and a delete ends all.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple, Self
from zlib import crc32

from aiokafka import AIOKafkaProducer, TopicPartition

PARTITIONS = 12
TENANTS = ("acme", "globex")
COLLECTIONS = ("articles", "notes", "pages")
BLOCK_CHARACTERS = 48
POISON_HEADER = "chaos-poison"
REFUSED = "refused by the provider"
CODECS = ("lz4", "zstd", "snappy")
SHARE_NEW, SHARE_DELETE, SHARE_REPLAY, SHARE_POISON = 0.2, 0.1, 0.1, 0.01
SHARE_BARRIER = 0.2
"""Of the deletes."""
SHARE_TRANSACTION, SHARE_ABORTED = 0.3, 0.4
BATCH = 12
_REQUEST_SECONDS = 5
"""A broker that does not answer for longer is asked no more: another may lead by then."""


class Event(NamedTuple):
    """One record to publish."""

    key: bytes
    value: bytes | None
    poison: str | None = None


@dataclass
class _Document:
    tenant: str
    collection: str
    name: str
    version: int = 0
    blocks: list[int] = field(default_factory=list)
    published: list[Event] = field(default_factory=list)

    @property
    def key(self) -> bytes:
        return f"{self.tenant}/{self.collection}/{self.name}".encode()

    def text(self) -> str:
        """Words of one length that say which version has written them."""
        return " ".join(
            " ".join([f"{self.name}{self.tenant[0]}{number}{version:05d}"] * 3).ljust(
                BLOCK_CHARACTERS - 1, "x"
            )
            for number, version in enumerate(self.blocks)
        )

    def event(self, kind: str, **more) -> Event:
        value = {
            "type": kind, "tenant": self.tenant, "collection": self.collection,
            "id": self.name, "version": self.version,
        }  # fmt: skip
        return Event(self.key, json.dumps(value | more).encode())


class Load:
    """An endless stream of events; two of one seed are equal."""

    def __init__(self, seed: int, *, poison: float = SHARE_POISON) -> None:
        self.chance = random.Random(seed)
        self._poison = poison
        self._documents: list[_Document] = []

    def __iter__(self) -> Iterator[Event]:
        while True:
            yield self._next()

    def _next(self) -> Event:
        kind = self.chance.random()
        if not self._documents or kind < SHARE_NEW:
            return self._published(self._new())
        document = self._popular()
        if self.chance.random() < SHARE_REPLAY and document.published:
            return self.chance.choice(document.published)
        if self.chance.random() < self._poison:
            return self._poisoned(document)
        if kind < SHARE_NEW + SHARE_DELETE:
            return self._deleted(document)
        return self._published(document)

    def _popular(self) -> _Document:
        """The n-th oldest document with a probability of about 1/n."""
        count = len(self._documents)
        return self._documents[min(count - 1, int(count ** self.chance.random()) - 1)]

    def _new(self) -> _Document:
        document = _Document(
            self.chance.choice(TENANTS),
            self.chance.choice(COLLECTIONS),
            f"d{len(self._documents):05d}",
        )
        self._documents.append(document)
        return document

    def _published(self, document: _Document) -> Event:
        document.version += 1
        if document.blocks:
            document.blocks[self.chance.randrange(len(document.blocks))] = document.version
        else:
            document.blocks = [document.version] * self.chance.randint(1, 4)
        event = document.event("upsert", text=document.text())
        document.published.append(event)
        return event

    def _deleted(self, document: _Document) -> Event:
        document.version += 1
        document.blocks = []
        if self.chance.random() < SHARE_BARRIER:
            return Event(document.key, None)
        return document.event("delete")

    def _poisoned(self, document: _Document) -> Event:
        document.version += 1
        if self.chance.random() < 0.5:
            return Event(document.key, b'{"type": "upsert"', "undecodable")
        text = f"{document.name} {document.version} {REFUSED}"
        return document.event("upsert", text=text)._replace(poison="rejected_input")


def partition_of(key: bytes, partitions: int) -> int:
    """One document stays on one partition, while there are so many."""
    return crc32(key) % partitions


class Publisher:
    """Publishes a load, and counts what became of it; `async with` opens and closes it."""

    def __init__(self, bootstrap_servers: str, topics: Sequence[str], load: Load) -> None:
        self._servers = bootstrap_servers
        self._topics = topics
        self._events = iter(load)
        self._chance = load.chance
        self.partitions = PARTITIONS
        self.acknowledged = 0
        self.aborted = 0
        self.ends: Counter[TopicPartition] = Counter()
        """The offset behind the last record that is known to be there."""

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        self._plain = [await self._producer(codec) for codec in CODECS]
        self._transactional = await self._producer(
            "lz4", transactional_id=f"{self._topics[0]}-load", transaction_timeout_ms=60_000
        )
        return self

    async def __aexit__(self, *_) -> None:
        await self._stack.aclose()

    async def _producer(self, codec: str, **more) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._servers,
            compression_type=codec,
            enable_idempotence=True,
            request_timeout_ms=_REQUEST_SECONDS * 1000,
            **more,
        )
        await producer.start()
        self._stack.push_async_callback(producer.stop)
        return producer

    async def spread(self, partitions: int) -> None:
        """Use so many partitions from now on: some documents change theirs."""
        for producer in (*self._plain, self._transactional):
            await producer.client.force_metadata_update()
        self.partitions = partitions

    async def publish(self, count: int) -> None:
        """Publish the next events; returns when all are acknowledged."""
        while events := list(islice(self._events, min(BATCH, count))):
            count -= len(events)
            if self._chance.random() >= SHARE_TRANSACTION:
                await self._send(self._chance.choice(self._plain), events)
                self.acknowledged += len(events)
            else:
                await self._in_a_transaction(events)

    async def _in_a_transaction(self, events: list[Event]) -> None:
        is_aborted = self._chance.random() < SHARE_ABORTED
        await self._transactional.begin_transaction()
        await self._send(self._transactional, events)
        if is_aborted:
            await self._transactional.abort_transaction()
            self.aborted += len(events)
        else:
            await self._transactional.commit_transaction()
            self.acknowledged += len(events)

    def _topic_of(self, event: Event) -> str:
        """One event, however often it comes, has one topic; the events of a key have all."""
        return self._topics[crc32(event.value or event.key) % len(self._topics)]

    async def _send(self, producer: AIOKafkaProducer, events: list[Event]) -> None:
        sent = [
            await producer.send(
                self._topic_of(event),
                event.value,
                key=event.key,
                partition=partition_of(event.key, self.partitions),
                headers=[(POISON_HEADER, event.poison.encode())] if event.poison else None,
            )
            for event in events
        ]
        for delivery in sent:
            where = await delivery
            place = where.topic_partition
            self.ends[place] = max(self.ends[place], where.offset + 1)
