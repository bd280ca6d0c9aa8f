"""
A fleet in memory under virtual time: broker, database, provider and workers.

The audit (`tests/support/audit.py`) looks at broker and tables after every commit.
"""

import asyncio
import random
from dataclasses import dataclass, replace
from functools import partial

from schemas.codec import encode_event, encode_key, encode_scope_key
from schemas.events import DocumentDeleted, DocumentUpserted, ScopeDeleted, Tombstone
from tests.support.audit import Audit, Broken, WatchedLedger, WatchedStore
from tests.support.virtual_time import run
from worker.adapters.memory_database import MemoryDatabase
from worker.adapters.memory_embedder import MemoryEmbedder, vector_of
from worker.adapters.memory_kafka import MemoryBroker, MemoryDeadLetters, MemorySource
from worker.adapters.memory_partitions import MemoryCrashes, MemoryHolds
from worker.adapters.memory_poison import MemoryPoisons
from worker.adapters.memory_store import MemoryCatalog, MemoryClaims
from worker.app.assembly import Ports, Surroundings, Worker, assemble
from worker.app.provider import Provider, rate_limits
from worker.config import (
    EmbeddingOptions,
    IngestOptions,
    KafkaOptions,
    QueueOptions,
    RetryOptions,
    Settings,
)
from worker.core.model import ChunkingOptions, Collection, DocumentKey, Partition
from worker.telemetry import Counters

GROUP = "fleet"
TOPIC = "documents"
COLLECTION = Collection(
    id=0,
    name="articles",
    model="model",
    dimensions=4,
    storage="vector",
    metric="cosine",
    chunking=ChunkingOptions("none"),
)
SETTINGS = Settings(
    kafka=KafkaOptions(group=GROUP),
    queue=QueueOptions(max_documents=500, max_in_flight=64),
    embedding=EmbeddingOptions(concurrency=8, max_inputs=16),
    retry=RetryOptions(),
    ingest=IngestOptions(),
)


@dataclass(eq=False)
class Member:
    """A worker of the fleet and the task it runs in."""

    worker: Worker
    task: asyncio.Task


class Universe:
    """One broker, one database, one provider, and the workers that are started."""

    def __init__(self, *, seed=0, partitions=2, settings=SETTINGS, topics=(TOPIC,)) -> None:
        self.random = random.Random(seed)
        self.settings = settings
        self.topics = topics
        self.broker = MemoryBroker()
        for topic in topics:
            self.broker.create_topic(topic, partitions)
        self.broker.create_topic("documents.dead-letters")
        self.partitions = partitions
        self.database = MemoryDatabase()
        self.embedder = MemoryEmbedder()
        self.vector_of = vector_of
        self.letters = MemoryDeadLetters(self.broker)
        self.members: list[Member] = []
        self.started = 0
        self.providers: list[Provider] = []
        self.audit = Audit(self, GROUP)
        self.hook = None
        self.database.hook = self._reach
        self._watch_commits()

    async def _reach(self, call: str, moment: str) -> None:
        if moment == "committed":
            self.audit.check()
        if self.hook is not None:
            await self.hook(call, moment)

    def _watch_commits(self) -> None:
        commit = self.broker.commit

        def commit_and_check(group, offsets):
            commit(group, offsets)
            self.audit.check()

        self.broker.commit = commit_and_check

    def pieces(self, text: str) -> list[str]:
        """What a text is cut into by the collections of a universe (strategy `none`)."""
        return [text] if text.strip() else []

    async def create_collection(self, collection=COLLECTION) -> None:
        await MemoryCatalog(self.database).create(collection)

    def start(self, embedder=None, *, guarded=False) -> Member:
        """Start a worker; `guarded` puts limits and a breaker before its provider."""
        loop = asyncio.get_running_loop()
        embedder, breaker = embedder or self.embedder, None
        if guarded:
            provider = Provider(
                self.embedder,
                rate_limits(self.settings.embedding),
                self.settings.embedding,
                self.settings.breaker,
                clock=loop.time,
                jitter=self.random.random,
            )
            embedder, breaker = provider.embedder, provider.breaker
            self.providers.append(provider)

        async def inline(function):
            await asyncio.sleep(0)
            return function()

        ports = Ports(
            make_source=lambda: MemorySource(self.broker, GROUP, topics=self.topics),
            dead_letters=self.letters,
            embedder=embedder,
            claims=MemoryClaims(self.database),
            crashes=MemoryCrashes(self.database),
            holds=MemoryHolds(self.database),
            store=WatchedStore(self.database, self.audit),
            ledger=WatchedLedger(self.database, self.audit),
            poisons=MemoryPoisons(self.database),
            catalog=MemoryCatalog(self.database),
        )
        around = Surroundings(
            stop=asyncio.Event(),
            clock=loop.time,
            wall_clock=loop.time,
            jitter=self.random.random,
            offload=inline,
            is_held=lambda: breaker is not None and breaker.is_held,
            sets_aside=breaker.sets_aside if breaker else lambda _: False,
        )
        name = f"worker-{self.started}"  # never that of one that has ended
        self.started += 1
        worker = assemble(self.settings, ports, around, Counters(), owner=name)
        member = Member(worker, loop.create_task(worker.runner.run(), name=name))
        member.task.add_done_callback(lambda _: self.broker.changes.announce())
        self.members.append(member)
        return member

    async def stop(self, member: Member) -> None:
        """Stop a worker as SIGTERM does."""
        member.worker.runner.stop.set()
        await member.task
        self.members.remove(member)

    async def kill(self, member: Member) -> None:
        """End a worker without any goodbye but the broker's notice."""
        source = member.worker.runner.source
        member.task.cancel()
        await asyncio.wait({member.task})
        if source is not None:
            self.broker.expel(source)
        self.members.remove(member)

    def close_provider(self) -> asyncio.Event:
        """Let the provider answer nobody until the event is set."""
        gate = asyncio.Event()

        async def script(_request):
            await gate.wait()

        self.embedder.script = script
        return gate

    def publish(self, event, *, partition=None, topic=TOPIC, timestamp_ms=0, headers=()) -> int:
        """Append an event to the log; returns its offset."""
        match event:
            case ScopeDeleted():
                scope = event.collection if isinstance(event.collection, str) else None
                key = encode_scope_key(event.tenant, scope)
            case _:
                key = encode_key(event.tenant, event.collection, event.id)
        value = None if isinstance(event, Tombstone) else encode_event(event)
        if partition is None:
            partition = sum(key) % self.partitions
        return self.broker.append(
            topic, partition, key=key, value=value, headers=headers, timestamp_ms=timestamp_ms
        )

    async def settled(self) -> None:
        """Wait until the group has committed the end of every partition."""
        for partition in self.broker.partitions(self.topics):
            log = self.broker.log(partition)
            if log.end > log.first:
                await self.broker.changes.until(partial(self._is_committed, partition))

    def _is_committed(self, partition) -> bool:
        for member in self.members:
            if member.task.done() and not member.task.cancelled():
                raise AssertionError("a worker died") from member.task.exception()
        committed = self.broker.committed.get((GROUP, partition), -1)
        return committed >= self.broker.log(partition).end

    def row(self, document="a", tenant="tenant", collection="articles"):
        """Return a document's row, None where there is none."""
        return self.database.state.documents.get(DocumentKey(tenant, collection, document))

    def text(self, document="a", **where) -> str | None:
        """Return what is shown of a document: its chunks' texts, None where it is not shown."""
        row = self.row(document, **where)
        if row is None or row.stored.deleted:
            return None
        chunks = sorted((chunk for chunk, _ in row.chunks.values()), key=lambda c: c.seq)
        return "".join(chunk.content for chunk in chunks)


def upsert(
    document="a", version=1, text="text", tenant="tenant", collection="articles", **more
):
    return DocumentUpserted(
        tenant=tenant, collection=collection, id=document, version=version, text=text, **more
    )


def delete(document="a", version=1, tenant="tenant", collection="articles"):
    return DocumentDeleted(tenant=tenant, collection=collection, id=document, version=version)


def tombstone(document="a", tenant="tenant", collection="articles"):
    return Tombstone(tenant=tenant, collection=collection, id=document)


def with_options(settings=SETTINGS, **sections) -> Settings:
    """Return settings with some options of some sections replaced."""
    changed = {
        name: replace(getattr(settings, name), **options) for name, options in sections.items()
    }
    return replace(settings, **changed)


def live(story, *, seed=0, limit_seconds=100_000, **options):
    """
    Run `story(universe)` in a universe of its own, and end its workers.

    What does not come about within the limit is `unseen`.
    """

    async def main():
        universe = Universe(seed=seed, **options)
        await universe.create_collection()
        try:
            result = await story(universe)
            universe.audit.check()
            return result
        finally:
            for member in list(universe.members):
                await universe.kill(member)

    try:
        return run(main(), seed, limit_seconds)
    except TimeoutError as error:
        raise Broken(f"unseen: it has not come about in {limit_seconds} s") from error


ONLY = Partition(TOPIC, 0)
