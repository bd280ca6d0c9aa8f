"""
The workloads of the benchmark: each lets workers do one kind of work, and says what was seen.

A run that leaves one row wrong is void (`Void`). Rates are of the steady part of a run.
Latency counts from when an event was to be sent, not from when it was (coordinated omission).
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from aiokafka import AIOKafkaProducer

from tests.bench.load import Event, Load, partition_of, publish
from tests.bench.measure import Meter, Run, measured, work_off
from tests.bench.servers import Provider, Servers
from tests.bench.subject import Embedfleet
from worker.core.chunking import split
from worker.core.model import ChunkingOptions
from worker.ops.offered_load import offered

_ASKS_AT_START = 1
"""A worker that starts asks for one text, to see the length of the model's vectors."""
SEED = 20_261_125


class Void(AssertionError):
    """A run whose table is not what was published measures nothing."""


class Delays(NamedTuple):
    """Milliseconds from when an event was to be sent to its commit."""

    p50: float
    p99: float


@dataclass(frozen=True)
class Edits:
    """What edits of one sentence cost."""

    median: int
    p95: int
    most: int
    documents: int
    expected: int
    """Chunks that differ, by the chunker alone."""
    embedded: int
    """Chunks that the provider was asked for."""
    moved: int
    moved_hot: int
    inserted: int
    unbroken_p95: int
    """Chunks that differ where the text is one long paragraph."""


@asynccontextmanager
async def world(
    servers: Servers,
    name: str,
    *,
    provider: Provider | None = None,
    index: bool = False,
    chunking: tuple[str, int] | None = None,
) -> AsyncIterator[tuple[Embedfleet, Provider]]:
    """Yield workers that have not been started yet, and their provider."""
    topic = await servers.topic(name)
    async with provider or Provider() as answering:
        fleet = Embedfleet(servers, topic, answering.url, index=index)
        if chunking is not None:
            fleet.chunking = chunking
        async with fleet:
            yield fleet, answering
    await servers.settle()


def checked(run: Run) -> Run:
    """Return a run whose table is right."""
    if not run.is_right:
        raise Void(f"the table is wrong: {dict(run.wrong)}")
    return run


async def backlog(servers: Servers, count: int, **environment: str) -> tuple[Run, Run, Run]:
    """
    W1 and W3: a backlog of new and changed documents, then what is unchanged.

    Returns the first run, one in which every document is published again with another version,
    and one in which another group reads the whole topic again.
    """
    load = Load(SEED)
    async with world(servers, "w1") as (fleet, provider):
        events = load.take(count)
        await publish(servers.kafka.bootstrap_servers, fleet.topic, events)
        await fleet.start(**environment)
        first = checked(await work_off(servers, fleet, provider, load, len(events)))
        again = load.again()
        settled = await fleet.versions()
        await fleet.stop()
        await publish(servers.kafka.bootstrap_servers, fleet.topic, again)
        before = await provider.stats()
        await fleet.start(**environment)
        unchanged = checked(
            await measured(Meter(servers, fleet, provider), load, settled, settled + len(again))
        )
        await fleet.stop()
        replayed = await _replayed(fleet, provider, load, len(events) + len(again), environment)
        after = await provider.stats()
        if after["inputs"] != before["inputs"] + 2 * _ASKS_AT_START:
            raise Void("unchanged documents were embedded again")
    return first, unchanged, replayed


async def _replayed(
    fleet: Embedfleet,
    provider: Provider,
    load: Load,
    records: int,
    environment: Mapping[str, str],
) -> Run:
    """Let a group that has seen nothing read the whole topic."""
    fleet.group = f"{fleet.group}-again"
    # How far it is shows in what is committed.
    often = {"EMBEDFLEET_KAFKA_COMMIT_INTERVAL_SECONDS": "0.1"}
    await fleet.start(**environment, **often)
    meter = Meter(fleet.servers, fleet, provider, progress=fleet.read)
    return checked(await measured(meter, load, 0, records))


async def indexed(servers: Servers, count: int) -> Run:
    """W2: a backlog under an HNSW index."""
    load = Load(SEED + 2, updates=0)
    async with world(servers, "w2", index=True) as (fleet, provider):
        await publish(servers.kafka.bootstrap_servers, fleet.topic, load.take(count))
        await fleet.start()
        return checked(await work_off(servers, fleet, provider, load, count))


async def edited(servers: Servers, documents: int, chunks: int = 20) -> Edits:
    """W4: documents of many chunks in paragraphs, of each of which one sentence is edited."""
    chance = random.Random(SEED)
    size = 1_200
    options = ChunkingOptions("text", size, 0)
    load = Load(SEED + 4, updates=0, characters=(chunks * size,))
    async with world(servers, "w4", chunking=("text", size)) as (fleet, provider):
        await publish(servers.kafka.bootstrap_servers, fleet.topic, load.take(documents))
        await fleet.start()
        checked(await work_off(servers, fleet, provider, load, documents))
        await fleet.stop()  # who leaves has told all its numbers
        before = await _writes(fleet, provider)
        changed, unbroken, events = [], [], []
        for name in list(load.newest):
            old = load.newest[name].text
            new = edit(old, chance)
            changed.append(_differ(old, new, options))
            unbroken.append(
                _differ(*(text.replace("\n\n", " ") for text in (old, new)), options)
            )
            events.append(load.publish(name, new))
        settled = await fleet.versions()
        await publish(servers.kafka.bootstrap_servers, fleet.topic, events)
        await fleet.start()
        meter = Meter(servers, fleet, provider)
        checked(await measured(meter, load, settled, settled + len(events)))
        await fleet.stop()
        used = await _writes(fleet, provider)
        used.subtract(before)
    return Edits(
        median=int(np.median(changed)),
        p95=int(np.percentile(changed, 95)),
        most=max(changed),
        documents=documents,
        expected=sum(changed),
        embedded=used["embedded"] - _ASKS_AT_START,
        moved=used["updated"],
        moved_hot=used["hot"],
        inserted=used["inserted"],
        unbroken_p95=int(np.percentile(unbroken, 95)),
    )


def _differ(old: str, new: str, options: ChunkingOptions) -> int:
    have = {chunk.id for chunk in split(old, None, options)}
    return sum(chunk.id not in have for chunk in split(new, None, options))


def edit(text: str, chance: random.Random) -> str:
    """Return a text of which one sentence is another one."""
    sentences = text.split(". ")
    number = chance.randrange(len(sentences))
    words = sentences[number].split(" ")
    chance.shuffle(words)
    sentences[number] = " ".join(["Edited", *words[: chance.randint(1, len(words))]])
    return ". ".join(sentences)


async def _writes(fleet: Embedfleet, provider: Provider) -> Counter[str]:
    """Return what was written to the chunk table so far, and what was embedded."""
    table = f"chunk_{fleet.collection.id}_{fleet.collection.generation}"
    row = await fleet.sql.fetchrow(
        "select n_tup_ins, n_tup_upd, n_tup_hot_upd from pg_stat_user_tables "
        "where schemaname = $1 and relname = $2",
        fleet.schema,
        table,
    )
    return Counter(
        inserted=row["n_tup_ins"],
        updated=row["n_tup_upd"],
        hot=row["n_tup_hot_upd"],
        embedded=(await provider.stats())["inputs"],
    )


async def provider_bound(
    servers: Servers, seconds: float, *, concurrency: int = 50, inputs: int = 8
) -> float:
    """W5: 200 ms a request; return the share of the semaphore's bound that was used."""
    latency = 0.2
    per_second = concurrency / latency
    environment = _narrow(concurrency, inputs)
    count = int(per_second * inputs * (seconds + 8) / 2)
    load = Load(SEED + 5, updates=0)
    async with world(servers, "w5", provider=Provider(latency)) as (fleet, provider):
        await publish(servers.kafka.bootstrap_servers, fleet.topic, load.take(count))
        await fleet.start(**environment)
        answered = await _answered(provider, after=per_second * 2, seconds=seconds)
    return answered["requests"] / seconds / per_second


async def quota_bound(
    servers: Servers, seconds: float, *, per_second: int = 100
) -> tuple[float, float]:
    """W6: a quota nobody told the worker; return the share used, and that of 429s."""
    options = ("--requests-per-minute", str(60 * per_second))
    count = int(per_second * 8 * (seconds + 25) / 2)
    load = Load(SEED + 6, updates=0)
    async with world(servers, "w6", provider=Provider(0.05, options)) as (fleet, provider):
        await publish(servers.kafka.bootstrap_servers, fleet.topic, load.take(count))
        await fleet.start(**_narrow(50, 8))
        answered = await _answered(provider, after=per_second * 15, seconds=seconds)
    asked = answered["requests"]
    refused = answered["status_429"]
    return (asked - refused) / seconds / per_second, refused / asked


async def overloaded(servers: Servers, seconds: float) -> tuple[int, float]:
    """W7: ten times what the provider takes; return the peak of memory, and the rate."""
    latency, concurrency, inputs = 0.2, 10, 16
    per_second = concurrency / latency * inputs / 2
    count = int(per_second * 10 * seconds)
    load = Load(SEED + 7, updates=0)
    async with world(servers, "w7", provider=Provider(latency)) as (fleet, provider):
        await publish(servers.kafka.bootstrap_servers, fleet.topic, load.take(count))
        await fleet.start(**_narrow(concurrency, inputs))
        answered = await _answered(provider, after=concurrency, seconds=seconds)
        return fleet.costs().peak_bytes, answered["inputs"] / 2 / seconds


async def scaled(servers: Servers, workers: int, seconds: float) -> float:
    """Return the requests a second of so many workers, each bound by its provider alone."""
    latency, concurrency, inputs = 0.2, 4, 8
    per_second = workers * concurrency / latency
    count = int(per_second * inputs * (seconds + 20) / 2)
    load = Load(SEED + 9, updates=0)
    async with world(servers, "scale", provider=Provider(latency)) as (fleet, provider):
        await publish(servers.kafka.bootstrap_servers, fleet.topic, load.take(count))
        for _ in range(workers):
            await fleet.start(**_narrow(concurrency, inputs))
        await _all_run(fleet, servers.partitions)
        start = (await provider.stats())["requests"]
        answered = await _answered(provider, after=start + per_second, seconds=seconds)
    return answered["requests"] / seconds


async def fresh(
    servers: Servers, per_second: float, seconds: float, latency_seconds: float = 0.03
) -> Delays:
    """P9: how long it takes from when an event is to be sent to its commit, at this rate."""
    load = Load(SEED + 10, updates=0)
    async with world(servers, "fresh", provider=Provider(latency_seconds)) as (fleet, _):
        await _warm(fleet, load)
        events = load.take(int(per_second * seconds))
        due = await offer(servers, fleet.topic, events, per_second)
        await _settled(fleet, load)
        return delays(late(await fleet.commit_times(), due))


async def taken(
    servers: Servers, seconds: float, latency_seconds: float = 0.03, *, offered: float = 8_000
) -> float:
    """Return the events a second that are stored while more than can be are published."""
    load = Load(SEED + 11, updates=0)
    async with world(servers, "taken", provider=Provider(latency_seconds)) as (fleet, _):
        await _warm(fleet, load)
        events = load.take(int(offered * seconds))
        began = time.time()  # noqa: TID251 - compared with commit times
        due = await offer(servers, fleet.topic, events, offered)
        ended = time.time()  # noqa: TID251 - compared with commit times
        await _settled(fleet, load)
        commits = await fleet.commit_times()
        return sum(commits[name] <= ended for name in due) / (ended - began)


async def skewed(servers: Servers, seconds: float, times: int = 4) -> tuple[Delays, Delays]:
    """
    W8: a small tenant alone, and beside one that offers 100 times as much; its delays.

    What is offered is 2.5 times what the provider takes. Each time ends before the queue of the
    worker is full: from then on Kafka's order decides, in which tenants stand one behind the
    other.
    """
    alone: list[float] = []
    beside: list[float] = []
    for _ in range(times):
        alone += await _small_tenant(servers, seconds, beside=0)
        beside += await _small_tenant(servers, seconds, beside=100)
    return delays(alone), delays(beside)


async def _small_tenant(servers: Servers, seconds: float, *, beside: int) -> list[float]:
    latency, concurrency, inputs, small = 0.1, 8, 4, 4.0
    load = Load(SEED + 8, updates=0, tenants={"small": 1})
    async with world(servers, "w8", provider=Provider(latency)) as (fleet, _):
        await _warm(fleet, load, **_narrow(concurrency, inputs))
        load.tenants = {"small": 1, "large": beside} if beside else {"small": 1}
        per_second = small * (1 + beside)
        events = load.take(int(per_second * seconds))
        due = await offer(servers, fleet.topic, events, per_second)
        await _settled(fleet, load)
        mine = {name: at for name, at in due.items() if load.tenant_of[name] == "small"}
        return late(await fleet.commit_times(), mine)


async def offer(
    servers: Servers, topic: str, events: Sequence[Event], per_second: float
) -> dict[str, float]:
    """Publish events in time, whatever becomes of them; return when each was to be sent."""
    due: dict[str, float] = {}
    async with AIOKafkaProducer(
        bootstrap_servers=servers.kafka.bootstrap_servers, enable_idempotence=True
    ) as producer:
        began = time.time()  # noqa: TID251 - compared with commit times
        sent = []
        async for number in offered(len(events), per_second, time.monotonic):
            event = events[number]
            due[event.name] = began + number / per_second
            partition = partition_of(event.key, servers.partitions)
            sent.append(
                await producer.send(topic, event.value, key=event.key, partition=partition)
            )
        for delivery in sent:
            await delivery
    return due


def late(committed: Mapping[str, float], due: Mapping[str, float]) -> list[float]:
    """Return by how many milliseconds documents were late."""
    return [1000 * (committed[name] - at) for name, at in due.items()]


def delays(milliseconds: Sequence[float]) -> Delays:
    """Return how late documents were, at the median and at the 99th percentile."""
    return Delays(*np.percentile(milliseconds, [50, 99]).tolist())


async def _warm(fleet: Embedfleet, load: Load, **environment: str) -> None:
    """Start one worker and let it do some work."""
    events = load.take(50)
    await publish(fleet.servers.kafka.bootstrap_servers, fleet.topic, events)
    await fleet.start(**environment)
    await _settled(fleet, load)


async def _settled(fleet: Embedfleet, load: Load) -> None:
    goal = sum(one.version for one in load.newest.values())
    async with asyncio.timeout(300):
        while await fleet.versions() < goal:  # noqa: ASYNC110 - a fact of the table
            await asyncio.sleep(0.1)
    fleet.check_alive()


async def _all_run(fleet: Embedfleet, partitions: int) -> None:
    """Wait until each worker has claimed its share."""
    share = partitions // len(fleet.processes)
    async with asyncio.timeout(60):
        while sorted((await fleet.owners()).values()) != [share] * len(fleet.processes):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def _answered(provider: Provider, *, after: float, seconds: float) -> Counter[str]:
    """Wait for so many requests, and return what the provider counted in the time behind."""
    async with asyncio.timeout(120):
        while (await provider.stats())["requests"] < after:  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.1)
    seen: list[dict[str, Any]] = []
    began = time.monotonic()
    for wait in (0.0, seconds):
        await asyncio.sleep(began + wait - time.monotonic())
        seen.append(await provider.stats())
    ((first, last),) = pairwise(seen)
    return Counter({name: last[name] - first[name] for name in first})


def _narrow(concurrency: int, inputs: int) -> dict[str, str]:
    return {
        "EMBEDFLEET_EMBEDDING_CONCURRENCY": str(concurrency),
        "EMBEDFLEET_EMBEDDING_MAX_INPUTS": str(inputs),
    }
