"""
Partitions that move between workers while something hinders it.

Claims that are held up by a job of our own, works that are still on their way when their
partition leaves and comes back, claims that arrive when the partition is somebody else's.
"""

import asyncio
import signal
from collections import defaultdict
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from time import monotonic

import asyncpg

from tests.chaos.nemesis import leave, settle, tested
from tests.chaos.outages import conclude
from tests.chaos.world import SESSION_SECONDS, World
from tests.support.verdicts import Verdict
from worker.adapters.pg_client import APPLICATION_NAME

TAKEN_OVER_SECONDS = SESSION_SECONDS + 5
METRICS = {"OTEL_SDK_DISABLED": "false"}

# ---- a job that holds the claims, and does not go on ----

_LIMITS = "set statement_timeout = '1s'; set idle_in_transaction_session_timeout = '1s'"
_SHARE = """
select from partition_claim where grp = $1 order by grp, topic, partition for share
"""
_COPIES = "select count(*) from pg_stat_progress_copy where pid = $1"


async def _stop_sending():
    await asyncio.Event().wait()
    yield b""


@asynccontextmanager
async def _stuck_in_a_copy(world: World):
    """A job of the workers' role that holds all claims and copies rows, of which none comes."""
    job = await asyncpg.connect(
        world.fleet.database.url,
        server_settings={
            "application_name": APPLICATION_NAME,
            "search_path": f"{world.fleet.database.schema}, public",
        },
    )
    pid = job.get_server_pid()

    async def copy() -> None:
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await job.execute(_LIMITS)
            async with job.transaction():
                await job.execute("create temp table copied (text text)")
                await job.execute(_SHARE, world.fleet.kafka.group)
                await job.copy_to_table("copied", source=_stop_sending())

    async def is_copying():
        return await world.fleet.sql.fetchval(_COPIES, pid)

    async with asyncio.TaskGroup() as tasks:
        copying = tasks.create_task(copy())
        try:
            await world.fleet.until(is_copying)
            yield is_copying
        finally:
            copying.cancel()
            job.terminate()


async def stuck_copies(world: World, rounds: int) -> list[Verdict]:
    """
    Freeze a worker in a transaction while a job stands in a COPY with locks on all claims.

    No limit of the server ends such a job, so whoever takes over has to.
    """
    takeovers: list[float] = []
    outlived = ended = 0
    await world.start_all(**METRICS)
    async with world.load():
        for number in range(rounds):
            frozen, other = world.seats[number % 2], world.seats[(number + 1) % 2]
            await world.fleet.stop(frozen.worker)
            await world.start(frozen, "in_transaction:stop:#5", **METRICS)
            await frozen.worker.logged("failpoint")
            began = monotonic()
            async with _stuck_in_a_copy(world) as is_copying:
                await world.fleet.pass_time(SESSION_SECONDS / 2)
                outlived += bool(await is_copying())
                await world.shared(other)
                takeovers.append(monotonic() - began)
                ended += not await is_copying()
            frozen.worker.signal(signal.SIGCONT)
            await world.shared()
    converged = await settle(world)
    said = sum(
        "held up a claim" in line.get("message", "")
        for worker in world.fleet.workers
        for line in worker.lines()
    )
    left = await leave(world)
    return [
        *await world.judge(),
        converged,
        left,
        Verdict(
            f"the other has taken over <= {TAKEN_OVER_SECONDS:g} s after the freeze",
            ", ".join(f"{seconds:.1f} s" for seconds in takeovers),
            all(seconds <= TAKEN_OVER_SECONDS for seconds in takeovers),
        ),
        tested("jobs that have outlived all limits of the server", outlived, rounds),
        tested("jobs ended by a claim", ended, rounds),
        tested("times that a worker says so", said, rounds),
    ]


# ---- away and back ----

_CLAIMS = """
select entry->>'topic' as topic, entry->>'partition' as partition, port from audit
where kind = 'partition_claim' and op = 'UPDATE' order by seq
"""
_LATE_SHARE, _LATE_SECONDS = 0.4, (1.5, 2.7)


async def away_and_back(world: World, rounds: int) -> list[Verdict]:
    """Let partitions move to a second worker and back while answers are slow to come."""
    first, second = world.seats
    world.late = lambda: (
        world.chance.uniform(*_LATE_SECONDS) if world.chance.random() < _LATE_SHARE else 0.0
    )
    await world.start(first, **METRICS)
    await world.shared(first)
    async with world.load():
        for _ in range(rounds):
            await world.start(second, **METRICS)
            await world.shared()
            await world.fleet.pass_time(1)
            await world.fleet.stop(second.worker)
            await world.shared(first)
        await world.start(second, **METRICS)
        await world.shared()
        # What it holds is away before it wakes, and back a moment later.
        first.worker.signal(signal.SIGSTOP)
        await world.shared(second)
        first.worker.signal(signal.SIGCONT)
        await world.shared()
    converged = await settle(world)
    released = (await first.worker.state())["outcomes"].get("released", 0)
    fenced = await world.fenced()
    left = await leave(world)
    return [
        *await world.judge(),
        converged,
        left,
        tested("moves of a partition away and back", await _returns(world), 5 * rounds),
        tested("works released", released, rounds),
        Verdict("writes fenced", f"{fenced}", held=True),
    ]


async def _returns(world: World) -> int:
    """How often a partition was claimed by one, then by another, then by the one again."""
    seats = {port: seat.name for seat in world.seats for port in seat.postgres.ports}
    owners: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in await world.fleet.sql.fetch(_CLAIMS):
        owners[row["topic"], row["partition"]].append(seats[row["port"]])
    turns = [[owner for owner, _ in groupby(places)] for places in owners.values()]
    return sum(max(0, len(turn) - 2) for turn in turns)


# ---- claims that come too late ----

_HELD_UP_SECONDS = 3.5
_HELD_UP = f"before_claim:delay={_HELD_UP_SECONDS}:0.8,after_claim:delay={_HELD_UP_SECONDS}:0.3"


async def late_claims(world: World, rounds: int) -> list[Verdict]:
    """
    Hold claims up until the group has given their partitions to others.

    The rightful owner finds itself fenced, and has to claim again.
    """
    calm, held_up, coming = world.seats
    await world.start(calm, **METRICS)
    await world.start(held_up, _HELD_UP, **METRICS)
    async with world.load():
        for _ in range(rounds):
            await world.start(coming, _HELD_UP, **METRICS)
            await coming.worker.logged("assigned")
            await world.fleet.pass_time(world.chance.uniform(0.2, 1))
            await world.fleet.stop(coming.worker)
            # Now the claims arrive that were held up in the assignment before.
            await world.fleet.pass_time(_HELD_UP_SECONDS)
        await world.start(coming, **METRICS)
        await world.shared()
    reclaimed, held = world.logged("reclaim"), world.failpoints()
    return [
        *await conclude(world),
        tested("claims held up before", held["before_claim"], 5 * rounds),
        tested("claims held up after", held["after_claim"], rounds),
        tested("partitions claimed again by their owner", reclaimed, rounds),
    ]
