"""What the stages of a document cost alone, and the store against the bare client."""

import asyncio
from collections.abc import Sequence
from itertools import islice
from statistics import median

from tests.bench import limits, limits_postgres
from tests.bench.figures import Stored
from tests.bench.limits import Document, KafkaRecord
from tests.bench.load import CHUNK_CHARACTERS, COLLECTION, Event, Load, publish
from tests.bench.servers import DIMENSIONS, MODEL, Provider, Servers
from worker.config import IngestOptions, KafkaOptions
from worker.core.model import ChunkingOptions, Collection
from worker.embedded.scripted_provider import Pool

SEED = 7
EVENTS = 2_000
STORED_EVENTS, STORED_ROUNDS = 6_000, 3
INPUTS = 128
_CHUNKING = ChunkingOptions("text", CHUNK_CHARACTERS)
_COLLECTION = Collection(
    id=0,
    name=COLLECTION,
    model=MODEL,
    dimensions=DIMENSIONS,
    storage="halfvec",
    metric="cosine",
    chunking=_CHUNKING,
)


def _read(events: Sequence[Event]) -> tuple[list[KafkaRecord], list[Document]]:
    """Return events as they are polled, and the documents that they leave."""
    records = [(event.key, event.value) for event in events]
    return records, limits.documents(records, _CHUNKING)


async def stages(servers: Servers) -> dict[str, float]:
    """
    Return the CPU microseconds of an event of W1 in each stage alone.

    A superseded event is only read, and each document has some chunks.
    """
    events, pool = Load(SEED).take(EVENTS), Pool(DIMENSIONS)
    topic = await servers.topic("stages")
    await publish(servers.kafka.bootstrap_servers, topic, events)
    records, documents = _read(events)
    texts = [chunk.content for document in documents for chunk in document.chunks]
    kafka = KafkaOptions(bootstrap_servers=servers.kafka.bootstrap_servers)
    async with Provider(latency_seconds=0.03) as provider:
        http = await limits.requested(
            provider.url, _COLLECTION, texts, inputs=INPUTS, at_once=8
        )
    stored = await limits_postgres.stored(servers.postgres.url, _COLLECTION, documents, pool)
    await servers.settle()
    share, chunks = len(documents) / EVENTS, len(texts) / EVENTS
    return {
        "poll": (await limits.polled(kafka, topic)).cpu_us,
        "parse, cut, hash": share * limits.cut(records, _CHUNKING).cpu_us,
        "HTTP": chunks * http.cpu_us,
        "decode": chunks * limits.decoded(_COLLECTION, texts, pool, inputs=INPUTS).cpu_us,
        "store": share * stored.cpu_us,
    }


async def upserted_and_copied(servers: Servers) -> tuple[Stored, Stored]:
    """Return the rows a second of upserts and of the whole store, each beside a bare COPY."""
    _, documents = _read(Load(SEED).take(STORED_EVENTS))
    pool, url, at_once = Pool(DIMENSIONS), servers.postgres.url, IngestOptions().store_slots
    rows = await asyncio.to_thread(limits_postgres.rows, documents, _COLLECTION, pool)
    rates: dict[str, list[float]] = {"upserts": [], "copy": [], "store": []}
    for _ in range(STORED_ROUNDS):
        upserts = await limits_postgres.upserted(
            url, _COLLECTION, documents, pool, at_once=at_once
        )
        bare = await limits_postgres.copied(url, _COLLECTION, rows, at_once=at_once)
        store = await limits_postgres.stored(url, _COLLECTION, documents, pool, at_once=at_once)
        await servers.settle()
        rates["upserts"].append(upserts.per_second)
        rates["copy"].append(bare.per_second)
        rates["store"].append(store.per_second * len(rows) / len(documents))
    copy = median(rates["copy"])
    return Stored(median(rates["upserts"]), copy), Stored(median(rates["store"]), copy)


async def under_index(servers: Servers, ours_per_second: float, count: int) -> Stored:
    """Put the rows a second of the workers beside a loop of bare INSERTs under HNSW."""
    _, documents = _read(Load(SEED, updates=0).take(count))
    rows = limits_postgres.rows(documents, _COLLECTION, Pool(DIMENSIONS))
    bare = await limits_postgres.inserted(
        servers.postgres.url, _COLLECTION, list(islice(rows, 2 * count)), connections=4
    )
    await servers.settle()
    return Stored(ours_per_second, bare.per_second)
