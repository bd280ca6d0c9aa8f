"""One of each fault that a worker may suffer, under the timers that users have."""

import signal
from collections import Counter
from dataclasses import fields
from time import monotonic

from tests.chaos.bill import bought_again
from tests.chaos.nemesis import leave, settle, tested
from tests.chaos.world import Seat, World
from tests.support.verdicts import Verdict
from worker.config import DatabaseOptions, EmbeddingOptions, KafkaOptions

SECTIONS = {"KAFKA": KafkaOptions, "DATABASE": DatabaseOptions, "EMBEDDING": EmbeddingOptions}
TIMERS = {
    f"EMBEDFLEET_{section}_{option.name.upper()}": str(option.default)
    for section, options in SECTIONS.items()
    for option in fields(options)
    if option.name.endswith("_seconds")
}
"""Every time of the three, as it is where nobody sets it."""
SESSION_SECONDS = KafkaOptions().session_seconds
DRAIN_SECONDS = KafkaOptions().drain_seconds
SLACK_SECONDS = 5.0
PATIENCE_SECONDS = 3 * SESSION_SECONDS


async def production(world: World) -> list[Verdict]:
    """Kill a worker, freeze another beyond its session, and restart all in order."""
    first, second, *_ = world.seats
    await world.start_all()
    async with world.load(events_per_second=20):
        killed = await _taken_over(world, first, signal.SIGKILL)
        await world.start(first)
        await world.shared(timeout_seconds=PATIENCE_SECONDS)
        frozen = await _taken_over(world, second, signal.SIGSTOP)
        second.worker.signal(signal.SIGCONT)
        await world.shared(timeout_seconds=PATIENCE_SECONDS)
        before = Counter(world.fleet.provider.embedded)
        drains = [await _restarted(world, seat) for seat in world.seats]
    converged = await settle(world)
    left = await leave(world)
    judged = await world.judge()
    embedded = world.fleet.provider.embedded
    again = {text for text in bought_again(world) if embedded[text] > max(1, before[text])}
    limit = SESSION_SECONDS + SLACK_SECONDS
    return [
        *judged,
        converged,
        left,
        Verdict(
            f"others have taken over <= {limit:g} s after a kill and after a freeze",
            f"{killed:.1f} s, {frozen:.1f} s",
            max(killed, frozen) <= limit,
        ),
        Verdict(
            f"a worker that is to stop ends <= {DRAIN_SECONDS + SLACK_SECONDS:g} s later",
            ", ".join(f"{seconds:.1f} s" for seconds in drains),
            max(drains) <= DRAIN_SECONDS + SLACK_SECONDS,
        ),
        Verdict("restarts buy nothing twice", f"{len(again)}", not again),
        tested("restarts", len(drains), len(world.seats)),
    ]


async def _taken_over(world: World, seat: Seat, number: signal.Signals) -> float:
    """Hit a worker, and wait until the others run all that it had; how long that took."""
    others = [other for other in world.seats if other is not seat]
    seat.worker.signal(number)
    began = monotonic()
    await world.shared(*others, timeout_seconds=PATIENCE_SECONDS)
    return monotonic() - began


async def _restarted(world: World, seat: Seat) -> float:
    """Restart a worker in order; how long its end took."""
    began = monotonic()
    code = await world.fleet.stop(seat.worker)
    assert code == 0, seat.worker.log_file.read_text()
    took = monotonic() - began
    await world.start(seat)
    await world.shared(timeout_seconds=PATIENCE_SECONDS)
    return took
