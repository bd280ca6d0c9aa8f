"""
The one-shot job `bench` put together: a topic, a group and a schema of its own, and workers.

Workers are processes of their own that tell through a pipe what they have done; they drain when
it closes, so none outlives this process however that ends. What was created is removed at the
end.
"""

import asyncio
import secrets
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from schemas.events import DocumentUpserted
from schemas.publisher import Publisher
from schemas.records import InvalidEvent
from worker.adapters.kafka_topics import Topics
from worker.adapters.pg_migrations import Migrations
from worker.app import jobs
from worker.app.bench_workers import BenchWorkers
from worker.app.publish_job import in_our_words, publishing
from worker.config import Settings
from worker.core.model import ChunkingOptions, Collection
from worker.core.progress import Progress, Watch
from worker.core.vector_index import NO_INDEX, VectorIndex
from worker.embedded.embeddings import ScriptedEmbeddings
from worker.errors import ConfigError, WorkerError
from worker.ops import bench
from worker.ops.bench import Measurement, Measuring

SCRIPTED_MODEL = "scripted"
_OFFERED_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Asked:
    """
    What is measured: so many documents in chunks of so many characters, workers, partitions.

    `model` None: embedded by a scripted provider that takes `latency_seconds` a request, and
    refuses more than `requests_per_minute`; else by the provider of the settings. `replication`
    None: as the broker is configured.
    """

    documents: int
    characters: int
    chunk_characters: int
    workers: int
    partitions: int
    replication: int | None
    dimensions: int
    has_index: bool
    model: str | None
    latency_seconds: float
    requests_per_minute: int | None


async def run(
    settings: Settings, asked: Asked, watch: Watch, ended: Callable[[Measurement], object]
) -> str | None:
    """
    Measure, and remove what was created for it; `ended` is told of each workload.

    Returns what could not be removed, and why.

    Raises:
        ConfigError: a server refuses us, or the settings refuse the documents.
        BrokerUnavailable, StoreUnavailable: nobody to reach.
        JobFailed: what would be measured from then on would mean nothing.
    """
    own = _own(settings)
    is_measured = False
    try:
        async with _worked(own, asked, watch) as measured:
            await measured.run(ended)
            is_measured = True
    except WorkerError as error:
        if not is_measured:
            raise
        return f"{own.database.schema}, topics and schema of that name: {error}"
    return None


@asynccontextmanager
async def _worked(own: Settings, asked: Asked, watch: Watch) -> AsyncIterator["_Bench"]:
    """Yield what measures workers that run, with all that they need."""
    async with AsyncExitStack() as stack:
        if asked.model is None:
            own = await stack.enter_async_context(_scripted(own, asked))
        watch(Progress(f"preparing the topic and schema {own.database.schema}"))
        await stack.enter_async_context(_created(own, asked))
        (topic,) = own.kafka.topics
        publisher = await stack.enter_async_context(publishing(own, topic))
        workers = await stack.enter_async_context(BenchWorkers(own, asked.workers))
        measuring = Measuring(workers, clock=time.monotonic, watch=watch)
        yield _Bench(asked, publisher, measuring)


def _own(settings: Settings) -> Settings:
    """Return the settings of a fleet that has nothing in common with another one."""
    name = f"embedfleet_bench_{secrets.token_hex(8)}"
    return replace(
        settings,
        kafka=replace(
            settings.kafka, topics=(name,), dead_letter_topic=f"{name}.dead-letters", group=name
        ),
        database=replace(settings.database, schema=name, pool_min=1),
        telemetry=replace(settings.telemetry, admin_port=None),
    )


@asynccontextmanager
async def _scripted(settings: Settings, asked: Asked) -> AsyncIterator[Settings]:
    """Yield settings with a provider that only this benchmark has."""
    with tempfile.TemporaryDirectory(prefix="embedfleet-bench-") as folder:
        provider = ScriptedEmbeddings(
            Path(folder),
            dimensions=asked.dimensions,
            latency_seconds=asked.latency_seconds,
            requests_per_minute=asked.requests_per_minute,
        )
        await asyncio.to_thread(provider.start)
        try:
            embedding = replace(
                settings.embedding,
                url=provider.url,
                dialect="openai",
                auth="key",
                api_key_variable=None,
                api_key_file=None,
                requests_per_minute=None,
                tokens_per_minute=None,
            )
            yield replace(settings, embedding=embedding)
        finally:
            await asyncio.to_thread(provider.stop)


@asynccontextmanager
async def _created(settings: Settings, asked: Asked) -> AsyncIterator[None]:
    """Create topics, tables and a collection, and remove them at the end."""
    collection = Collection(
        id=0,
        name=bench.COLLECTION,
        model=asked.model or SCRIPTED_MODEL,
        dimensions=asked.dimensions,
        storage="halfvec",
        metric="cosine",
        chunking=ChunkingOptions("text", asked.chunk_characters),
        index=VectorIndex(build_at_rows=0) if asked.has_index else NO_INDEX,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(Topics(settings.kafka).delete)
        await jobs.create_topics(
            settings,
            partitions=asked.partitions,
            replication=asked.replication,
            cleanup="delete",
            retention_hours=None,
        )
        stack.push_async_callback(Migrations(settings.database).drop)
        await jobs.migrate_up(settings)
        await jobs.create_collection(settings, collection)
        yield


class _Bench:
    """The workloads, in order."""

    def __init__(self, asked: Asked, publisher: Publisher, measuring: Measuring) -> None:
        self._asked = asked
        self._publisher = publisher
        self._measuring = measuring

    async def run(self, ended: Callable[[Measurement], object]) -> None:
        """Measure them all."""
        count = self._asked.documents
        documents = partial(bench.documents, self._asked.characters)
        await self._measuring.joined(self._asked.partitions)
        first = await self._workload("new documents", documents(count), count)
        ended(first)
        again = documents(count, version=2)
        ended(await self._workload("published again, unchanged", again, count))
        rate = first.rate / 2
        offered = min(count, max(2, int(rate * _OFFERED_SECONDS)))
        on_time = bench.on_time(
            documents(offered, series="offered"),
            offered,
            rate,
            clock=time.monotonic,
            now=partial(datetime.now, UTC),
        )
        ended(await self._workload(f"offered, {rate:,.0f} a second", on_time, offered))

    async def _workload(
        self,
        name: str,
        events: Iterable[DocumentUpserted] | AsyncIterable[DocumentUpserted],
        count: int,
    ) -> Measurement:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._publish(events))
            return await self._measuring.workload(name, count)

    async def _publish(
        self, events: Iterable[DocumentUpserted] | AsyncIterable[DocumentUpserted]
    ) -> None:
        try:
            with in_our_words():
                await self._publisher.publish_many(events)
        except InvalidEvent as error:
            raise ConfigError(f"the documents cannot be published: {error}") from error
