"""
Mixed faults for long: a random subset of them, none included, another one every 5 to 15 s.

The first worker is spared what ends or stops processes, so that something can be told of one
that lives through all of it: whether its memory grows, and whether it lets go of everything.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from time import monotonic

import numpy as np

from tests.chaos.nemesis import leave, settle, tested
from tests.chaos.outages import NETWORK, kill_backends, locked, read_only
from tests.chaos.timed import TASKS
from tests.chaos.world import Seat, World
from tests.support import provider
from tests.support.kafka_own import frozen
from tests.support.verdicts import Verdict
from tests.support.worker_process import WorkerProcess

PERIOD_SECONDS = (5.0, 15.0)
MOST_AT_ONCE = 3
SECONDS_A_BLAME = 200
IDLE_SECONDS = 2.0
BACK_TO_BASE_SECONDS = 120
GROWTH_BYTES = 1024 * 1024 / 600
"""A second."""
JUDGED_SECONDS = 1800
"""In less a heap that fills for the first time looks like one that grows."""

Fault = Callable[[World, Seat], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def killed(world: World, seat: Seat):
    await world.fleet.crash(seat.worker)
    yield
    await world.start(seat)


@asynccontextmanager
async def restarted(world: World, seat: Seat):
    await world.fleet.stop(seat.worker)
    await world.start(seat)
    yield


@asynccontextmanager
async def stopped(_: World, seat: Seat):
    seat.worker.signal(signal.SIGSTOP)
    yield
    seat.worker.signal(signal.SIGCONT)


@asynccontextmanager
async def cut_off(world: World, _: Seat):
    """One fault of the network, on one link of anybody."""
    link = world.chance.choice([link for seat in world.seats for link in seat.links.values()])
    await world.chance.choice([*NETWORK.values()])(link)
    yield
    await link.heal()


@asynccontextmanager
async def provider_away(world: World, _: Seat):
    before, world.fleet.provider.script = (
        world.fleet.provider.script,
        lambda _: provider.status(503),
    )
    yield
    world.fleet.provider.script = before


@asynccontextmanager
async def backends_ended(world: World, _: Seat):
    for _ in range(5):
        await kill_backends(world)
    yield


@asynccontextmanager
async def rows_locked(world: World, _: Seat):
    async with locked(world):
        yield


@asynccontextmanager
async def database_read_only(world: World, _: Seat):
    async with read_only(world):
        yield


@asynccontextmanager
async def broker_frozen(world: World, _: Seat):
    with frozen(world.kafka):
        yield


OF_PROCESSES = (killed, restarted, stopped)
FAULTS: tuple[Fault, ...] = (
    *OF_PROCESSES,
    cut_off,
    provider_away,
    backends_ended,
    rows_locked,
    database_read_only,
    broker_frozen,
)


async def soak(world: World, seconds: float) -> list[Verdict]:
    """Rotate random faults for so long, and see what is left of them."""
    world.fleet.environment["EMBEDFLEET_DATABASE_POOL_INACTIVE_SECONDS"] = f"{IDLE_SECONDS}"
    await world.start_all()
    spared = world.seats[0].worker
    async with world.load():
        await world.fleet.pass_time(PERIOD_SECONDS[0])
        # The producer of letters comes with the first one, and stays.
        await spared.logged("dead_lettered")
    await world.converge()
    await world.fleet.pass_time(2 * IDLE_SECONDS)
    base = await held(world, spared)
    counts: Counter[str] = Counter()
    memory: list[tuple[float, int]] = []
    until = monotonic() + seconds
    async with world.load(events_per_second=20):
        while monotonic() < until:
            counts += await _period(world)
            memory.append((monotonic(), spared.resident_bytes))
    converged = await settle(world, 2 * PERIOD_SECONDS[1] + 60)
    await world.shared(timeout_seconds=120)
    after = await _back_to(world, spared, base)
    is_alive = spared.process.returncode is None
    left = await leave(world)
    return [
        *await world.judge(blames=int(seconds / SECONDS_A_BLAME)),
        converged,
        left,
        Verdict("a worker that nobody kills lives through it", f"{is_alive}", is_alive),
        Verdict(
            "it lets go of everything: open files, tasks, the fleet's sessions",
            f"{after}, before {base}",
            all(after[name] <= base[name] for name in base),
        ),
        _growth(memory, seconds),
        Verdict("what was done", f"{dict(counts)}", held=True),
        tested("periods", counts["periods"], int(seconds / (PERIOD_SECONDS[1] + 5))),
        tested("kinds of faults", len(counts) - 1, min(len(FAULTS), int(seconds / 30))),
    ]


async def _period(world: World) -> Counter[str]:
    """Cause some faults at once, for a while; a process is hit by one at most."""
    chance = world.chance
    faults = chance.sample(FAULTS, chance.randint(0, MOST_AT_ONCE))
    if {rows_locked, database_read_only} <= {*faults}:
        faults.remove(rows_locked)  # which cannot be done to a database that is read only
    seats = iter(chance.sample(world.seats[1:], len(world.seats) - 1))
    async with AsyncExitStack() as stack:
        for fault in faults:
            seat = next(seats) if fault in OF_PROCESSES else world.seats[0]
            await stack.enter_async_context(fault(world, seat))
        await world.fleet.pass_time(chance.uniform(*PERIOD_SECONDS))
    return Counter({fault.__name__: 1 for fault in faults} | {"periods": 1})


async def held(world: World, worker: WorkerProcess) -> dict[str, int]:
    """What a worker has open now, and how many sessions all of them have."""
    sessions = await world.fleet.sql.fetchval(
        "select count(*) from pg_stat_activity where application_name = 'embedfleet'"
    )
    return {
        "files": worker.open_files,
        "tasks": (await worker.state())[TASKS],
        "sessions": sessions,
    }


async def _back_to(world: World, worker: WorkerProcess, base: dict[str, int]) -> dict[str, int]:
    """Wait until no more is held than before; what is held at the end of patience."""
    after = await held(world, worker)
    try:
        async with asyncio.timeout(BACK_TO_BASE_SECONDS):
            while any(after[name] > base[name] for name in base):
                await world.fleet.pass_time(1)
                after = await held(world, worker)
    except TimeoutError:
        pass
    return after


def _growth(memory: list[tuple[float, int]], seconds: float) -> Verdict:
    """Judge the slope of the memory, without the first third, in which all is new."""
    times, sizes = np.array(memory[len(memory) // 3 :], dtype=float).T
    slope = np.polyfit(times - times[0], sizes, 1)[0]
    measured = (
        f"{slope * 600 / 1024 / 1024:+.1f} MiB in 10 minutes, {sizes[-1] / 2**20:.0f} MiB"
    )
    if seconds < JUDGED_SECONDS:
        return Verdict("how its memory grows (too short to judge)", measured, held=True)
    return Verdict("its memory grows <= 1 MiB in 10 minutes", measured, slope <= GROWTH_BYTES)
