"""
A fleet of real worker processes on real parts, and an independent reader of what they did.

The reader shares no code with the worker: it reads the topic by a consumer of its own, folds
it per document, and compares with the rows by plain SQL.
"""

import asyncio
import json
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from tests.support.provider import Provider, vector_of
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_client import Database
from worker.adapters.pg_migrations import Migrations
from worker.config import DatabaseOptions, KafkaOptions
from worker.core.model import ChunkingOptions, Collection

DIMENSIONS = 8
DRAIN_SECONDS = 6


@dataclass(eq=False)
class WorkerProcess:
    """One `embedfleet run`, its exit code and its log."""

    process: asyncio.subprocess.Process
    log_file: Path

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self, timeout_seconds: float = 60) -> int:
        async with asyncio.timeout(timeout_seconds):
            return await self.process.wait()

    def lines(self) -> list[dict]:
        """The log so far; what is not JSON is what the test should see."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line]

    async def logged(self, action: str, timeout_seconds: float = 60) -> dict:
        """Wait for a log line of this action."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                for line in self.lines():
                    if line.get("action") == action:
                        return line
                if self.process.returncode is not None:
                    raise AssertionError(f"the worker ended: {self.log_file.read_text()}")
                await asyncio.sleep(0.05)


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

    async def __aenter__(self):
        await self.provider.__aenter__()
        await Migrations(self.database).up()
        pool = await Database.open(self.database)
        collection = Collection(
            id=0,
            name="articles",
            model="test-model",
            dimensions=DIMENSIONS,
            storage="vector",
            metric="cosine",
            chunking=ChunkingOptions("text", 400),
        )
        await PostgresCatalog(pool).create(collection, index=False)
        await pool.close()
        self.sql = await asyncpg.connect(
            self.database.url,
            server_settings={"search_path": f"{self.database.schema}, public"},
        )
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
        return self

    async def __aexit__(self, *_):
        for worker in self.workers:
            if worker.process.returncode is None:
                worker.process.kill()
            await worker.process.wait()
        await self.admin.stop()
        await self.producer.stop()
        await self.sql.close()
        await self.provider.__aexit__(None, None, None)

    # ---- workers ----

    async def start(self, **environment: str) -> WorkerProcess:
        """Start a worker process."""
        log_file = self.folder / f"worker-{len(self.workers)}.log"
        with log_file.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "worker",
                "run",
                env=os.environ | self._environment() | self.environment | environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        worker = WorkerProcess(process, log_file)
        self.workers.append(worker)
        return worker

    async def stop(self, worker: WorkerProcess) -> int:
        worker.signal(signal.SIGTERM)
        return await worker.ended()

    def _environment(self) -> dict[str, str]:
        return {
            "EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "EMBEDFLEET_KAFKA_GROUP": self.kafka.group,
            "EMBEDFLEET_KAFKA_TOPICS": self.topic,
            "EMBEDFLEET_KAFKA_DEAD_LETTER_TOPIC": self.dead_letter_topic,
            "EMBEDFLEET_KAFKA_HEARTBEAT_SECONDS": "0.5",
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

    # ---- the topic ----

    async def publish(self, events, *, partition=None) -> None:
        """Publish (key, value) pairs; returns when all are acknowledged."""
        sent = [
            await self.producer.send(self.topic, value, key=key, partition=partition)
            for key, value in events
        ]
        for delivery in sent:
            await delivery

    async def ends(self) -> dict[TopicPartition, int]:
        partitions = [
            TopicPartition(self.topic, number)
            for number in sorted(await self.producer.partitions_for(self.topic))
        ]
        return await self.admin.end_offsets(partitions)

    async def committed(self) -> dict[TopicPartition, int]:
        ends = await self.ends()
        return {part: (await self.admin.committed(part)) or 0 for part in ends}

    async def settled(self, timeout_seconds: float = 60) -> None:
        """Wait until the group has committed the end of every partition."""
        async with asyncio.timeout(timeout_seconds):
            while await self.committed() != await self.ends():
                for worker in self.workers:
                    if worker.process.returncode not in (None, 0, -signal.SIGKILL):
                        raise AssertionError(worker.log_file.read_text()[-4000:])
                await asyncio.sleep(0.1)

    async def records(self, topic: str | None = None) -> list:
        """Read a whole topic, as anybody could."""
        topic = topic or self.topic
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.kafka.bootstrap_servers,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
        )
        await consumer.start()
        try:
            numbers = await self.producer.partitions_for(topic)
            parts = [TopicPartition(topic, number) for number in sorted(numbers)]
            consumer.assign(parts)
            ends = await consumer.end_offsets(parts)
            found = []
            while any([await consumer.position(part) < ends[part] for part in parts]):
                batches = await consumer.getmany(timeout_ms=500)
                found += [record for batch in batches.values() for record in batch]
            return found
        finally:
            await consumer.stop()

    # ---- the expectation, folded from the topic alone ----

    async def expected(self) -> dict[str, str]:
        """Return document -> text, by version and then offset, deletes removed."""
        newest: dict[str, tuple] = {}
        for record in sorted(await self.records(), key=lambda one: (one.partition, one.offset)):
            try:
                event = json.loads(record.value)
            except ValueError:
                continue
            rank = (event["version"], record.offset)
            if event["id"] not in newest or newest[event["id"]][0] < rank:
                newest[event["id"]] = (rank, event.get("text"))
        return {name: text for name, (_, text) in newest.items() if text is not None}

    async def stored(self) -> dict[str, str]:
        """Return document -> text as readers see it, chunks joined in order."""
        rows = await self.sql.fetch(
            "select document_id, string_agg(content, ' ' order by seq) as text "
            'from "articles_chunks" group by document_id'
        )
        return {row["document_id"]: row["text"] for row in rows}

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
    return f"{tenant}/articles/{document}".encode(), json.dumps(value).encode()


def delete(document: str, version: int, tenant: str = "acme") -> tuple:
    """Return key and value of a delete."""
    value = {
        "type": "delete", "tenant": tenant, "collection": "articles", "id": document,
        "version": version,
    }  # fmt: skip
    return f"{tenant}/articles/{document}".encode(), json.dumps(value).encode()
