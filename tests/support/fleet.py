"""
A fleet of real worker processes on real parts, and an independent reader of what they did.

The reader shares no code with the worker: it reads the topic by a consumer of its own, folds
it per document (`fleet_fold`), and compares with the rows by plain SQL. All waiting is here:
for a fact of the log, of the topic or of the tables.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path

import asyncpg
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from tests.support.fleet_fold import Letter, fold, letter_of
from tests.support.provider import Provider, vector_of
from tests.support.worker_process import LOOK_SECONDS, PATIENCE_SECONDS, WorkerProcess
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_client import Database
from worker.adapters.pg_migrations import Migrations
from worker.config import DatabaseOptions, KafkaOptions
from worker.core.model import ChunkingOptions, Collection
from worker.core.vector_index import NO_INDEX, VectorIndex

DIMENSIONS = 8
DRAIN_SECONDS = 6

# A silent worker is out of the group after 6 s; a drain may take half a second.
QUICK_TIMERS = {
    "EMBEDFLEET_KAFKA_DRAIN_SECONDS": "0.5",
    "EMBEDFLEET_KAFKA_REBALANCE_SECONDS": "5.5",
    "EMBEDFLEET_KAFKA_REQUEST_SECONDS": "6",
    "EMBEDFLEET_KAFKA_SESSION_SECONDS": "6",
}


@dataclass
class Fleet:
    """Everything a test needs to let workers work, and to look at the result."""

    kafka: KafkaOptions
    database: DatabaseOptions
    topic: str
    dead_letter_topic: str
    folder: Path
    provider: Provider = field(default_factory=lambda: Provider(dimensions=DIMENSIONS))
    environment: dict[str, str] = field(default_factory=dict)
    workers: list[WorkerProcess] = field(default_factory=list)
    more_topics: tuple[str, ...] = ()
    _numbers: Iterator[int] = field(default_factory=count)

    @property
    def topics(self) -> tuple[str, ...]:
        """All topics of documents."""
        return self.topic, *self.more_topics

    async def __aenter__(self):
        await self.provider.__aenter__()
        await Migrations(self.database).up()
        await self.create_collection("articles")
        await self.connect()
        self.producer = AIOKafkaProducer(
            bootstrap_servers=self.kafka.bootstrap_servers, enable_idempotence=True
        )
        await self.producer.start()
        self.admin = AIOKafkaConsumer(
            bootstrap_servers=self.kafka.bootstrap_servers,
            group_id=self.kafka.group,
            enable_auto_commit=False,
        )
        await self.admin.start()
        self.groups = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers)
        await self.groups.start()
        return self

    async def __aexit__(self, *_):
        for worker in self.workers:
            if worker.process.returncode is None:
                worker.process.kill()
            await worker.process.wait()
        await self.groups.close()
        await self.admin.stop()
        await self.producer.stop()
        await self.sql.close()
        await self.provider.__aexit__(None, None, None)

    async def connect(self) -> None:
        """Connect to the database; again after it was restarted."""
        self.sql = await self.session()

    async def session(self) -> asyncpg.Connection:
        """Return a database connection of one's own."""
        return await asyncpg.connect(
            self.database.url,
            server_settings={"search_path": f"{self.database.schema}, public"},
        )

    async def create_collection(
        self,
        name: str,
        dimensions: int = DIMENSIONS,
        storage: str = "vector",
        chunking: tuple[str, int] = ("text", 400),
        index: VectorIndex = NO_INDEX,
    ) -> None:
        pool = await Database.open(self.database)
        collection = Collection(
            id=0,
            name=name,
            model="test-model",
            dimensions=dimensions,
            storage=storage,
            metric="cosine",
            chunking=ChunkingOptions(*chunking),
            index=index,
        )
        await PostgresCatalog(pool).create(collection)
        await pool.close()

    # ---- workers ----

    async def start(
        self,
        *,
        module: str = "worker",
        command: Sequence[str] = ("run",),
        may_die: bool = False,
        name: str = "",
        **environment: str,
    ) -> WorkerProcess:
        """Start a worker process; one that may die fails nobody who waits."""
        log_file = self.folder / f"worker-{next(self._numbers)}.log"
        with log_file.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *command,
                env=os.environ | self._environment() | self.environment | environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        worker = WorkerProcess(process, log_file, may_die, name)
        self.workers.append(worker)
        return worker

    async def stop(self, worker: WorkerProcess) -> int:
        worker.signal(signal.SIGTERM)
        return await worker.ended()

    async def crash(self, worker: WorkerProcess) -> None:
        """End a worker without any goodbye."""
        worker.signal(signal.SIGKILL)
        await worker.ended()

    def _environment(self) -> dict[str, str]:
        return {
            "EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "EMBEDFLEET_KAFKA_GROUP": self.kafka.group,
            "EMBEDFLEET_KAFKA_TOPICS": " ".join(self.topics),
            "EMBEDFLEET_KAFKA_DEAD_LETTER_TOPIC": self.dead_letter_topic,
            "EMBEDFLEET_KAFKA_HEARTBEAT_SECONDS": "0.3",
            "EMBEDFLEET_KAFKA_SESSION_SECONDS": "12",
            "EMBEDFLEET_KAFKA_REQUEST_SECONDS": "12",
            "EMBEDFLEET_KAFKA_REBALANCE_SECONDS": "11",
            "EMBEDFLEET_KAFKA_DRAIN_SECONDS": str(DRAIN_SECONDS),
            "EMBEDFLEET_KAFKA_COMMIT_INTERVAL_SECONDS": "0.2",
            "EMBEDFLEET_DATABASE_URL": self.database.url,
            "EMBEDFLEET_DATABASE_SCHEMA": self.database.schema,
            "EMBEDFLEET_DATABASE_POOL_MIN": "2",
            "EMBEDFLEET_DATABASE_POOL_MAX": "10",
            "EMBEDFLEET_EMBEDDING_URL": self.provider.url,
            "EMBEDFLEET_TELEMETRY_ADMIN_PORT": "0",
            "OTEL_SDK_DISABLED": "true",
        }

    async def supervise(self, *, at_most: int, **how) -> int:
        """Let one worker run, and start another whenever it has died, until all is settled."""
        async with asyncio.TaskGroup() as tasks:
            settled = tasks.create_task(self.settled(timeout_seconds=5 * PATIENCE_SECONDS))
            deaths = 0
            while not settled.done():
                worker = await self.start(may_die=True, **how)
                died = tasks.create_task(worker.process.wait())
                await asyncio.wait({settled, died}, return_when=asyncio.FIRST_COMPLETED)
                if not settled.done():
                    deaths += 1
                    assert deaths <= at_most, worker.log_file.read_text()[-4000:]
            assert await self.stop(worker) == 0
        return deaths

    async def is_shared_by(self, *workers: WorkerProcess) -> bool:
        """Tell whether these workers, and only they, run all partitions."""
        wanted = len(await self.places())
        phases = [
            [part["phase"] for part in (await worker.state())["partitions"]]
            for worker in workers
        ]
        running = [phase == "running" for phase in chain.from_iterable(phases)]
        return all(phases) and running == [True] * wanted

    # ---- waiting ----

    async def until(
        self,
        fact,
        timeout_seconds: float = PATIENCE_SECONDS,
        pause_seconds: float = LOOK_SECONDS,
    ) -> None:
        """Wait until the coroutine function `fact` answers something true."""
        async with asyncio.timeout(timeout_seconds):
            while not await fact():
                for worker in self.workers:
                    if worker.has_failed:
                        raise AssertionError(worker.log_file.read_text()[-4000:])
                await asyncio.sleep(pause_seconds)

    async def provider_works_on(self, requests: int) -> None:
        """Wait until so many requests are being worked on at once."""

        async def is_busy():
            return self.provider.running >= requests

        await self.until(is_busy, pause_seconds=0.01)

    async def settled(self, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the group has committed the end of every partition."""

        async def all_committed():
            return await self.committed() == await self.ends()

        await self.until(all_committed, timeout_seconds)

    async def as_expected(self, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until the table shows what the topic says; the group may say what it likes."""
        expected = await self.expected()

        async def shown():
            return await self.stored() == expected

        await self.until(shown, timeout_seconds)

    async def pass_time(self, seconds: float) -> None:
        """Let time pass, where that is the fact to be waited for."""
        await asyncio.sleep(seconds)

    # ---- the topic ----

    async def publish(self, events, *, partition=None) -> None:
        """Publish (key, value[, headers]) tuples; returns when all are acknowledged."""
        sent = [
            await self.producer.send(
                self.topic,
                value,
                key=key,
                partition=partition,
                headers=headers[0] if headers else None,
            )
            for key, value, *headers in events
        ]
        for delivery in sent:
            await delivery

    async def publish_together(self, events, *, partition=0) -> None:
        """Publish (key, value[, headers]) tuples as one batch: one poll returns them all."""
        batch = self.producer.create_batch()
        for key, value, *headers in events:
            added = batch.append(
                key=key, value=value, timestamp=None, headers=headers[0] if headers else []
            )
            assert added is not None, "the batch is full"
        await (await self.producer.send_batch(batch, self.topic, partition=partition))

    async def publish_slowly(self, events, *, size=20, pause_seconds=0.02) -> None:
        """Publish events in small groups, with pauses between them."""
        events = iter(events)
        while some := list(islice(events, size)):
            await self.publish(some)
            await asyncio.sleep(pause_seconds)

    @asynccontextmanager
    async def flow(self, events, *, size=5):
        """Publish events, slowly and without an end, while the block runs."""
        async with asyncio.TaskGroup() as group:
            publishing = group.create_task(self.publish_slowly(events, size=size))
            yield
            publishing.cancel()

    async def places(self, *topics: str) -> list[TopicPartition]:
        """All partitions of some topics, or of all topics of documents."""
        return [
            TopicPartition(topic, number)
            for topic in topics or self.topics
            for number in sorted(await self.producer.partitions_for(topic))
        ]

    async def ends(self) -> dict[TopicPartition, int]:
        return await self.admin.end_offsets(await self.places())

    async def committed(self, group: str | None = None) -> dict[TopicPartition, int]:
        """What Kafka knows of a group, else of ours, 0 where it knows nothing; one request."""
        places = await self.places()
        try:
            known = await self.groups.list_consumer_group_offsets(group or self.kafka.group)
        except GroupCoordinatorNotAvailableError:  # no group has ever been on this broker
            known = {}
        return {place: max(0, known[place].offset) if place in known else 0 for place in places}

    async def progress(self) -> dict[TopicPartition, int]:
        """What the table knows of the group."""
        rows = await self.sql.fetch(
            "select topic, partition, next_offset from partition_progress where grp = $1",
            self.kafka.group,
        )
        return {
            TopicPartition(row["topic"], row["partition"]): row["next_offset"] for row in rows
        }

    async def records(self, topic: str | None = None) -> list:
        """Read a whole topic, or all topics of documents, as anybody could."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.kafka.bootstrap_servers,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        await consumer.start()
        try:
            parts = await self.places(*([topic] if topic else []))
            consumer.assign(parts)
            ends = await consumer.end_offsets(parts)
            found = []
            while any([await consumer.position(part) < ends[part] for part in parts]):
                batches = await consumer.getmany(timeout_ms=500)
                found += [record for batch in batches.values() for record in batch]
            return found
        finally:
            await consumer.stop()

    async def letters(self) -> list[Letter]:
        """The dead letters, each once: a topic may have one twice after a crash."""
        found = [letter_of(record) for record in await self.records(self.dead_letter_topic)]
        return list({letter.position: letter for letter in found}.values())

    # ---- the expectation, folded from the topics alone, and the table ----

    async def expected(self) -> dict[str, str]:
        """Return document -> text of all that is to be shown."""
        shown = fold(await self.records(), await self.letters())
        return {document: text for document, (_, text) in shown.items()}

    async def stored(self) -> dict[str, str]:
        """Return document -> text as readers see it, chunks joined in order."""
        rows = await self.sql.fetch(
            "select document_id, string_agg(content, ' ' order by seq) as text "
            'from "articles_chunks" group by document_id'
        )
        return {row["document_id"]: row["text"] for row in rows}

    async def row(self, document: str) -> asyncpg.Record | None:
        """The row of a document, with what tells whether it was written again."""
        return await self.sql.fetchrow(
            "select *, xmin::text, ctid::text from document where id = $1", document
        )

    async def chunks(self, document: str) -> dict[str, tuple[str, str]]:
        """Content -> (xmin, ctid) of a document's chunk rows: who wrote them, and where."""
        table = await self.sql.fetchval(
            "select format('chunk_%s_%s', id, generation) from collection "
            "where name = 'articles'"
        )
        rows = await self.sql.fetch(
            f"select content, xmin::text, ctid::text from {table} where id = $1 order by seq",
            document,
        )
        return {row["content"]: (row["xmin"], row["ctid"]) for row in rows}

    async def check_vectors(self) -> None:
        """Every vector is the one that the provider gives for exactly the stored text."""
        rows = await self.sql.fetch(
            'select content, embedding::text as embedding from "articles_chunks"'
        )
        for row in rows:
            wanted = vector_of(row["content"], "test-model", DIMENSIONS)
            assert np.allclose(json.loads(row["embedding"]), wanted, atol=1e-6)

    def embedded_twice(self) -> dict[str, int]:
        paid = Counter(self.provider.embedded)
        paid.pop("dimensions", None)
        return {text: count for text, count in paid.items() if count > 1}


def upsert(document: str, version: int, text: str, tenant: str = "acme", **more) -> tuple:
    """Return key and value of an upsert, written out by hand: the contract, not our code."""
    value = {
        "type": "upsert", "tenant": tenant, "collection": "articles", "id": document,
        "version": version, "text": text, **more,
    }  # fmt: skip
    return f"{tenant}/{value['collection']}/{document}".encode(), json.dumps(value).encode()


def delete(document: str, version: int, tenant: str = "acme") -> tuple:
    """Return key and value of a delete."""
    value = {
        "type": "delete", "tenant": tenant, "collection": "articles", "id": document,
        "version": version,
    }  # fmt: skip
    return f"{tenant}/articles/{document}".encode(), json.dumps(value).encode()


def delete_scope(tenant: str, version: int) -> tuple:
    """Return key and value of a delete of all that a tenant has."""
    value = {"type": "delete_scope", "tenant": tenant, "version": version}
    return tenant.encode(), json.dumps(value).encode()
