"""
Far more documents than a fleet can embed, many of them large.

What a worker holds is bounded, its loop answers, and it keeps its place in the group. Without
proxies and audit, which would take the processor that is measured.
"""

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from tests.chaos.nemesis import tested
from tests.support.fleet import Fleet, upsert
from tests.support.verdicts import Verdict
from tests.support.worker_process import WorkerProcess

DOCUMENTS = 6000
LARGE_BYTES, LONG_BYTES, SMALL_BYTES = 150_000, 40_000, 300
SHARE_LARGE, SHARE_LONG = 0.2, 0.05
SLOW_SECONDS = 30
LATENCY_SECONDS = 1.5
MIB = 1024 * 1024
QUEUE_MIB = 16
MEMORY_MIB = 80 + 32 + 3 * QUEUE_MIB
"""Of a worker: before any work; vectors; documents as bytes, as texts and in requests."""
CALLBACK_SECONDS = 0.02
COLLECTIONS = ("articles", "whole")
_SHOWN = """
select document_id, string_agg(content, ' ' order by seq) from "{}_chunks" group by document_id
"""
_SAMPLE_SECONDS = 0.25

# What the provider takes of a worker: 43 texts a second.
ENVIRONMENT = {
    "EMBEDFLEET_EMBEDDING_CONCURRENCY": "4",
    "EMBEDFLEET_EMBEDDING_MAX_INPUTS": "16",
    "EMBEDFLEET_QUEUE_MAX_BYTES": str(QUEUE_MIB * MIB),
}


def documents(seed: int) -> Iterator[tuple[str, str, str]]:
    """Documents of one chunk that are large, of a hundred chunks, and small ones."""
    chance = random.Random(seed)
    for number in range(DOCUMENTS):
        kind = chance.random()
        name, collection, size = f"d{number:05}", "articles", SMALL_BYTES
        if kind < SHARE_LARGE:
            collection, size = "whole", LARGE_BYTES
        elif kind < SHARE_LARGE + SHARE_LONG:
            size = LONG_BYTES
        word = f"{name}{chance.randrange(1000):03} "
        text = " ".join(f"{word}{place}" for place in range(size // (len(word) + 5)))
        yield name, collection, text


def events(seed: int) -> Iterator[tuple[bytes, bytes]]:
    for name, collection, text in documents(seed):
        yield upsert(name, 1, text, collection=collection)


async def shown(fleet: Fleet) -> dict[str, str]:
    """What readers see of each document."""
    rows = [row for name in COLLECTIONS for row in await fleet.sql.fetch(_SHOWN.format(name))]
    return dict(map(tuple, rows))


@dataclass
class Watch:
    """What the processes of some workers take, and hold."""

    workers: list[WorkerProcess]
    memory_mib: dict[int, float] = field(default_factory=dict)
    queue_bytes: int = 0
    queue_documents: int = 0
    samples: int = 0

    async def run(self, fleet: Fleet) -> None:
        while True:
            for worker in self.workers:
                held = worker.resident_bytes / MIB
                self.memory_mib[worker.process.pid] = max(
                    held, self.memory_mib.get(worker.process.pid, 0)
                )
            self.samples += 1
            await fleet.pass_time(_SAMPLE_SECONDS)

    async def look_at_queues(self) -> None:
        for worker in self.workers:
            queue = (await worker.state())["queue"]
            self.queue_bytes = max(self.queue_bytes, queue["bytes"])
            self.queue_documents = max(self.queue_documents, queue["documents"])


@asynccontextmanager
async def _watched(fleet: Fleet, watch: Watch):
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch.run(fleet))
        yield
        watching.cancel()


def slow_callbacks(worker: WorkerProcess) -> list[dict]:
    """Those since it has begun to work."""
    lines = worker.lines()
    begun = next(n for n, line in enumerate(lines) if line.get("action") == "assigned")
    return [line for line in lines[begun:] if line.get("action") == "slow_callback"]


async def overload(fleet: Fleet, seed: int) -> list[Verdict]:
    """Publish ten times what can be embedded in half a minute; then the provider is fast."""
    fleet.environment |= ENVIRONMENT
    await fleet.create_collection("whole", chunking=("none", 1))
    workers = [await fleet.start(module="tests.chaos.slow_callbacks") for _ in range(2)]
    await fleet.until(lambda: fleet.is_shared_by(*workers))
    assigned = sum(worker.actions()["assigned"] for worker in workers)
    base = [worker.resident_bytes / MIB for worker in workers]
    fleet.provider.latency_seconds = LATENCY_SECONDS
    watch = Watch(workers)
    async with _watched(fleet, watch):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(fleet.publish_slowly(events(seed), size=50))
            for _ in range(SLOW_SECONDS):
                await fleet.pass_time(1)
                await watch.look_at_queues()
        stored = len(await shown(fleet))
        fleet.provider.latency_seconds = 0.0
        await fleet.settled(timeout_seconds=120)
    expected = {name: text for name, _, text in documents(seed)}
    is_whole = await shown(fleet) == expected
    rebalances = sum(worker.actions()["assigned"] for worker in workers) - assigned
    slow = [line for worker in workers for line in slow_callbacks(worker)]
    twice = fleet.embedded_twice()
    codes = [await fleet.stop(worker) for worker in workers]
    return [
        *_verdicts(watch, base, slow),
        Verdict("every document is shown as it was published", f"{is_whole}", is_whole),
        Verdict("0 rebalances", f"{rebalances}", rebalances == 0),
        Verdict("SIGTERM ends every worker with 0", f"{codes}", not any(codes)),
        Verdict("no text is bought twice", f"{len(twice)}", not twice),
        tested("times of what was stored", DOCUMENTS // max(1, stored), 10),
    ]


def _verdicts(watch: Watch, base: list[float], slow: list[dict]) -> list[Verdict]:
    longest = max(slow, key=lambda line: line["cpu_ms"], default={"cpu_ms": 0, "what": ""})
    walls = max((line["wall_ms"] for line in slow), default=0)
    peaks = list(watch.memory_mib.values())
    return [
        Verdict(
            f"a worker holds <= {MEMORY_MIB} MiB",
            f"{', '.join(f'{peak:.0f}' for peak in peaks)} MiB, "
            f"{', '.join(f'{held:.0f}' for held in base)} MiB before",
            max(peaks) <= MEMORY_MIB,
        ),
        Verdict(
            f"no callback takes the loop > {1000 * CALLBACK_SECONDS:g} ms of processor time",
            json.dumps(longest),
            longest["cpu_ms"] <= 1000 * CALLBACK_SECONDS,
        ),
        Verdict("the longest by the wall", f"{walls} ms", held=True),
        Verdict("callbacks above 5 ms", f"{len(slow)}", held=True),
        Verdict("most documents waiting and in flight", f"{watch.queue_documents}", held=True),
        tested("MiB in the queue", watch.queue_bytes // MIB, QUEUE_MIB - 1),
        tested("samples of memory", watch.samples, 100),
    ]
