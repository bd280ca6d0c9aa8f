"""
Fleets under unusual circumstances, which a deployment may have for good or by mistake.

Two topics that feed one collection, two groups that write it, clocks that are wrong, strangers
in the group.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from tests.chaos.nemesis import tested
from tests.chaos.oracle import DIMENSIONS
from tests.chaos.outages import FAULT_SECONDS, conclude
from tests.chaos.world import Seat, World
from tests.support import provider
from tests.support.verdicts import Verdict
from worker.adapters.pg_migrations import Migrations

# ---- two topics ----


async def two_topics(world: World) -> list[Verdict]:
    """Publish the versions of every document to two topics, while workers die and come."""
    await world.start_all()
    async with world.load(events_per_second=60):
        for seat in world.seats:
            await world.fleet.pass_time(4)
            await world.fleet.crash(seat.worker)
            await world.fleet.pass_time(2)
            await world.start(seat)
            await world.shared()
    verdicts = await conclude(world)
    moved = await world.fleet.sql.fetchval(_MOVED)
    return [*verdicts, tested("documents whose row came from both topics", moved, 50)]


_MOVED = """
select count(*) from (
    select from audit where kind = 'document'
    group by entry->>'tenant', entry->>'collection', entry->>'id'
    having count(distinct entry->>'order_topic') = 2
) as moved
"""

# ---- two groups ----


async def two_groups(world: World) -> list[Verdict]:
    """Let two fleets, each with a group of its own, write one table; each has a worker die."""
    _, theirs = world.seats
    theirs.group = f"{world.fleet.kafka.group}-two"

    async def are_settled():
        ends = await world.fleet.ends()
        return ends == await world.fleet.committed(theirs.group)

    for seat in world.seats:
        await _runs_all(world, seat)
    async with world.load(events_per_second=60):
        for seat in world.seats:
            await world.fleet.pass_time(4)
            await world.fleet.crash(seat.worker)
            await _runs_all(world, seat)
    await world.fleet.until(are_settled)
    owners = await world.fleet.sql.fetch("select distinct grp from partition_claim")
    return [*await conclude(world), tested("groups that have claimed", len(owners), 2)]


async def _runs_all(world: World, seat: Seat) -> None:
    await world.start(seat)
    await world.shared(seat)


# ---- a clock that jumps ----

CALM_SECONDS = 6.0


async def clocks(world: World) -> list[Verdict]:
    """Let the clocks of workers jump by an hour, also while the provider asks for patience."""
    right = world.fleet.provider.script
    await world.start_all()
    assigned = world.logged("assigned")
    async with world.load():
        await world.fleet.pass_time(CALM_SECONDS)
        world.fleet.provider.script = lambda _: provider.status(429, retry_after=_soon())
        await world.fleet.pass_time(FAULT_SECONDS)
        world.fleet.provider.script = lambda _: provider.status(503, retry_after=_soon())
        await world.fleet.pass_time(FAULT_SECONDS)
        world.fleet.provider.script = right
        await world.fleet.pass_time(CALM_SECONDS)
    rebalances = world.logged("assigned") - assigned
    statuses = world.fleet.provider.statuses
    return [
        *await conclude(world, seconds=10),
        Verdict("0 rebalances", f"{rebalances}", rebalances == 0),
        tested("answers with a date until when to wait", statuses[429] + statuses[503], 10),
        *(
            tested(f"jumps of a clock at {seat.name}", seat.worker.actions()["clock_jumps"], 5)
            for seat in world.seats
        ),
    ]


def _soon() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)


# ---- strangers in the group ----


_WRITTEN = """
select (select count(*) from {schema}.document)
     + (select count(*) from {schema}.partition_claim)
"""


async def strange_table(world: World) -> list[Verdict]:
    """Start a worker with the fleet's group and another schema, whose model is another one."""
    other = replace(world.fleet.database, schema=f"{world.fleet.database.schema}_other")
    await Migrations(other).up()
    stranger = await _refused(
        world, "works for another", EMBEDFLEET_DATABASE_SCHEMA=other.schema
    )
    written = await world.fleet.sql.fetchval(_WRITTEN.format(schema=other.schema))
    return [
        *stranger,
        *await conclude(world),
        Verdict("... and has written nothing", f"{written} rows", written == 0),
    ]


async def strange_dimensions(world: World) -> list[Verdict]:
    """Start a worker of the same group and table, whose provider has another model there."""
    async with provider.Provider(dimensions=2 * DIMENSIONS) as another:
        stranger = await _refused(world, "dimensions", EMBEDFLEET_EMBEDDING_URL=another.url)
        return [*stranger, *await conclude(world)]


async def strange_provider(world: World) -> list[Verdict]:
    """Start a worker of the same group and table, whose provider does not know the model."""
    first, second = world.seats
    unknown = provider.status(404, "there is no such model", code="model_not_found")
    async with provider.Provider(dimensions=DIMENSIONS) as another:
        another.script = lambda _: unknown
        await world.start(first)
        stranger = await world.start(second, EMBEDFLEET_EMBEDDING_URL=another.url)
        await world.shared()
        async with world.load():
            alarm = await stranger.logged("breaker")
            await world.fleet.pass_time(FAULT_SECONDS)
        left = await world.fleet.stop(stranger)
        await world.start(second)
        await world.shared()
    said = f"{alarm['message']}: {alarm['error']}"
    return [
        *await conclude(world),
        Verdict("an alarm says it, in a clear sentence", said, alarm["level"] == "error"),
        Verdict("such a worker can leave", f"exit code {left}", left == 0),
    ]


async def _refused(world: World, why: str, **environment: str) -> list[Verdict]:
    """Let one of two workers be a stranger for as long as it lives, then one of us."""
    first, second = world.seats
    await _runs_all(world, first)
    async with world.load():
        await world.fleet.pass_time(2)
        stranger = await world.start(second, **environment)
        code = await stranger.ended()
        await world.shared(first)
        await world.fleet.pass_time(2)
        await world.start(second)
        await world.shared()
    said = stranger.log_file.read_text().splitlines()[-1]
    return [
        Verdict("a stranger says why it cannot work", said, why in said),
        Verdict("... and ends with 2", f"{code}", code == 2),
    ]
