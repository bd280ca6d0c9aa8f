"""The proxy does to a connection what it says, and to no other."""

import asyncio
import time
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest

from tests.chaos.proxy import DOWN, HOST, UP, Commits, Link


@asynccontextmanager
async def echo():
    """A server that says everything back: its address."""

    async def serve(reader, writer):
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, HOST, 0)
    yield server.sockets[0].getsockname()
    server.close()


@asynccontextmanager
async def client(link):
    reader, writer = await asyncio.open_connection(HOST, link.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


@pytest.fixture
async def link():
    async with echo() as address, Link(address) as link, asyncio.timeout(20):
        yield link


async def said(reader, writer, data):
    writer.write(data)
    return await reader.readexactly(len(data))


async def test_everything_passes_and_an_end_is_passed_on(link):
    async with client(link) as (reader, writer):
        data = bytes(range(256)) * 4096
        assert await said(reader, writer, data) == data
        writer.write_eof()
        assert await reader.read() == b""
    assert link.counts["connections"] == 1
    assert link.counts["bytes"] == 2 * len(data)


async def test_latency_is_added_to_each_direction(link):
    async with client(link) as (reader, writer):
        link.faults.latency_seconds = 0.1
        began = time.monotonic()
        assert await said(reader, writer, b"hello") == b"hello"
        assert time.monotonic() - began >= 0.2


async def test_bandwidth_is_limited(link):
    async with client(link) as (reader, writer):
        link.faults.bytes_per_second = 100_000
        began = time.monotonic()
        await said(reader, writer, bytes(20_000))
        assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize("direction", [UP, DOWN])
async def test_a_blackhole_holds_one_direction_until_it_is_healed(link, direction):
    async with client(link) as (reader, writer):
        link.faults.blackhole(direction)
        writer.write(b"hello")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        await link.heal()
        assert await reader.readexactly(5) == b"hello"


async def test_a_connection_that_is_held_can_be_reset(link):
    async with client(link) as (reader, writer):
        await said(reader, writer, b"hello")
        link.faults.blackhole()
        writer.write(b"hello")
        link.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
    assert link.counts["resets"] == 1


async def test_a_reset_ends_the_connections_there_are_and_no_later_one(link):
    async with client(link) as (reader, writer):
        await said(reader, writer, b"hello")
        link.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
    async with client(link) as (reader, writer):
        assert await said(reader, writer, b"again") == b"again"


async def test_nobody_listens_while_it_refuses_and_connections_go_on(link):
    async with client(link) as (reader, writer):
        await said(reader, writer, b"hello")
        await link.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(HOST, link.port)
        assert await said(reader, writer, b"again") == b"again"
    await link.heal()
    async with client(link) as (reader, writer):
        assert await said(reader, writer, b"hello") == b"hello"


async def test_a_connection_is_cut_after_exactly_so_many_bytes_of_answers(link):
    link.faults.cut_after_bytes = 7
    async with client(link) as (reader, writer):
        assert await said(reader, writer, b"hello") == b"hello"
        writer.write(b"hello")
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)
    assert link.counts["cut_after_bytes"] == 1


async def test_one_byte_slices_change_nothing_but_the_packets(link):
    async with client(link) as (reader, writer):
        link.faults.slice_bytes = 1
        assert await said(reader, writer, b"hello" * 100) == b"hello" * 100
    assert link.counts["slices"] == 1000


async def test_a_server_that_is_away_is_a_reset(link):
    link.target = (HOST, 1)
    async with client(link) as (reader, _):
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
    assert link.counts["unreachable"] == 1


class TestCommits:
    """On real PostgreSQL."""

    @pytest.fixture
    async def database(self, postgres_server):
        """A connection that nothing cuts, and a table."""
        connection = await asyncpg.connect(postgres_server.url)
        await connection.execute("create table if not exists cut_commits (number int)")
        await connection.execute("truncate cut_commits")
        yield connection
        await connection.execute("drop table cut_commits")
        await connection.close()

    @pytest.fixture
    async def link(self, postgres_server):
        rest, _, port = postgres_server.url.rpartition("@")[2].partition("/")[0].partition(":")
        async with Link((rest, int(port)), watch=Commits) as link, asyncio.timeout(30):
            yield link

    @asynccontextmanager
    async def connected(self, postgres_server, link):
        user, _, place = postgres_server.url.rpartition("@")
        name = place.partition("/")[2]
        connection = await asyncpg.connect(f"{user}@{link.address}/{name}")
        try:
            yield connection
        finally:
            connection.terminate()

    async def test_a_commit_is_done_though_its_answer_never_came(
        self, postgres_server, database, link
    ):
        async with self.connected(postgres_server, link) as connection:
            link.faults.cut_commit = lambda: True
            # A statement outside of a transaction is none that is watched for.
            await connection.execute("insert into cut_commits values (0)")
            with pytest.raises((OSError, asyncpg.PostgresConnectionError)):
                async with connection.transaction():
                    await connection.execute("insert into cut_commits values (1)")
        assert await database.fetchval("select max(number) from cut_commits") == 1
        assert link.counts["commits_cut"] == 1

    async def test_a_transaction_that_failed_or_was_rolled_back_is_no_commit(
        self, postgres_server, database, link
    ):
        async with self.connected(postgres_server, link) as connection:
            link.faults.cut_commit = lambda: True
            await connection.execute("BEGIN")
            with pytest.raises(asyncpg.DivisionByZeroError):
                await connection.execute("select 1/0")
            assert await connection.execute("COMMIT") == "ROLLBACK"
            transaction = connection.transaction()
            await transaction.start()
            await transaction.rollback()
        assert link.counts["commits"] == link.counts["commits_cut"] == 0

    async def test_large_results_and_one_byte_slices_do_not_hide_a_commit(
        self, postgres_server, database, link
    ):
        async with self.connected(postgres_server, link) as connection:
            link.faults.slice_bytes = 7
            async with connection.transaction():
                rows = await connection.fetch(
                    "select repeat('C', 10000) from generate_series(1, 9)"
                )
            assert len(rows) == 9
        assert link.counts["commits"] == 1

    async def test_the_server_knows_the_client_by_a_port_of_the_link(
        self, postgres_server, link
    ):
        async with self.connected(postgres_server, link) as connection:
            assert await connection.fetchval("select inet_client_port()") in link.ports
