"""
What each stage of a worker costs alone, and what the servers take at most.

Each function does one thing in this process, with the worker's own functions where they are
what is measured, and with the bare client library where that is the limit. It returns the CPU
that this process has spent on it (all threads; not the server's) and the time it took. What it
needs is made before the clock starts. Run them on the loop that the worker has (uvloop).

The stages of a document, which do not overlap: `polled`, `cut`, `requested` and `decoded` (for
each of its chunks), and `limits_postgres.stored`.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import aiohttp
from aiokafka import AIOKafkaConsumer

from schemas.bounds import Limits
from schemas.codec import decode_record
from schemas.events import DocumentUpserted
from tests.support import works
from worker.adapters import embedding_wire
from worker.adapters.kafka_source import consumer_arguments
from worker.config import KafkaOptions
from worker.core.chunking import content_hash, split
from worker.core.dialects import DIALECTS
from worker.core.model import (
    Chunk,
    ChunkingOptions,
    Collection,
    Work,
)
from worker.embedded.scripted_provider import Pool, answer

PIECE_BYTES = 64 * 1024

KafkaRecord = tuple[bytes, bytes]
"""Key and value."""


@dataclass
class Limit:
    """What was measured: so many units took so long, and so much of our CPU."""

    units: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU a unit."""
        return self.cpu_seconds / self.units * 1e6

    @property
    def per_second(self) -> float:
        """Units a second."""
        return self.units / self.seconds


@contextmanager
def measured() -> Iterator[Limit]:
    """Measure what is done in the block; how many units it was of is said by whoever asks."""
    limit = Limit()
    cpu, at = time.process_time(), time.perf_counter()
    yield limit
    limit.cpu_seconds, limit.seconds = time.process_time() - cpu, time.perf_counter() - at


class Document(NamedTuple):
    """An upsert as it is before it is embedded."""

    work: Work
    digest: bytes
    chunks: tuple[Chunk, ...]


def read(record: KafkaRecord, chunking: ChunkingOptions, limits: Limits) -> Document | None:
    """Decode, hash and cut a record, as the worker does; None: it is no upsert."""
    event = decode_record(*record, (), limits).event
    if not isinstance(event, DocumentUpserted):
        return None
    digest = content_hash(event.text, None, chunking)
    return Document(works.work(event), digest, split(event.text, None, chunking))


def documents(records: Iterable[KafkaRecord], chunking: ChunkingOptions) -> list[Document]:
    """Return the last version of each document."""
    last: dict[bytes, Document | None] = {}
    for record in records:
        last[record[0]] = read(record, chunking, Limits())
    return [document for document in last.values() if document is not None]


def cut(records: Sequence[KafkaRecord], chunking: ChunkingOptions) -> Limit:
    """Parse, check, hash and cut, one record after another; a unit is a record."""
    limits = Limits()
    with measured() as limit:
        for record in records:
            read(record, chunking, limits)
    limit.units = len(records)
    return limit


async def polled(options: KafkaOptions, topic: str) -> Limit:
    """Read a whole topic, as many records at once as the worker does; a unit is a record."""
    arguments = consumer_arguments(options)
    arguments |= {"group_id": None, "auto_offset_reset": "earliest"}  # gets all partitions
    async with AIOKafkaConsumer(topic, **arguments) as consumer:
        left = sum((await consumer.end_offsets(consumer.assignment())).values())
        with measured() as limit:
            while limit.units < left:
                batches = await consumer.getmany(
                    timeout_ms=1000, max_records=options.max_poll_records
                )
                limit.units += sum(map(len, batches.values()))
    return limit


async def requested(
    url: str, collection: Collection, texts: Sequence[str], *, inputs: int, at_once: int
) -> Limit:
    """Send texts (the units) to the provider and read its answers, not looking into them."""
    pieces = iter(range(0, len(texts), inputs))
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=at_once), cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def ask() -> None:
            for start in pieces:
                body = _question(collection, texts[start : start + inputs])
                await _post(session, f"{url}/embeddings", body)

        await _post(session, f"{url}/embeddings", _question(collection, texts[:1]))
        with measured() as limit:
            async with asyncio.TaskGroup() as group:
                for _ in range(at_once):
                    group.create_task(ask())
    limit.units = len(texts)
    return limit


def _question(collection: Collection, texts: Sequence[str]) -> bytes:
    return embedding_wire.encode(DIALECTS["openai"].body(collection.model, texts))


async def _post(session: aiohttp.ClientSession, url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    async with session.post(url, data=body, headers=headers, raise_for_status=True) as response:
        while await response.content.read(PIECE_BYTES):
            pass


def decoded(collection: Collection, texts: Sequence[str], pool: Pool, *, inputs: int) -> Limit:
    """Make checked vectors (the units) of the answers for these texts."""
    parts = [texts[start : start + inputs] for start in range(0, len(texts), inputs)]
    answers = [
        (answer(pool, part, model=collection.model, base64=True, tokens=1), len(part))
        for part in parts
    ]
    with measured() as limit:
        for content, count in answers:
            embedding_wire.decode(content, count, collection.dimensions)
    limit.units = len(texts)
    return limit
