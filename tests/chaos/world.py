"""
A fleet in a world that can be hurt: every worker has links of its own to all it talks to.

A `Seat` is a place for a worker process: its three links stay, processes come and go. The load,
the witness and the provider stand outside, where nothing hurts them. `judge` asks the oracle
and puts its answer into claims.
"""

import asyncio
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Self
from urllib.parse import urlsplit

from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.chaos.history import History
from tests.chaos.load import REFUSED, Load, Publisher
from tests.chaos.oracle import (
    CHUNKING,
    DIMENSIONS,
    Report,
    check,
)
from tests.chaos.proxy import Commits, Link
from tests.chaos.witness import Witness
from tests.support import provider
from tests.support.fleet import Fleet
from tests.support.kafka_cluster import KafkaCluster
from tests.support.verdicts import Verdict
from tests.support.worker_process import WorkerProcess
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_client import Database
from worker.core.model import ChunkingOptions, Collection
from worker.core.vector_index import NO_INDEX
from worker.embedded.kafka import EmbeddedKafka
from worker.embedded.ports import ReservedPort

SEATS = 4
SESSION_SECONDS = 6.5
TIMERS = {
    "EMBEDFLEET_KAFKA_HEARTBEAT_SECONDS": "1",
    "EMBEDFLEET_KAFKA_DRAIN_SECONDS": "1",
    "EMBEDFLEET_KAFKA_REBALANCE_SECONDS": "6",
    "EMBEDFLEET_KAFKA_REQUEST_SECONDS": "6.2",
    "EMBEDFLEET_KAFKA_SESSION_SECONDS": str(SESSION_SECONDS),
    "EMBEDFLEET_DATABASE_IDLE_IN_TRANSACTION_SECONDS": "3",
    "EMBEDFLEET_DATABASE_LOCK_TIMEOUT_SECONDS": "2",
    "EMBEDFLEET_DATABASE_STATEMENT_TIMEOUT_SECONDS": "4",
    "EMBEDFLEET_DATABASE_COMMAND_TIMEOUT_SECONDS": "5",
    "EMBEDFLEET_DATABASE_CONNECT_TIMEOUT_SECONDS": "3",
    "EMBEDFLEET_EMBEDDING_TIMEOUT_SECONDS": "3",
    "EMBEDFLEET_EMBEDDING_MAX_INPUTS": "8",
}
LEAST_LOOKS = 10
SECONDS_A_LOOK = 5.0
"""A look each 0.25 s, but while servers are away and where the machine is slow."""
CLAIMS = {
    "nothing is lost": ("lost", "unseen", "watermark-skip", "coalesced-into-dead-letter"),
    "nothing newer gives way to older": ("stale", "stale-overwrite", "resurrected", "regress"),
    "no document is half shown": ("torn", "orphan", "wrong-vector", "aborted-read"),
    "nobody writes for a partition that is another's": ("zombie-write",),
    "Kafka is never ahead of the table": ("ahead-of-store", "kafka-ahead-of-next_offset"),
    "the dead letters are exactly the poison": ("dlq-missing", "dlq-extra"),
}


class ProxiedKafka(EmbeddedKafka):
    """A broker that sends the worker of each seat to a port of its own."""

    def __init__(self, folder: Path) -> None:
        self.front = [ReservedPort() for _ in range(SEATS)]
        advertised = {f"SEAT{n}": port.number for n, port in enumerate(self.front)}
        super().__init__(folder, advertised=advertised)

    def link(self, seat: int) -> Link:
        host, _, port = self.listeners[f"SEAT{seat}"].partition(":")
        return Link((host, int(port)), port=self.front[seat].number, name="Kafka")


class Direct:
    """Stands for the link of a seat that talks to the brokers themselves."""

    name = "Kafka"

    def __init__(self, address: str) -> None:
        self.address = address

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_) -> None:
        pass


@dataclass(eq=False)
class Seat:
    """Where one worker process after the other runs, behind the same links."""

    name: str
    kafka: Link | Direct
    postgres: Link
    provider: Link
    worker: WorkerProcess | None = None
    group: str | None = None
    """The group of its workers, if it is not the fleet's."""
    processes: list[WorkerProcess] = field(default_factory=list)

    @property
    def links(self) -> dict[str, Link]:
        return {link.name: link for link in (self.kafka, self.postgres, self.provider)}


@dataclass
class World:
    """Everything a scenario needs."""

    fleet: Fleet
    kafka: ProxiedKafka | KafkaCluster
    seed: int
    seat_count: int = SEATS
    poison: float = 0.01
    module: str = "worker"
    """What runs as a worker."""
    timers: Mapping[str, str] = field(default_factory=TIMERS.copy)
    late: Callable[[], float] = lambda: 0.0
    """How many seconds later than ever the next request is answered."""
    seats: list[Seat] = field(default_factory=list)
    writers: dict[int, str] = field(default_factory=dict)
    """Which process a connection's port at the database belongs to."""
    sold: defaultdict[str, dict[str, datetime]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    """When the provider was last asked for a text by each process, but for what it refuses."""
    report: Report | None = None
    history: History | None = None

    async def __aenter__(self) -> Self:
        self._stack = AsyncExitStack()
        self.chance = random.Random(self.seed)
        await self._stack.enter_async_context(self.fleet)
        self.fleet.environment |= self.timers
        self.fleet.provider.latency_seconds = 0.02
        self.fleet.provider.script = self._answer
        await self._create_collections()
        self.witness = Witness(self.fleet)
        await self.witness.install()
        for number in range(self.seat_count):
            self.seats.append(await self._seat(number))
        load = Load(self.seed, poison=self.poison)
        self.publisher = await self._stack.enter_async_context(
            Publisher(self.fleet.kafka.bootstrap_servers, self.fleet.topics, load)
        )
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        watching = self._tasks.create_task(self.witness.run())
        self._stack.callback(watching.cancel)
        return self

    async def __aexit__(self, *failure) -> None:
        for seat in self.seats:
            if seat.worker is not None and seat.worker.process.returncode is None:
                seat.worker.signal(signal.SIGKILL)
                await seat.worker.process.wait()
        await self._stack.__aexit__(*failure)

    async def _create_collections(self) -> None:
        pool = await Database.open(self.fleet.database)
        for name, (strategy, size) in CHUNKING.items():
            if name != "articles":  # the fleet's own, which is cut otherwise
                await PostgresCatalog(pool).create(_collection(name, strategy, size))
        strategy, size = CHUNKING["articles"]
        await self.fleet.sql.execute(
            "update collection set chunking = jsonb_build_object("
            "'strategy', $1::text, 'size', $2::int, 'overlap', 0) where name = 'articles'",
            strategy,
            size,
        )
        await pool.close()

    async def _seat(self, number: int) -> Seat:
        database = urlsplit(self.fleet.database.url)
        answering = urlsplit(self.fleet.provider.url)
        links = (
            self._to_kafka(number),
            Link((database.hostname, database.port), name="PostgreSQL", watch=Commits),
            Link((answering.hostname, answering.port), name="provider"),
        )
        for link in links:
            await self._stack.enter_async_context(link)
        return Seat(f"seat{number}", *links)

    def _to_kafka(self, number: int) -> Link | Direct:
        if isinstance(self.kafka, KafkaCluster):
            return Direct(self.kafka.bootstrap_servers)
        return self.kafka.link(number)

    def _answer(self, call: provider.Call) -> provider.Reply | None:
        if any(REFUSED in text for text in call.texts):
            return provider.status(400, "no", param="input")
        sold = dict.fromkeys(call.texts, datetime.now(UTC))
        self.sold[call.request.query["worker"]] |= sold
        return provider.late(self.late())

    # ---- workers ----

    async def start(
        self, seat: Seat, failpoints: str = "", **environment: str
    ) -> WorkerProcess:
        """Start a process on a seat; what it may do at failpoints is said by their syntax."""
        database = urlsplit(self.fleet.database.url)
        place = f"{database.netloc.rpartition('@')[0]}@{seat.postgres.address}"
        process = f"{seat.name}-{len(seat.processes)}"
        if seat.group is not None:
            environment["EMBEDFLEET_KAFKA_GROUP"] = seat.group
        if failpoints:
            environment["EMBEDFLEET_FAILPOINTS"] = failpoints
        links = {
            "EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS": seat.kafka.address,
            "EMBEDFLEET_DATABASE_URL": database._replace(netloc=place).geturl(),
            "EMBEDFLEET_EMBEDDING_URL": f"http://{seat.provider.address}/v1?worker={process}",
        }
        self._note_ports(seat)
        worker = await self.fleet.start(
            module=self.module, may_die=True, name=process, **(links | environment)
        )
        seat.worker = worker
        seat.processes.append(worker)
        return worker

    def _note_ports(self, seat: Seat) -> None:
        """What was opened since the last time belongs to the process that ran until now."""
        new = seat.postgres.ports - self.writers.keys()
        if new:
            self.writers |= dict.fromkeys(new, seat.worker.name)

    async def start_all(self, failpoints: str = "", **environment: str) -> None:
        for seat in self.seats:
            await self.start(seat, failpoints, **environment)
        await self.shared()

    async def shared(self, *seats: Seat, timeout_seconds: float = 60) -> None:
        """Wait until the workers of these seats, or of all, run all partitions."""
        workers = [seat.worker for seat in seats or self.seats]
        await self.fleet.until(lambda: self.fleet.is_shared_by(*workers), timeout_seconds)

    async def stop_all(self) -> list[int]:
        """Stop every worker in order, one after the other; their exit codes."""
        return [await self.fleet.stop(seat.worker) for seat in self.seats]

    def logged(self, action: str) -> int:
        """How often all processes so far have logged an action."""
        return sum(worker.actions()[action] for worker in self.fleet.workers)

    def failpoints(self) -> Counter[str]:
        """How often each failpoint did something."""
        return Counter(
            line["name"]
            for worker in self.fleet.workers
            for line in worker.lines()
            if line.get("action") == "failpoint"
        )

    async def fenced(self) -> int:
        """How many writes were refused to the processes that run now."""
        total = 0
        for seat in self.seats:
            if seat.worker is not None and seat.worker.process.returncode is None:
                total += await seat.worker.metric("fenced")
        return int(total)

    # ---- load and end ----

    @asynccontextmanager
    async def load(self, events_per_second: int = 40):
        """Publish, slowly and without an end, while the block runs."""

        async def publish() -> None:
            while not ending.is_set():
                began = monotonic()
                await self.publisher.publish(12)
                await self.fleet.pass_time(
                    max(0.0, 12 / events_per_second - (monotonic() - began))
                )

        ending = asyncio.Event()
        publishing = self._tasks.create_task(publish())
        try:
            yield
        finally:
            ending.set()
            await publishing

    async def converge(self, timeout_seconds: float = 120) -> float:
        """Wait until everything is done; returns how long that took."""
        began = monotonic()
        await self.fleet.settled(timeout_seconds)
        return monotonic() - began

    async def rewind(self) -> None:
        """Set the group back to the beginning, as Kafka's own tools do; nobody is in it."""
        places = [TopicPartition(*place) for place in await self.fleet.ends()]
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.fleet.kafka.bootstrap_servers,
            group_id=self.fleet.kafka.group,
            enable_auto_commit=False,
        )
        await consumer.start()
        consumer.assign(places)
        await consumer.commit(dict.fromkeys(places, 0))
        await consumer.stop()

    def paid(self) -> int:
        """How many texts the provider was paid for, but for what a worker asks at its start."""
        embedded = self.fleet.provider.embedded
        return embedded.total() - embedded["dimensions"]

    async def judge(self, *, blames: int = 0) -> list[Verdict]:
        """
        Ask the oracle.

        `blames`: of so many records, in whose company workers were killed again and again, a
        dead letter may say that they kill workers.
        """
        for seat in self.seats:
            self._note_ports(seat)
            # A worker of another group has no claim of ours to write under.
            if seat.group is None:
                mine = seat.postgres.ports
                self.witness.workers |= {port: self.writers[port] for port in mine}
        self.history = history = await self.witness.history()
        blamed = history.blame("worker_killer") if blames else 0
        self.report = report = check(history)
        costs = ", ".join(f"{count} {name}" for name, count in report.costs.items())
        return [
            *(_verdict(report, claim, names) for claim, names in CLAIMS.items()),
            *self._has_seen(history),
            Verdict("what it cost", costs, held=True),
            Verdict(f"<= {blames} records blamed for kills", f"{blamed}", blamed <= blames),
        ]

    def _has_seen(self, history: History) -> list[Verdict]:
        """Tell whether the oracle was shown what happened, as it happened."""
        witness, published = self.witness, self.publisher.acknowledged
        least = max(LEAST_LOOKS, int(witness.seconds / SECONDS_A_LOOK))
        strangers = [one for one in history.changes if one.port not in self.writers]
        return [
            Verdict(
                "the oracle has read what was published",
                f"{len(history.records)} records of {published}",
                0 < len(history.records) == published,
            ),
            Verdict(
                "it knows who has written each row",
                f"{len(history.changes)} changes, {len(strangers)} by nobody known",
                bool(history.changes) and not strangers,
            ),
            Verdict(
                f"tested: >= {least} looks, at all rows and at the group's offsets",
                f"{witness.snapshots} and {witness.sampled}",
                min(witness.snapshots, witness.sampled) >= least,
            ),
        ]


async def run(world, verdicts, scenario):
    """Let a scenario happen in a world; all its verdicts must hold."""
    async with world:
        verdicts += await scenario(world)
    assert all(verdict.held for verdict in verdicts), verdicts


def _verdict(report: Report, claim: str, names: tuple[str, ...]) -> Verdict:
    found = {name: report.anomalies[name] for name in names if name in report.anomalies}
    measured = "; ".join(f"{name} {len(seen)}x: {seen[0]}" for name, seen in found.items())
    return Verdict(claim, measured or "0 anomalies", not found)


def _collection(name: str, strategy: str, size: int) -> Collection:
    return Collection(
        id=0,
        name=name,
        model="test-model",
        dimensions=DIMENSIONS,
        storage="vector",
        metric="cosine",
        chunking=ChunkingOptions(strategy, size),
        index=NO_INDEX,
    )
