"""
What is done to a fleet, and what must have come of it: one function a scenario.

Each takes a `World`, hurts it while documents keep coming, heals it, waits until all is done,
and returns verdicts: the oracle's, the scenario's own, and whether it has caused enough of its
faults to have tested anything.
"""

import asyncio
import signal
from collections import Counter
from datetime import UTC, datetime
from itertools import count
from time import monotonic

from tests.chaos.bill import Killed, bought_again, left_behind, taken_along
from tests.chaos.world import SESSION_SECONDS, Seat, World
from tests.support.verdicts import Verdict

# Where a kill hits, and at which passages of that place. Not at the first ones, where a place
# is passed again and again: what a process takes first is what the one before it had died
# with, and a record that is there at every death is what workers die of.
KILLS = {
    "after_answer": (4, 20),
    "in_transaction": (4, 20),
    "after_commit": (4, 20),
    "before_kafka_commit": (2, 6),
    "in_rebalance": (1, 1),
    "after_claim": (1, 4),
    "in_dead_letter": (1, 2),
    "after_dead_letter": (1, 2),
}
OFTEN = ("after_answer", "in_transaction", "after_commit", "before_kafka_commit")
"""Where every process comes to, and comes to soon."""
KILLS_A_BLAME = 25
"""It takes four deaths of workers that were alone with a record; so many are seldom enough."""
CONVERGED_SECONDS = 60
"""After the last fault."""
_LIFE_SECONDS = (3.0, 8.0)
"""A process that has not come to its failpoint by then is killed where it stands."""


def tested(what: str, measured: int, least: int) -> Verdict:
    """A run that caused too few of its faults has shown nothing."""
    return Verdict(f"tested: >= {least} {what}", f"{measured}", measured >= least)


async def settle(world: World, seconds: float = CONVERGED_SECONDS) -> Verdict:
    took = await world.converge(timeout_seconds=3 * seconds)
    claim = f"everything is done <= {seconds:g} s after the last fault"
    return Verdict(claim, f"{took:.1f} s", took <= seconds)


async def leave(world: World) -> Verdict:
    codes = await world.stop_all()
    return Verdict("SIGTERM ends every worker with 0", f"{codes}", not any(codes))


# ---- kill -9 ----


async def kill_storm(
    world: World, kills: int, patience_seconds: float = CONVERGED_SECONDS
) -> list[Verdict]:
    """Kill workers at failpoints in turn, and wherever they stand where none comes."""
    turns = count()
    hits: Counter[str] = Counter()
    killed: list[Killed] = []

    def next_point() -> str:
        """Each in its turn, but every other time the one that was hit least."""
        turn = next(turns)
        in_turn = [*KILLS][turn // 2 % len(KILLS)]
        return min(KILLS, key=lambda point: hits[point]) if turn % 2 else in_turn

    async def haunt(seat: Seat) -> None:
        while hits.total() < kills:
            point = next_point()
            number = world.chance.randint(*KILLS[point])
            worker = await world.start(seat, f"{point}:kill:#{number}")
            await _first_of(
                worker.logged("assigned", timeout_seconds=120), worker.process.wait()
            )
            life = world.chance.uniform(*_LIFE_SECONDS)
            try:
                await worker.ended(timeout_seconds=life)
                hits[point] += 1
            except TimeoutError:
                await world.fleet.crash(worker)
                hits["anywhere"] += 1
            killed.append((worker, datetime.now(UTC)))
            assert worker.process.returncode == -signal.SIGKILL, worker.log_file.read_text()

    async with world.load(events_per_second=15), asyncio.TaskGroup() as tasks:
        for seat in world.seats:
            tasks.create_task(haunt(seat))
    for seat in world.seats:
        await world.start(seat)
    converged = await settle(world, patience_seconds)
    left = await leave(world)
    often = max(1, kills // (4 * len(KILLS)))
    return [
        *await world.judge(blames=kills // KILLS_A_BLAME),
        converged,
        left,
        _paid_twice(world, killed),
        tested("kills", hits.total(), kills),
        *(
            tested(f"kills at {point}", hits[point], often if point in OFTEN else 1)
            for point in KILLS
        ),
        Verdict("where the kills hit", f"{dict(hits)}", held=True),
        tested("rebalances", world.logged("assigned"), kills // 2),
    ]


def _paid_twice(world: World, killed: list[Killed]) -> Verdict:
    """Nothing is bought again but once for each loss: by a kill, or by the end of a drain."""
    again, lost = bought_again(world), taken_along(world, killed)
    by_kills = again & lost
    by_drains = (again - by_kills) & left_behind(world)
    others = again - by_kills - by_drains
    return Verdict(
        "what was bought again was in flight when its worker was killed, or outlasted a drain",
        f"{by_kills.total()} texts of {lost.total()} in flight, and {by_drains.total()}; "
        f"{others.total()} others: {sorted(others)[:2]}",
        not others,
    )


async def _first_of(*coroutines) -> None:
    """Wait for the first of some; the others are given up."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]  # noqa: TID251
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # noqa: TID251


# ---- a COMMIT whose answer never comes ----


async def unknown_commits(
    world: World, cuts: int, share: float = 0.3, patience_seconds: float = 30
) -> list[Verdict]:
    """Cut the connection after a COMMIT is done and before the only worker hears of it."""
    (seat,) = world.seats
    await world.start_all()
    assigned = world.logged("assigned")
    link = seat.postgres
    link.faults.cut_commit = lambda: world.chance.random() < share

    async def are_cut() -> bool:
        return link.counts["commits_cut"] >= cuts

    async with world.load(events_per_second=80):
        await world.fleet.until(are_cut, timeout_seconds=3 * cuts)
    await link.heal()
    converged = await settle(world, patience_seconds)
    rebalances = world.logged("assigned") - assigned
    left = await leave(world)
    judged = await world.judge()
    again = bought_again(world)
    return [
        *judged,
        converged,
        left,
        Verdict("0 rebalances", f"{rebalances}", rebalances == 0),
        Verdict(
            "the worker does not crash",
            f"{len(seat.processes)} process",
            len(seat.processes) == 1,
        ),
        Verdict("nothing is bought twice", f"{again.total()}", not again),
        tested("COMMITs cut", link.counts["commits_cut"], cuts),
    ]


# ---- frozen ----


async def freezes(world: World, rounds: int) -> list[Verdict]:
    """
    Freeze half of the workers inside a transaction, for two sessions, and thaw them.

    Thawed, they find the rows taken by others and their connections ended.
    """
    hit: list[str] = []
    takeovers: list[float] = []
    await world.start_all(OTEL_SDK_DISABLED="false")
    async with world.load():
        for number in range(rounds):
            frozen = [world.seats[number % 2], world.seats[2 + number % 2]]
            for seat, point in zip(frozen, ("in_transaction", "after_answer"), strict=True):
                await world.fleet.stop(seat.worker)
                await world.start(seat, f"{point}:stop:#5", OTEL_SDK_DISABLED="false")
            lines = [await seat.worker.logged("failpoint") for seat in frozen]
            hit += [line["name"] for line in lines]
            began = monotonic()
            await world.shared(*(seat for seat in world.seats if seat not in frozen))
            takeovers.append(monotonic() - began)
            await world.fleet.pass_time(2 * SESSION_SECONDS - takeovers[-1])
            for seat in frozen:
                seat.worker.signal(signal.SIGCONT)
            await world.shared()
    converged = await settle(world)
    fenced = await world.fenced()
    rejoined = all(seat.worker.process.returncode is None for seat in world.seats)
    left = await leave(world)
    limit = SESSION_SECONDS + 5
    return [
        *await world.judge(),
        converged,
        left,
        Verdict("a thawed worker rejoins by itself", f"{rejoined}", rejoined),
        Verdict(
            f"others have taken over <= {limit:g} s after the freeze",
            ", ".join(f"{seconds:.1f} s" for seconds in takeovers),
            all(seconds <= limit for seconds in takeovers),
        ),
        tested("freezes inside a transaction", hit.count("in_transaction"), rounds),
        tested("freezes after an answer", hit.count("after_answer"), rounds),
        tested("fenced writes", fenced, 1),
    ]


# ---- restarted in order ----


async def rolling_restarts(world: World, rounds: int) -> list[Verdict]:
    """Restart every worker in turn, while documents keep coming: nothing is paid twice."""
    codes: list[int] = []
    await world.start_all()
    async with world.load():
        for _ in range(rounds):
            for seat in world.seats:
                codes.append(await world.fleet.stop(seat.worker))
                await world.start(seat)
                await world.shared()
    converged = await settle(world)
    left = await leave(world)
    judged = await world.judge()
    again = bought_again(world)
    return [
        *judged,
        converged,
        left,
        Verdict("every one of them ends with 0", f"{Counter(codes)}", not any(codes)),
        Verdict("nothing is bought twice", f"{again.total()}", not again),
        tested("restarts", len(codes), rounds * len(world.seats)),
    ]
