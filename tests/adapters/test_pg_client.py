"""Connections: their limits, passwords, what is missing on a server, and how they end."""

import asyncio
import logging
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from tests.chaos.proxy import Link
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.adapters import pg_client
from worker.adapters.pg_client import Database
from worker.adapters.pg_migrations import Migrations
from worker.config import DatabaseOptions
from worker.errors import ConfigError, FencedError, PermanentError, StoreUnavailable
from worker.ports import Verdict

pytestmark = pytest.mark.real


@asynccontextmanager
async def opened(options: DatabaseOptions):
    database = await Database.open(options)
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def superuser(url: str):
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def database_of_its_own(url: str):
    """A database and a role without privileges that owns it; both are dropped afterwards."""
    name = f"test_{uuid4().hex[:12]}"
    async with superuser(url) as connection:
        await connection.execute(f"create role {name} login password 'first'")
        await connection.execute(f"create database {name} owner {name}")
        try:
            yield urlsplit(url)._replace(path=f"/{name}").geturl(), name
        finally:
            await connection.execute(f"drop database {name} with (force)")
            await connection.execute(f"drop role {name}")


def as_role(url: str, role: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{role}@{parts.netloc.rpartition('@')[2]}").geturl()


async def test_every_connection_has_the_limits_that_are_configured(database) -> None:
    options = replace(
        database,
        statement_timeout_seconds=7,
        lock_timeout_seconds=1.5,
        idle_in_transaction_seconds=3,
    )
    expected = {
        "statement_timeout": "7s",
        "lock_timeout": "1500ms",
        "idle_in_transaction_session_timeout": "3s",
        "search_path": f'"{database.schema}", public',
        "default_transaction_isolation": "read committed",
        "application_name": "embedfleet",
        "jit": "off",
    }
    async with opened(options) as found:
        for _ in range(2):  # also after a connection has been given back
            async with found.connection() as connection:
                for name, value in expected.items():
                    assert await connection.fetchval(f"show {name}") == value


async def test_what_fails_is_counted_by_what_it_is(database) -> None:
    async with opened(database) as pool:
        assert not any(pool.errors.values())
        for statement, error in (
            ("select 1 / 0", PermanentError),
            ("select * from no_such_table", StoreUnavailable),
            ("select pg_terminate_backend(pg_backend_pid())", StoreUnavailable),
        ):
            with pytest.raises(error):
                async with pool.transaction() as connection:
                    await connection.execute(statement)
        with pytest.raises(FencedError):
            async with pool.transaction():
                raise FencedError
        counted = {name: count for name, count in pool.errors.items() if count}
    assert counted == {"PermanentError": 1, "MissingTable": 1, "StoreUnavailable": 1}


async def test_a_statement_that_hangs_is_ended_by_the_server(database) -> None:
    options = replace(database, statement_timeout_seconds=0.1, lock_timeout_seconds=0.1)
    async with opened(options) as found:
        with pytest.raises(StoreUnavailable, match="57014"):
            async with found.connection() as connection:
                await connection.execute("select pg_sleep(60)")


async def test_a_server_that_hangs_is_given_up_by_the_client(database) -> None:
    options = replace(
        database,
        command_timeout_seconds=0.2,
        statement_timeout_seconds=0.1,
        lock_timeout_seconds=0.1,
    )
    async with opened(options) as found:
        with pytest.raises(StoreUnavailable, match="did not answer in time"):
            async with found.connection() as connection:
                await connection.execute("set statement_timeout = 0; select pg_sleep(60)")


async def test_vectors_pass_as_they_are(database) -> None:
    async with opened(database) as found, found.connection() as connection:
        wired = b"\x00\x02\x00\x00" + b"\x3c\x00\xc0\x00"
        assert await connection.fetchval("select $1::halfvec(2)", wired) == wired
        text = await connection.fetchval("select $1::halfvec(2)::text", wired)
        assert text == "[1,-2]"


async def test_a_changed_password_is_read_for_the_next_connection(
    database, tmp_path, monkeypatch
) -> None:
    async with database_of_its_own(database.url) as (url, role), superuser(url) as admin:
        await admin.execute("create extension vector schema public")
        file = tmp_path / "password"
        file.write_text("first\n")
        options = replace(
            database, url=as_role(url, role), password_file=file, pool_min=1, pool_max=1
        )
        async with opened(options) as found:
            await admin.execute(f"alter role {role} password 'second'")
            file.write_text("second")
            await found._pool.expire_connections()
            async with found.connection() as connection:
                assert await connection.fetchval("select current_user") == role
        file.write_text("first")
        with pytest.raises(ConfigError, match="28P01"):
            await Database.open(options)
        monkeypatch.setenv("RIGHT", "second")
        by_variable = replace(options, password_file=None, password_variable="RIGHT")
        async with opened(by_variable) as found, found.connection() as connection:
            assert await connection.fetchval("select 1") == 1


async def test_a_password_that_is_not_there_is_named(database, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("UNSET_PASSWORD", raising=False)
    with pytest.raises(ConfigError, match="UNSET_PASSWORD"):
        await Database.open(replace(database, password_variable="UNSET_PASSWORD"))
    with pytest.raises(ConfigError, match="password_file"):
        await Database.open(replace(database, password_file=tmp_path / "missing"))


async def test_an_extension_that_is_missing_is_named_and_migrations_add_it(database) -> None:
    async with database_of_its_own(database.url) as (url, _):
        options = replace(database, url=url)
        with pytest.raises(ConfigError, match="'vector' is missing"):
            await Database.open(options)
        await Migrations(options).up()
        async with opened(options) as found, found.connection() as connection:
            assert await connection.fetchval("select '[1]'::vector is not null")


async def test_the_extension_is_found_in_whatever_schema_it_is(database) -> None:
    async with database_of_its_own(database.url) as (url, _):
        async with superuser(url) as admin:
            await admin.execute("create schema other; create extension vector schema other")
        async with (
            opened(replace(database, url=url)) as found,
            found.connection() as connection,
        ):
            wired = b"\x00\x01\x00\x00\x3c\x00"
            assert await connection.fetchval("select $1::other.halfvec", wired) == wired


async def test_a_role_that_may_not_read_the_control_file_is_fenced_by_the_start_alone(
    database, caplog
) -> None:
    async with database_of_its_own(database.url) as (url, role):
        async with superuser(url) as admin:
            await admin.execute("create extension vector schema public")
            await admin.execute("revoke execute on function pg_control_system from public")
        options = replace(
            database, url=as_role(url, f"{role}:first"), schema="embedfleet", pool_max=3
        )
        with caplog.at_level(logging.WARNING):
            async with postgres_world(options) as world:
                claim = await world.claim()
                assert await world.put(claim, version=1, texts=["text"]) is Verdict.APPLIED
                other = claim._replace(history="0")
                assert await world.put(other, version=2) is Verdict.FENCED
                place, _, schema = (await world.database.name()).rpartition("/")
                assert (place, schema) == (url.rpartition("/")[2], "embedfleet")
        assert "pg_control_system" in caplog.text


async def test_an_ordinary_role_can_do_all_that_a_worker_does(database) -> None:
    async with database_of_its_own(database.url) as (url, role):
        async with superuser(url) as admin:
            await admin.execute("create extension vector schema public")
        options = replace(database, url=as_role(url, f"{role}:first"), lock_timeout_seconds=1)
        async with postgres_world(options) as world:
            claim = await world.claim()
            assert len(claim.history.split("/")) == 3
            server = claim.history.partition("/")[0]
            place = f"{server}/{url.rpartition('/')[2]}/{options.schema}"
            assert await world.database.name() == place
            assert await world.put(claim, version=1, texts=["text"]) is Verdict.APPLIED
            with pytest.raises(StoreUnavailable):
                await claim_behind_a_writer(world, claim)
            assert world.claims.blockers_ended == 1


async def claim_behind_a_writer(world: PostgresWorld, claim) -> None:
    async with world.writing(claim):
        await world.claim()


async def test_nobody_at_the_address_is_an_outage(unused_tcp_port: int) -> None:
    options = DatabaseOptions(url=f"postgresql://localhost:{unused_tcp_port}/x")
    with pytest.raises(StoreUnavailable):
        await Database.open(options)


async def test_a_url_that_cannot_work_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError):
        await Database.open(DatabaseOptions(url="http://localhost/x"))


async def test_a_server_without_tls_is_not_spoken_to_in_plain_where_tls_is_asked(
    database,
) -> None:
    async with superuser(database.url) as admin:
        assert await admin.fetchval("show ssl") == "off"
    with pytest.raises(StoreUnavailable, match="SSL"):
        await Database.open(replace(database, url=f"{database.url}?sslmode=require"))


async def test_closing_cuts_a_connection_that_is_not_given_back(database) -> None:
    found = await Database.open(database)
    async with found.connection():
        async with asyncio.timeout(5):
            await found.close(deadline_seconds=0.1)
    with pytest.raises(StoreUnavailable):
        await connect(found)


async def connect(database: Database) -> None:
    async with database.connection():
        pass


async def test_closing_twice_is_no_error(database) -> None:
    found = await Database.open(database)
    await found.close()
    await found.close()


async def test_a_role_that_commits_without_waiting_for_the_disk_is_refused(postgres_server):
    async with database_of_its_own(postgres_server.url) as (url, role):
        async with superuser(url) as connection:
            await connection.execute("create extension vector with schema public")
            await connection.execute(f"alter role {role} set synchronous_commit = off")
        options = DatabaseOptions(
            url=as_role(url, f"{role}:first"), schema="public", pool_min=1, pool_max=1
        )
        with pytest.raises(ConfigError, match="synchronous_commit"):
            await Database.open(options)


@asynccontextmanager
async def link_to(url: str):
    """A link to a server; its address as a URL of the same database."""
    parts = urlsplit(url)
    async with Link((parts.hostname, parts.port)) as link:
        place = f"{parts.netloc.rpartition('@')[0]}@{link.address}"
        yield link, parts._replace(netloc=place).geturl()


async def silenced_at(sleeping: str, url: str, link: Link) -> None:
    """Wait until a connection sleeps in its set-up, then let nothing through any more."""
    async with superuser(url) as connection:
        while not await connection.fetchval(
            "select count(*) from pg_stat_activity where query = $1 and state = 'active'",
            sleeping,
        ):
            pass
    link.faults.blackhole()


async def test_a_connection_that_falls_silent_in_its_set_up_is_given_up_in_time(
    database, monkeypatch
):
    async with link_to(database.url) as (link, url):
        options = replace(
            database,
            url=url,
            pool_min=1,
            pool_max=1,
            lock_timeout_seconds=0.5,
            statement_timeout_seconds=1,
            command_timeout_seconds=1.5,
        )
        async with opened(options) as pool:
            await pool._pool.expire_connections()
            sleeping = f"select pg_sleep(60), '{uuid4().hex}'"
            monkeypatch.setattr(pg_client, "_VECTOR_SCHEMA", sleeping)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(silenced_at(sleeping, database.url, link))
                async with asyncio.timeout(options.command_timeout_seconds + 1):
                    with pytest.raises(StoreUnavailable):
                        async with pool.connection():
                            pass
            await link.heal()


async def test_canary_a_pool_waits_for_a_connection_that_falls_silent_in_its_set_up(
    database,
):
    async with link_to(database.url) as (link, url):
        sleeping = f"select pg_sleep(60), '{uuid4().hex}'"

        async def set_up(connection):
            await connection.fetchval(sleeping)

        async with asyncpg.create_pool(url, min_size=0, max_size=1, init=set_up) as pool:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(silenced_at(sleeping, database.url, link))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(5) as outer:
                        await pool.acquire(timeout=1)
            assert outer.expired(), "asyncpg gives it up in time: drop `_set_up`"
            await link.heal()
