"""
What is done to the servers and to the network, and what must have come of it.

As in `nemesis`: hurt, heal, wait until all is done, judge. Workers are never restarted here:
they have to live through it.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import asyncpg
from aiokafka.admin import NewPartitions, RecordsToDelete

from tests.chaos.load import PARTITIONS
from tests.chaos.nemesis import leave, settle, tested
from tests.chaos.proxy import DOWN, UP, Link
from tests.chaos.timed import overruns
from tests.chaos.world import World
from tests.support.kafka import topics
from tests.support.kafka_own import frozen, usable
from tests.support.verdicts import Verdict
from worker.embedded.postgres import EmbeddedPostgres

FAULT_SECONDS = 5.0
CUT_BYTES = 2000
_END_WORKERS_SESSIONS = """
select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'embedfleet'
"""


async def conclude(world: World, *own: Verdict, seconds: float = 60) -> list[Verdict]:
    """Wait, and judge: the workers that were there at the start must be there."""
    converged = await settle(world, seconds)
    alive = sum(seat.worker.process.returncode is None for seat in world.seats)
    left = await leave(world)
    return [
        *await world.judge(),
        converged,
        left,
        Verdict("no worker ends", f"{alive} are alive", alive == len(world.seats)),
        *own,
    ]


# ---- the network ----

Fault = Callable[[Link], Awaitable[None]]


async def _latency(link: Link) -> None:
    link.faults.latency_seconds = 0.3


async def _narrow(link: Link) -> None:
    link.faults.bytes_per_second = 64_000


async def _slices(link: Link) -> None:
    link.faults.slice_bytes = 1


async def _blackhole_up(link: Link) -> None:
    link.faults.blackhole(UP)


async def _blackhole_down(link: Link) -> None:
    link.faults.blackhole(DOWN)


async def _blackhole(link: Link) -> None:
    link.faults.blackhole()


async def _reset(link: Link) -> None:
    link.reset()


async def _refuse(link: Link) -> None:
    await link.refuse()
    link.reset()


async def _cut_answers(link: Link) -> None:
    link.faults.cut_after_bytes = CUT_BYTES
    link.reset()


NETWORK: dict[str, Fault] = {
    "latency": _latency,
    "bandwidth": _narrow,
    "one-byte slices": _slices,
    "blackhole up": _blackhole_up,
    "blackhole down": _blackhole_down,
    "blackhole": _blackhole,
    "reset": _reset,
    "refused": _refuse,
    "answers cut": _cut_answers,
}


async def network(world: World, seconds: float = FAULT_SECONDS) -> list[Verdict]:
    """Put every fault on one link of each kind, of a worker each; healed after each."""
    await world.start_all()
    links = [
        seat.links[name]
        for seat, name in zip(world.seats, ("Kafka", "PostgreSQL", "provider"), strict=False)
    ]
    before = {link.name: Counter(link.counts) for link in links}
    async with world.load():
        for fault in NETWORK.values():
            for link in links:
                await fault(link)
            await world.fleet.pass_time(seconds)
            for link in links:
                await link.heal()
            # A worker that was cut off is back.
            await world.shared(timeout_seconds=90)
    return await conclude(
        world,
        *overruns(world.fleet.workers, seconds),
        *(
            verdict
            for link in links
            for verdict in _caused(link.name, Counter(link.counts) - before[link.name])
        ),
    )


def _caused(name: str, counts: Counter[str]) -> Iterator[Verdict]:
    """Tell what a link has really done."""
    yield Verdict(f"what the link to {name} did", f"{dict(counts)}", held=True)
    for what, least in {
        "delayed": 1,
        "slices": 100,
        "resets": 3,
        "cut_after_bytes": 1,
        "connections": 4,
    }.items():
        yield tested(f"{what} on the way to {name}", counts[what], least)


# ---- the database ----


async def database(world: World, server: EmbeddedPostgres) -> list[Verdict]:
    """Kill backends, refuse to write, refuse connections, crash and restart."""
    await world.start_all()
    ended = 0
    async with world.load():
        for _ in range(20):
            ended += await kill_backends(world)
            await world.fleet.pass_time(0.3)
        for fault in (read_only(world), _full(world), locked(world)):
            async with fault:
                await world.fleet.pass_time(FAULT_SECONDS)
            await world.fleet.pass_time(2)
        for end in (server.kill, server.restart):
            await _off_the_loop(world, end)
            await world.fleet.pass_time(1)
            await _off_the_loop(world, server.start)
            await world.fleet.connect()
            await world.fleet.pass_time(3)
    return await conclude(world, tested("backends killed", ended, 20))


async def _off_the_loop(world: World, call: Callable[[], None]) -> None:
    with suppress(OSError, asyncpg.InterfaceError):
        await world.fleet.sql.close(timeout=1)
    await asyncio.to_thread(call)


async def kill_backends(world: World) -> int:
    """End one that is inside a transaction where there is one, else any of the workers'."""
    rows = await world.fleet.sql.fetch(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where application_name = 'embedfleet' and datname = current_database() "
        "order by state like '%in transaction%' or state = 'active' desc, random() limit 2"
    )
    return len(rows)


@asynccontextmanager
async def read_only(world: World):
    """As a replica is, or a primary that has been demoted: 25006."""
    sql = world.fleet.sql
    await sql.execute("alter role postgres set default_transaction_read_only = on")
    await sql.execute(_END_WORKERS_SESSIONS)
    yield
    await sql.execute("alter role postgres reset default_transaction_read_only")
    await sql.execute(_END_WORKERS_SESSIONS)


@asynccontextmanager
async def _full(world: World):
    """Every connection that the server has is somebody else's: 53300."""
    taken: list[asyncpg.Connection] = []
    try:
        for _ in range(2):
            with suppress(asyncpg.TooManyConnectionsError):
                while True:
                    taken.append(await asyncpg.connect(world.fleet.database.url))
            await world.fleet.sql.execute(_END_WORKERS_SESSIONS)
        yield
    finally:
        for connection in taken:
            connection.terminate()


@asynccontextmanager
async def locked(world: World):
    """Somebody holds the rows of documents for longer than anybody waits."""
    connection = await world.fleet.session()
    try:
        async with connection.transaction():
            await connection.execute("select from document for update")
            yield
    finally:
        connection.terminate()


# ---- the broker ----


async def broker(world: World) -> list[Verdict]:
    """Freeze, kill and restart the broker; the load waits while it is away."""
    await world.start_all()
    kafka = world.kafka
    async with world.load():
        await world.fleet.pass_time(3)
    with frozen(kafka):
        await world.fleet.pass_time(2 * FAULT_SECONDS)
    await usable(kafka)
    async with world.load():
        await world.fleet.pass_time(3)
    for end in (kafka.kill, kafka.stop):
        await asyncio.to_thread(end)
        await world.fleet.pass_time(1)
        await asyncio.to_thread(kafka.start)
        await usable(kafka)
        async with world.load():
            await world.fleet.pass_time(3)
    refused = [seat.kafka.counts["unreachable"] for seat in world.seats]
    return await conclude(
        world, tested("connections of each worker to nobody", min(refused), 2)
    )


# ---- the operator ----


async def replayed(world: World) -> list[Verdict]:
    """Set the group back to 0: nothing is written, nothing is bought."""
    await world.start_all()
    async with world.load():
        await world.fleet.pass_time(6)
    await settle(world)
    await world.stop_all()
    paid, before = world.paid(), await world.witness.operations()
    await world.rewind()
    assigned = world.logged("assigned")
    await world.start_all()
    verdicts = await conclude(world)
    operations = await world.witness.operations() - before
    changed = {name: count for name, count in operations.items() if _is_content(name)}
    return [
        *verdicts,
        Verdict("0 rows change", f"{changed or 0}", not changed),
        Verdict("0 texts are embedded", f"{world.paid() - paid}", world.paid() == paid),
        tested("records read again", sum((await world.fleet.ends()).values()), 100),
        tested("assignments after it", world.logged("assigned") - assigned, 1),
    ]


def _is_content(name: str) -> bool:
    return name.partition(" ")[0] in ("document", "chunk")


async def partitions_added(world: World) -> list[Verdict]:
    """Twelve partitions become sixteen under running workers."""
    await world.start_all()
    async with world.load():
        await world.fleet.pass_time(2)
        async with topics(world.kafka.bootstrap_servers) as made:
            await made.admin.create_partitions({world.fleet.topic: NewPartitions(16)})
        await world.publisher.spread(16)
        await world.fleet.producer.client.force_metadata_update()
        await world.fleet.pass_time(4)
    # The members look for new partitions once a minute.
    verdicts = await conclude(world, seconds=120)
    used = sum(end > 0 for end in (await world.fleet.ends()).values())
    return [*verdicts, tested("partitions in use", used, 13)]


async def restored(world: World, server: EmbeddedPostgres, snapshot: Path) -> list[Verdict]:
    """Put the database back to an older backup under running workers."""
    await world.start_all()
    async with world.load():
        await world.fleet.pass_time(4)
        await _off_the_loop(world, partial(server.snapshot, snapshot))
        await world.fleet.connect()
        await world.fleet.pass_time(5)
    await world.converge()
    before = sum((await world.fleet.progress()).values())
    await _off_the_loop(world, partial(server.restore, snapshot))
    await world.fleet.connect()
    lost = before - sum((await world.fleet.progress()).values())

    async def is_filled():
        ends = await world.fleet.ends()
        return await world.fleet.progress() == ends == await world.fleet.committed()

    # A partition on which nothing happens is noticed within a minute.
    async with world.load():
        await world.fleet.pass_time(5)
    await world.fleet.until(is_filled, 180)
    # What was seen before was said by a table that is not there any more.
    world.witness.samples.clear()
    verdicts = await conclude(world)
    return [
        *verdicts,
        tested("offsets that the backup did not know", lost, 50),
        tested("alarms that say so", world.logged("start_alarm"), 1),
    ]


# ---- what cannot be made good is refused ----


async def refused(world: World) -> list[Verdict]:
    """Remove records that were never read; then the topic, and make one of its name."""
    (seat,) = world.seats
    await world.start_all()
    await world.publisher.publish(200)
    await world.converge()
    await world.fleet.stop(seat.worker)
    ends = await world.fleet.ends()
    await world.publisher.publish(200)
    grown = {
        place: end for place, end in (await world.fleet.ends()).items() if end > ends[place]
    }
    async with topics(world.kafka.bootstrap_servers) as made:
        await made.admin.delete_records(
            {place: RecordsToDelete(before_offset=end) for place, end in grown.items()}
        )
        truncated = await _halts(world, len(grown))
        await made.create_again(world.fleet.topic, partitions=PARTITIONS)
    begun = sum(end > 0 for end in ends.values())
    recreated = await _halts(world, begun)
    return [
        Verdict(
            "records that were removed unread halt their partitions, in a clear sentence",
            _one_of(truncated),
            all("records that were never read" in line for line in truncated),
        ),
        Verdict(
            "a topic that was made again halts its partitions, in a clear sentence",
            _one_of(recreated),
            all("the topic was re-created" in line for line in recreated),
        ),
        tested("partitions truncated", len(truncated), len(grown)),
        tested("partitions made again", len(recreated), begun),
    ]


async def _halts(world: World, count: int) -> list[str]:
    """Start a worker, and return why it halts so many partitions."""
    (seat,) = world.seats
    worker = await world.start(seat)
    await worker.logged("partition_halted", count)
    await world.fleet.stop(worker)
    return [
        line["message"] for line in worker.lines() if line.get("action") == "partition_halted"
    ]


def _one_of(lines: list[str]) -> str:
    return f"{len(lines)}x, such as: {lines[0]}"
