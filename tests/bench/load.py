"""
What upstream publishes in a benchmark, decided by a seed, and what it adds up to.

Keys follow Zipf's law over the documents that exist: a quarter of the events are updates of
popular documents, so some records are superseded before their turn.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from zlib import crc32

from aiokafka import AIOKafkaProducer

from tests.bench.peers.registry import Newest
from worker.ops.synthetic_texts import SyntheticTexts

COLLECTION = "articles"
CHUNK_CHARACTERS = 2_800
"""Borders that survive edits make chunks of 0.7 of that: two of a text of 3,900 characters."""
UPDATES = 0.25


class Event(NamedTuple):
    """One record to publish."""

    name: str
    key: bytes
    value: bytes


@dataclass
class Load:
    """
    Events of documents, and the newest state of each by id.

    `characters` are the lengths that texts may have; `tenants` are drawn with their weights.
    """

    seed: int
    characters: Sequence[int] = (3_900,)
    updates: float = UPDATES
    tenants: dict[str, float] = field(default_factory=lambda: {"acme": 1.0})
    newest: dict[str, Newest] = field(default_factory=dict)
    tenant_of: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._texts = SyntheticTexts(self._chance)
        self._names: list[str] = []

    def take(self, count: int) -> list[Event]:
        """Return the next events."""
        return [self._next() for _ in range(count)]

    def again(self) -> list[Event]:
        """Return every document's newest text once more, as a new version."""
        return [self.publish(name, self.newest[name].text) for name in self._names]

    def publish(self, name: str, text: str) -> Event:
        """Return the event that gives a document this text."""
        version = self.newest[name].version + 1 if name in self.newest else 1
        self.newest[name] = Newest(version, text)
        value = {
            "type": "upsert", "tenant": self.tenant_of[name], "collection": COLLECTION,
            "id": name, "version": version, "text": text,
        }  # fmt: skip
        key = f"{self.tenant_of[name]}/{COLLECTION}/{name}"
        return Event(name, key.encode(), json.dumps(value).encode())

    def _next(self) -> Event:
        if self._names and self._chance.random() < self.updates:
            return self.publish(self._popular(), self._text())
        name = f"d{len(self._names):06d}"
        self._names.append(name)
        self.tenant_of[name] = self._chance.choices(
            list(self.tenants), weights=list(self.tenants.values())
        )[0]
        return self.publish(name, self._text())

    def _popular(self) -> str:
        """The n-th oldest document with a probability of about 1/n."""
        count = len(self._names)
        return self._names[min(count - 1, int(count ** self._chance.random()) - 1)]

    def _text(self) -> str:
        return self._texts.take(self._chance.choice(self.characters))


async def publish(bootstrap_servers: str, topic: str, events: Sequence[Event]) -> None:
    """Publish events as fast as the broker takes them; returns when all are acknowledged."""
    async with AIOKafkaProducer(
        bootstrap_servers=bootstrap_servers,
        enable_idempotence=True,
        compression_type="lz4",
        linger_ms=5,
        max_batch_size=256 * 1024,
    ) as producer:
        partitions = sorted(await producer.partitions_for(topic))
        sent = [
            await producer.send(
                topic,
                event.value,
                key=event.key,
                partition=partition_of(event.key, len(partitions)),
            )
            for event in events
        ]
        for delivery in sent:
            await delivery


def partition_of(key: bytes, partitions: int) -> int:
    """One document stays on one partition."""
    return crc32(key) % partitions
