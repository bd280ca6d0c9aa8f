"""
What a database does to its clients while it runs: no room on its disk, deadlocks.

As in `outages`: the workers have to live through it, and are all there at the end.
"""

import asyncio

import asyncpg

from tests.chaos.nemesis import tested
from tests.chaos.outages import FAULT_SECONDS, conclude
from tests.chaos.world import World
from tests.support.verdicts import Verdict

RECOVERED_SECONDS = 30
"""After the last fault."""
PATIENCE_SECONDS = 300


# ---- a disk that is full ----

# A sequence: what it has counted stays, though the transaction is rolled back.
_DISK = """
create table disk (full_share float8 not null);
insert into disk values (0);
create sequence writes_refused;
create function write_to_disk() returns trigger language plpgsql as $$
begin
    if random() < (select full_share from disk) then
        perform nextval('writes_refused');
        raise exception 'could not extend file "base/5/16384": No space left on device'
        using errcode = '53100';
    end if;
    return new;
end $$;
"""
_TABLES = """
select quote_ident(tablename) as name from pg_tables
where schemaname = current_schema and tablename not in ('audit', 'disk')
"""
_ON_DISK = """
create trigger disk before insert or update on {table}
for each row execute function write_to_disk()
"""


async def disk_full(world: World) -> list[Verdict]:
    """Let all writes, then half of them fail with 53100; a worker is replaced meanwhile."""
    sql = world.fleet.sql
    await sql.execute(_DISK)
    for row in await sql.fetch(_TABLES):
        await sql.execute(_ON_DISK.format(table=row["name"]))
    await world.start_all()
    async with world.load():
        await world.fleet.pass_time(2)
        await sql.execute("update disk set full_share = 1")
        await world.fleet.pass_time(FAULT_SECONDS)
        replaced = await world.fleet.stop(world.seats[0].worker)
        await world.start(world.seats[0])
        await world.fleet.pass_time(FAULT_SECONDS)
        await sql.execute("update disk set full_share = 0.5")
        await world.fleet.pass_time(2 * FAULT_SECONDS)
    await sql.execute("update disk set full_share = 0")
    verdicts = await conclude(world, seconds=RECOVERED_SECONDS)
    refused = await sql.fetchval("select last_value from writes_refused")
    return [
        *verdicts,
        Verdict("a worker can leave meanwhile", f"exit code {replaced}", replaced == 0),
        tested("writes refused", refused, 100),
    ]


# ---- deadlocks ----

_DEADLOCKS = """
select deadlocks from pg_stat_database where datname = current_database()
"""
_HOT = "select tenant, collection, id from document order by revision desc limit 30"
_LOCK = "select from document where tenant = $1 and collection = $2 and id = $3 for update"
# Who waits looks for a deadlock once, after that time. Ours never does, and closes the circle
# before a worker looks: so it is always a worker's transaction that is ended.
_NEVER = "set deadlock_timeout = '10min'"


async def deadlocks(world: World, least: int) -> list[Verdict]:
    """Lock rows of documents against the order of the workers, again and again."""
    sql = world.fleet.sql
    await sql.execute("alter system set deadlock_timeout = '300ms'")
    await sql.execute("select pg_reload_conf()")
    try:
        # One transaction at a time, so that it writes many documents.
        await world.start_all(EMBEDFLEET_INGEST_STORE_SLOTS="1")
        before = await sql.fetchval(_DEADLOCKS)
        rival = await world.fleet.session()
        await rival.execute(_NEVER)
        async with world.load(events_per_second=80), asyncio.timeout(PATIENCE_SECONDS):
            while (found := await sql.fetchval(_DEADLOCKS) - before) < least:
                await _lock_against_the_order(world, rival)
        await rival.close()
        verdicts = await conclude(world, seconds=RECOVERED_SECONDS)
    finally:
        await sql.execute("alter system reset deadlock_timeout")
        await sql.execute("select pg_reload_conf()")
    return [*verdicts, tested("deadlocks", found, least)]


async def _lock_against_the_order(world: World, rival: asyncpg.Connection) -> None:
    """A worker that writes to both halves gets the lower one, and waits for the upper one."""
    hot = sorted(map(tuple, await rival.fetch(_HOT)), reverse=True)
    middle = len(hot) // 2
    async with rival.transaction():
        await rival.executemany(_LOCK, hot[:middle])
        await world.fleet.pass_time(0.15)
        await rival.executemany(_LOCK, hot[middle:])
