"""
Whom a benchmark measures: embedfleet's workers, or a peer, as processes on one topic.

A subject owns its tables for one run. What it has done is looked up from outside, by plain SQL:
how many documents have come to their newest version.
"""

import asyncio
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np

from tests.bench.load import CHUNK_CHARACTERS, COLLECTION
from tests.bench.peers.registry import Newest, Peer, check, create_table, prepare
from tests.bench.servers import DIMENSIONS, MODEL, Cost, Servers, cost
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_client import Database
from worker.adapters.pg_migrations import Migrations
from worker.config import DatabaseOptions
from worker.core.model import ChunkingOptions, Collection
from worker.core.vector_index import NO_INDEX, VectorIndex
from worker.embedded.scripted_provider import Pool

LOGS = Path("build/bench/logs")
_END_SECONDS = 60


@dataclass(eq=False)
class Subject(ABC):
    """One run's processes and tables; `async with` makes and removes them."""

    servers: Servers
    topic: str
    provider_url: str
    name: str = ""
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        await self.prepare()
        self.sql = await self.servers.connect(self.schema)
        self._stack.push_async_callback(self.sql.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        await self.sql.execute(f'drop schema if exists "{self.schema}" cascade')
        await self._stack.aclose()

    @property
    def schema(self) -> str:
        """The schema of its tables: one a topic."""
        return self.topic.replace("-", "_")

    @abstractmethod
    async def prepare(self) -> None:
        """Make its tables."""

    @abstractmethod
    async def start(self, **environment: str) -> asyncio.subprocess.Process:
        """Start one process."""

    @abstractmethod
    async def versions(self) -> int:
        """Return the sum of the versions of all documents that its table shows now."""

    @abstractmethod
    async def wrong(self, newest: Mapping[str, Newest]) -> dict[str, int]:
        """Return how many documents are missing, stale, or otherwise not as published."""

    async def stop(self) -> list[int]:
        """Ask all processes to end, and return their exit codes."""
        for process in self.processes:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        codes = [await self._ended(process) for process in self.processes]
        self.processes.clear()
        return codes

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        try:
            async with asyncio.timeout(_END_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            return await process.wait()

    async def spawn(
        self, argv: list[str], environment: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        """Start a process of this subject; its output goes to a log beside the others."""
        with _log(f"{self.topic}-{len(self.processes)}").open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=os.environ | dict(environment),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.processes.append(process)
        return process

    def costs(self) -> Cost:
        """What all its processes have used: CPU in sum, memory of the largest."""
        each = [cost(process.pid) for process in self.processes]
        return Cost(sum(one.cpu_seconds for one in each), max(one.peak_bytes for one in each))

    def check_alive(self) -> None:
        """Raise where a process has ended by itself."""
        for process in self.processes:
            if process.returncode is not None:
                raise RuntimeError(f"{self.name} ended with {process.returncode}: see {LOGS}")


@dataclass(eq=False)
class Embedfleet(Subject):
    """The workers, with the settings that they have unless told otherwise."""

    name: str = "embedfleet"
    storage: str = "halfvec"
    chunking: tuple[str, int] = ("text", CHUNK_CHARACTERS)
    index: bool = False
    group: str = "bench"

    @property
    def database(self) -> DatabaseOptions:
        """Where its tables are."""
        return DatabaseOptions(url=self.servers.postgres.url, schema=self.schema, pool_min=1)

    async def prepare(self) -> None:
        """Make the tables and one collection."""
        await Migrations(self.database).up()
        database = await Database.open(self.database)
        try:
            wanted = Collection(
                id=0,
                name=COLLECTION,
                model=MODEL,
                dimensions=DIMENSIONS,
                storage=self.storage,
                metric="cosine",
                chunking=ChunkingOptions(*self.chunking),
                index=VectorIndex(build_at_rows=0) if self.index else NO_INDEX,
            )
            self.collection = await PostgresCatalog(database).create(wanted)
        finally:
            await database.close()

    async def start(self, **environment: str) -> asyncio.subprocess.Process:
        """Start one worker."""
        argv = [sys.executable, "-m", "worker", "run"]
        return await self.spawn(argv, self._environment() | environment)

    async def versions(self) -> int:
        """Return the sum of the versions of all documents."""
        found: int = await self.sql.fetchval(
            "select coalesce(sum(version), 0)::int from document"
        )
        return found

    async def read(self) -> int:
        """Return how many records the group is done with."""
        found: int = await self.sql.fetchval(
            "select coalesce(sum(next_offset), 0)::int from partition_progress where grp = $1",
            self.group,
        )
        return found

    async def owners(self) -> dict[str, int]:
        """Return how many partitions each worker has claimed last."""
        rows = await self.sql.fetch(
            "select owner, count(*) from partition_claim where grp = $1 group by owner",
            self.group,
        )
        return {row["owner"]: row["count"] for row in rows}

    async def wrong(self, newest: Mapping[str, Newest]) -> dict[str, int]:
        """Compare every document, chunk and vector with what was published."""
        await self.sql.set_type_codec(
            "halfvec", schema="public", encoder=bytes, decoder=bytes, format="binary"
        )
        async with self.sql.transaction():
            rows = self.sql.cursor(
                "select document_id, version, content, embedding "
                f'from "{COLLECTION}_chunks" order by document_id, seq',
                prefetch=500,
            )
            found: dict[str, Shown] = {}
            async for row in rows:
                shown = found.setdefault(row["document_id"], Shown(row["version"]))
                shown.text += row["content"]
                shown.is_whole &= _is_of(row["embedding"], row["content"])
        return compare(found, newest)

    async def commit_times(self) -> dict[str, float]:
        """Return when the row of each document was committed last, in seconds since 1970."""
        rows = await self.sql.fetch(
            "select id, extract(epoch from pg_xact_commit_timestamp(xmin))::float8 as at "
            "from document"
        )
        return {row["id"]: row["at"] for row in rows}

    def _environment(self) -> dict[str, str]:
        return {
            "EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS": self.servers.kafka.bootstrap_servers,
            "EMBEDFLEET_KAFKA_GROUP": self.group,
            "EMBEDFLEET_KAFKA_TOPICS": self.topic,
            "EMBEDFLEET_KAFKA_DEAD_LETTER_TOPIC": f"{self.topic}.dead-letters",
            "EMBEDFLEET_DATABASE_URL": self.servers.postgres.url,
            "EMBEDFLEET_DATABASE_SCHEMA": self.schema,
            "EMBEDFLEET_EMBEDDING_URL": self.provider_url,
            "EMBEDFLEET_TELEMETRY_ADMIN_PORT": "0",
        }


def _log(name: str) -> Path:
    LOGS.mkdir(parents=True, exist_ok=True)
    return LOGS / f"{name}.log"


@dataclass(eq=False)
class Other(Subject):
    """A peer, as its own documentation would write it, in an environment of its own."""

    peer: Peer = field(kw_only=True)
    index: bool = False

    @property
    def table(self) -> str:
        """The table that it writes."""
        return f"{self.schema}.peer_chunk"

    async def prepare(self) -> None:
        """Make its table, and its environment where there is none."""
        self.name = self.peer.name
        self._python = await asyncio.to_thread(prepare, self.peer)
        sql = await self.servers.connect()
        try:
            await sql.execute("create extension if not exists vector with schema public")
            await sql.execute(f"create schema {self.schema}")
            await sql.execute(create_table(self.table, DIMENSIONS, index=self.index))
        finally:
            await sql.close()
        self._state = Path(self._stack.enter_context(TemporaryDirectory(prefix="embedfleet-")))

    async def start(self, **environment: str) -> asyncio.subprocess.Process:
        """Start it."""
        told = {
            "BENCH_KAFKA": self.servers.kafka.bootstrap_servers,
            "BENCH_TOPIC": self.topic,
            "BENCH_GROUP": "bench",
            "BENCH_POSTGRES": self.servers.postgres.url,
            "BENCH_TABLE": self.table,
            "BENCH_PROVIDER": self.provider_url,
            "BENCH_MODEL": MODEL,
            "BENCH_DIMENSIONS": str(DIMENSIONS),
            "BENCH_STATE": str(self._state),
        }
        argv = self.peer.command(self._python)
        return await self.spawn(argv, told | self.peer.environment | environment)

    async def versions(self) -> int:
        """Return the sum of the versions of all documents."""
        newest = f"select max(version) as version from {self.table} group by doc_id"
        found: int = await self.sql.fetchval(
            f"select coalesce(sum(version), 0)::int from ({newest}) as newest"
        )
        return found

    async def wrong(self, newest: Mapping[str, Newest]) -> dict[str, int]:
        """Compare every document, chunk and vector with what was published."""
        return vars(await check(self.sql, self.table, newest, _pool().vector))


@dataclass
class Shown:
    """What a table shows of one document."""

    version: int
    text: str = ""
    is_whole: bool = True
    """Whether each vector is that of its chunk."""


def compare(found: Mapping[str, Shown], newest: Mapping[str, Newest]) -> dict[str, int]:
    """Return how many documents are missing, stale, torn, or not to be there at all."""
    wrong = dict.fromkeys(("missing", "stale", "torn", "extra"), 0)
    wrong["extra"] = len(found.keys() - newest.keys())
    for name, wanted in newest.items():
        shown = found.get(name)
        if shown is None:
            wrong["missing"] += 1
        elif shown.version != wanted.version:
            wrong["stale"] += 1
        elif not shown.is_whole or _letters(shown.text) != _letters(wanted.text):
            wrong["torn"] += 1
    return wrong


def _letters(text: str) -> str:
    # Cutting drops the white space between chunks.
    return "".join(text.split())


def _is_of(embedding: bytes, content: str) -> bool:
    """Tell whether a halfvec, as PostgreSQL sends it, is the vector of a text."""
    stored = np.frombuffer(embedding, ">f2", offset=4)
    return np.array_equal(stored, _pool().vector(content).astype(np.float16))


@cache
def _pool() -> Pool:
    return Pool(DIMENSIONS)
