"""
The servers of a benchmark: Kafka, PostgreSQL and the provider, each a process of its own.

PostgreSQL is durable (fsync, full_page_writes and synchronous_commit on), with the memory of a
small production server, and is vacuumed between runs, not in them. What a process has cost is
read from /proc, its children included.
"""

import asyncio
import os
import re
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self
from uuid import uuid4

import aiohttp
import asyncpg
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.support.servers import open_folder
from worker.embedded.kafka import EmbeddedKafka
from worker.embedded.kafka_jars import PINS
from worker.embedded.postgres import EmbeddedPostgres

POSTGRES_SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "maintenance_work_mem": "1GB",
    "autovacuum": "off",
    "track_commit_timestamp": "on",
}
DIMENSIONS = 1536
MODEL = "bench-model"
_TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What a process and its children have used so far: seconds of CPU, bytes of memory."""

    cpu_seconds: float
    peak_bytes: int


@dataclass
class Provider:
    """The scripted provider, started anew for each run; `async with` starts and ends it."""

    latency_seconds: float = 0.03
    options: tuple[str, ...] = ()
    url: str = ""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(
                "-m",
                "worker.embedded.scripted_provider",
                "--port",
                "0",
                "--dimensions",
                str(DIMENSIONS),
            ),
            *("--latency", str(self.latency_seconds), *self.options),
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        found = re.search(r"http://\S+", line)
        assert found, f"the provider does not say where it listens: {line!r}"
        self.url = found[0]
        self._session = aiohttp.ClientSession()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()
        self._process.terminate()
        await self._process.wait()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    async def stats(self) -> dict[str, Any]:
        """What it has been asked for since it was started."""
        async with self._session.get(f"{self.url.removesuffix('/v1')}/stats") as answer:
            found: dict[str, Any] = await answer.json()
            return found


@dataclass
class Servers:
    """Kafka and PostgreSQL for all runs of a benchmark; each run has a topic and a schema."""

    partitions: int = 8
    kafka: EmbeddedKafka = field(init=False)
    postgres: EmbeddedPostgres = field(init=False)

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        folder = Path(self._stack.enter_context(open_folder()))
        self.kafka = EmbeddedKafka(folder / "kafka")
        self.postgres = EmbeddedPostgres(
            folder / "postgres", durable=True, settings=POSTGRES_SETTINGS
        )
        for server in (self.kafka, self.postgres):
            await asyncio.to_thread(server.start)
            self._stack.callback(server.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def topic(self, name: str) -> str:
        """Create a topic of a name that was never used, and return it."""
        unique = f"{name}-{uuid4().hex[:8]}"
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka.bootstrap_servers)
        await admin.start()
        try:
            new = NewTopic(unique, self.partitions, 1)
            letters = NewTopic(f"{unique}.dead-letters", 1, 1)
            await admin.create_topics([new, letters])
        finally:
            await admin.close()
        return unique

    async def settle(self) -> None:
        """Let PostgreSQL write and clean up before the next run."""
        sql = await self.connect()
        try:
            await sql.execute("vacuum analyze")
            await sql.execute("checkpoint")
        finally:
            await sql.close()

    async def versions(self) -> dict[str, str]:
        """Return what servers these are."""
        sql = await self.connect()
        try:
            postgres = await sql.fetchval("show server_version")
            vector = await sql.fetchval(
                "select default_version from pg_available_extensions where name = 'vector'"
            )
        finally:
            await sql.close()
        settings = ", ".join(f"{name} {value}" for name, value in POSTGRES_SETTINGS.items())
        return {
            "Kafka": f"{_kafka_version()}, one broker",
            "PostgreSQL": f"{postgres}, fsync and synchronous_commit on, {settings}",
            "pgvector": vector,
        }

    async def connect(self, schema: str = "public") -> asyncpg.Connection:
        """Return a connection of the benchmark's own."""
        return await asyncpg.connect(
            self.postgres.url, server_settings={"search_path": f"{schema}, public"}
        )


def _kafka_version() -> str:
    found = re.search(r"org\.apache\.kafka:kafka-clients:([\d.]+)", PINS.read_text())
    assert found, f"{PINS.name} names no clients"
    return found[1]


def cost(pid: int) -> Cost:
    """Return what a process and all its children have used; the dead ones included."""
    family = [pid, *_descendants(pid)]
    ticks = peak = 0
    for member in family:
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            status = Path(f"/proc/{member}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        # utime stime cutime cstime (proc_pid_stat(5)): a child that was waited for is in the
        # last two of its parent, one that lives has an entry of its own.
        ticks += sum(map(int, fields[11:15]))
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        peak += int(found[1]) * 1024 if found else 0
    return Cost(ticks / _TICKS, peak)


def _descendants(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [one for child in children for one in (child, *_descendants(child))]
