"""Migrations: once each, whole, by several workers at once, readable by people."""

import asyncio
import re
from dataclasses import replace
from importlib.resources import files

import asyncpg
import pytest

from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.adapters.pg_migrations import Migration, Migrations, read_migrations
from worker.errors import ConfigError, PermanentError, StoreUnavailable

pytestmark = pytest.mark.real


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


@pytest.fixture
async def plain(database):
    """A connection that knows nothing of the adapters."""
    settings = {"search_path": database.schema}
    connection = await asyncpg.connect(database.url, server_settings=settings)
    yield connection
    await connection.close()


def migration(version: str, up: str, *, in_transaction: bool = True) -> Migration:
    return Migration(version, "name", up, "", in_transaction)


VERSIONS = [found.version for found in read_migrations()]
_WAITS_FOR_LONG = """
select exists (
    select from pg_stat_clear_snapshot(), pg_stat_activity
    where wait_event = 'virtualxid' and clock_timestamp() - query_start > interval '0.2 s'
)
"""


async def test_the_schema_is_made_and_migrated_once(database) -> None:
    migrations = Migrations(database)
    assert [row[2] for row in await migrations.status()] == [False] * len(VERSIONS)
    assert await migrations.up() == VERSIONS
    assert await migrations.up() == []
    assert [row[2] for row in await migrations.status()] == [True] * len(VERSIONS)


async def test_asking_for_the_status_changes_nothing(database, plain) -> None:
    await Migrations(database).status()
    exists = "select exists (select from pg_namespace where nspname = $1)"
    assert not await plain.fetchval(exists, database.schema)


async def test_several_workers_may_migrate_at_once(database, plain) -> None:
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(Migrations(database).up()) for _ in range(5)]
    assert sorted(task.result() for task in running) == [[]] * 4 + [VERSIONS]
    rows = await plain.fetch("select version from schema_migrations order by 1")
    assert [row[0] for row in rows] == VERSIONS


async def test_others_migrations_are_waited_for_longer_than_for_a_lock(database, plain) -> None:
    """The lock of the migrations has no limit; the statements of a migration have."""
    impatient = replace(database, lock_timeout_seconds=0.05)
    waiting = "select exists (select from pg_locks where locktype = 'advisory' and not granted)"
    slow = migration("1", "select pg_sleep(0.5)")
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(Migrations(impatient, [slow]).up())
        second = tasks.create_task(Migrations(impatient, [slow]).up())
        while not await plain.fetchval(waiting):
            assert not first.done()
    assert sorted([first.result(), second.result()]) == [[], ["1"]]


async def test_a_migration_that_fails_leaves_nothing(database, plain) -> None:
    good = migration("1", "create table one ()")
    bad = migration("2", "create table two (); select 1 / 0")
    with pytest.raises(PermanentError):
        await Migrations(database, [good, bad]).up()
    assert await plain.fetchval("select to_regclass('one') is not null")
    assert await plain.fetchval("select to_regclass('two') is null")
    mended = migration("2", "create table two ()")
    assert await Migrations(database, [good, mended]).up() == ["2"]


async def test_a_migration_does_not_wait_behind_a_long_transaction_for_ever(
    database, plain
) -> None:
    options = replace(database, lock_timeout_seconds=0.1)
    first = migration("1", "create table one ()")
    await Migrations(options, [first]).up()
    async with plain.transaction():
        await plain.execute("lock table one")
        with pytest.raises(StoreUnavailable, match="55P03"):
            await Migrations(options, [first, migration("2", "drop table one")]).up()


async def test_a_migration_may_say_that_it_takes_no_transaction(database, plain) -> None:
    table = migration("1", "create table one (n int)")
    index = migration("2", "create index concurrently on one (n)", in_transaction=False)
    assert await Migrations(database, [table, index]).up() == ["1", "2"]


async def test_what_takes_no_transaction_waits_for_those_of_others(database, plain) -> None:
    table = migration("1", "create table one (n int)")
    index = migration("2", "create index concurrently on one (n)", in_transaction=False)
    await Migrations(database, [table]).up()
    impatient = Migrations(replace(database, lock_timeout_seconds=0.05), [table, index])
    async with asyncio.TaskGroup() as tasks, plain.transaction(isolation="repeatable_read"):
        await plain.execute("select count(*) from pg_class")
        applying = tasks.create_task(impatient.up())
        while not await plain.fetchval(_WAITS_FOR_LONG):
            assert not applying.done()
    assert await applying == ["2"]


async def test_going_down_leaves_nothing_but_the_list(world: PostgresWorld) -> None:
    async with world.database.connection() as connection:
        for found in reversed(read_migrations()):
            await connection.execute(found.down)
    left = await world.fetch(
        "select relname from pg_class where relnamespace = $1::text::regnamespace"
        " and relkind in ('r', 'v')",
        world.database.options.schema,
    )
    assert [row["relname"] for row in left] == ["schema_migrations"]


async def test_tables_of_before_become_like_new_ones(world: PostgresWorld) -> None:
    described = (
        "select reloptions, array(select attstorage from pg_attribute"
        " where attrelid = 'chunk_1_1'::regclass and attnum > 0 order by attnum) storage"
        " from pg_class where oid = 'chunk_1_1'::regclass"
    )
    (new,) = await world.fetch(described)
    found = next(one for one in read_migrations() if one.name == "keys_in_the_row")
    async with world.database.connection() as connection:
        await connection.execute(found.down)
        (old,) = await world.fetch(described)
        assert old != new
        await connection.execute(found.up)
    assert await world.fetch(described) == [new]


async def test_a_table_of_chunks_that_is_gone_holds_no_migration_up(
    world: PostgresWorld,
) -> None:
    await world.fetch("drop table chunk_1_1 cascade")
    found = next(one for one in read_migrations() if one.name == "keys_in_the_row")
    async with world.database.connection() as connection:
        await connection.execute(found.up)


async def test_every_table_view_and_column_is_explained(world: PostgresWorld) -> None:
    rows = await world.fetch(
        "select c.relname, a.attname from pg_class c"
        " join pg_attribute a on a.attrelid = c.oid and a.attnum >= 0 and not a.attisdropped"
        " where c.relnamespace = $1::text::regnamespace and c.relkind in ('r', 'v')"
        " and c.relname <> 'schema_migrations'"
        " and (col_description(c.oid, a.attnum) is null"
        "      or obj_description(c.oid, 'pg_class') is null)",
        world.database.options.schema,
    )
    assert [tuple(row) for row in rows] == []


async def test_names_are_compared_as_the_workers_compare_them(world: PostgresWorld) -> None:
    """Whatever the database's collation is, the order of keys and topics is Python's."""
    rows = await world.fetch(
        "select c.relname, a.attname, o.collname from pg_class c"
        " join pg_attribute a on a.attrelid = c.oid and a.attnum > 0"
        " join pg_collation o on o.oid = a.attcollation"
        " where c.relnamespace = $1::text::regnamespace and c.relkind = 'r' and a.attname in"
        " ('tenant', 'collection', 'id', 'grp', 'topic', 'order_topic', 'barrier_topic')",
        world.database.options.schema,
    )
    assert len(rows) > 15
    assert {row["collname"] for row in rows} == {"C"}


def test_the_files_are_in_dbmates_format() -> None:
    for file in (files("schemas") / "sql").iterdir():
        assert re.fullmatch(r"\d{4}_[a-z_]+\.sql", file.name)
        text = file.read_text()
        assert text.startswith("-- migrate:up")
        assert text.count("-- migrate:down") == 1
    assert sorted(set(VERSIONS)) == VERSIONS


def test_a_folder_of_migrations_is_read_in_order(tmp_path) -> None:
    (tmp_path / "0002_second.sql").write_text(
        "-- migrate:up transaction:false\ncreate index\n-- migrate:down\ndrop index\n"
    )
    (tmp_path / "0001_first.sql").write_text("-- migrate:up\nselect 1\n")
    (tmp_path / "notes.md").write_text("no migration")
    assert read_migrations(tmp_path) == [
        Migration("0001", "first", "select 1\n", "", in_transaction=True),
        Migration("0002", "second", "create index\n", "drop index\n", in_transaction=False),
    ]


def test_a_file_without_its_mark_is_refused(tmp_path) -> None:
    (tmp_path / "0001_first.sql").write_text("select 1\n")
    with pytest.raises(ConfigError, match="0001_first"):
        read_migrations(tmp_path)
