"""The fence on a real server: locks between claims and writers, restores, lost answers."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest

from tests.support.servers import open_folder
from tests.support.store_changes import GROUP, PARTITION, at, key, upsert, write
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.adapters.pg_client import APPLICATION_NAME
from worker.config import DatabaseOptions
from worker.core.model import Base, Partition, Progress
from worker.embedded.postgres import EmbeddedPostgres
from worker.errors import StoreUnavailable
from worker.ports import Verdict

pytestmark = pytest.mark.real

APPLIED, BASE_CHANGED, FENCED = Verdict.APPLIED, Verdict.BASE_CHANGED, Verdict.FENCED


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


@pytest.fixture
async def impatient(database):
    """A world in which nobody waits for a lock for long."""
    async with postgres_world(replace(database, lock_timeout_seconds=1)) as world:
        yield world


async def test_a_writer_behind_an_open_claim_sees_the_new_epoch(world: PostgresWorld) -> None:
    claim = await world.claim()
    async with asyncio.TaskGroup() as tasks:
        async with world.database.transaction() as connection:
            await connection.execute("select from partition_claim for update")
            await connection.execute("update partition_claim set epoch = epoch + 1")
            writing = tasks.create_task(world.put(claim, version=1, texts=["zombie"]))
            await world.until_waiting(writing)
        assert await writing is FENCED
    assert await world.base() == Base()


async def test_a_writer_behind_a_claim_that_fails_goes_on(world: PostgresWorld) -> None:
    claim = await world.claim()
    async with asyncio.TaskGroup() as tasks:
        async with world.database.connection() as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("update partition_claim set epoch = epoch + 1")
            writing = tasks.create_task(world.put(claim, version=1, texts=["text"]))
            await world.until_waiting(writing)
            await transaction.rollback()
        assert await writing is APPLIED


async def test_what_a_writer_has_written_before_the_claim_is_there_after_it(
    world: PostgresWorld,
) -> None:
    """No effect of an old claim comes after the new one (S4)."""
    claim = await world.claim()
    insert = "insert into scope_tombstone values ('t', '', 1, 't', 0, 0, 0, 0)"
    async with asyncio.TaskGroup() as tasks:
        async with world.writing(claim) as connection:
            claiming = tasks.create_task(world.claim())
            await world.until_waiting(claiming)
            await connection.execute(insert)
        await claiming
        assert await world.fetchval("select count(*) from scope_tombstone") == 1


async def test_claims_of_other_partitions_do_not_wait_for_a_writer(
    world: PostgresWorld,
) -> None:
    claim = await world.claim()
    async with world.writing(claim), asyncio.timeout(5):
        other = await world.claim(Partition("documents", 1))
        assert await world.put(other, version=1, texts=["text"]) is APPLIED


async def claim_over_frozen_writers(world: PostgresWorld, count: int) -> None:
    claim = await world.claim()
    async with AsyncExitStack() as frozen:
        for _ in range(count):
            await frozen.enter_async_context(world.writing(claim))
        assert (await world.claim()).epoch == claim.epoch + 1


async def test_a_claim_ends_frozen_writers_of_our_own(impatient: PostgresWorld) -> None:
    with pytest.raises(StoreUnavailable):
        await claim_over_frozen_writers(impatient, 3)
    assert impatient.claims.blockers_ended == 3
    assert (await impatient.claim()).epoch == 3


@asynccontextmanager
async def stuck_in_a_copy(options: DatabaseOptions):
    """A job of our own role that holds all claims, and copies rows that nobody sends."""

    async def nothing():
        await asyncio.Event().wait()
        yield b""

    settings = {"search_path": options.schema, "application_name": APPLICATION_NAME}
    job = await asyncpg.connect(options.url, server_settings=settings)
    await job.execute("create temp table copied (text text)")
    await job.execute("begin; select from partition_claim for share")
    copying = asyncio.get_running_loop().create_task(
        job.copy_to_table("copied", source=nothing())
    )
    try:
        yield job
    finally:
        copying.cancel()
        job.terminate()
        await asyncio.wait({copying})
        if not copying.cancelled():
            copying.exception()  # retrieved: the library's, of a connection that is gone


async def test_a_job_that_holds_more_claims_than_there_are_connections_is_ended(
    database: DatabaseOptions,
) -> None:
    """No limit of the server ends a COPY whose client sends nothing."""
    partitions = [Partition("documents", number) for number in range(6)]
    options = replace(database, lock_timeout_seconds=2, pool_max=4)
    async with postgres_world(options) as world:
        for partition in partitions:
            await world.claim(partition)
        async with (
            stuck_in_a_copy(options),
            asyncio.timeout(options.lock_timeout_seconds),
            asyncio.TaskGroup() as tasks,
        ):
            claims = [tasks.create_task(world.claim(partition)) for partition in partitions]
        assert [claim.result().epoch for claim in claims] == [2] * len(partitions)
        assert world.claims.blockers_ended >= 1


async def test_a_claim_leaves_alone_who_is_not_a_worker(impatient: PostgresWorld) -> None:
    claim = await impatient.claim()
    options = impatient.database.options
    settings = {"search_path": options.schema, "application_name": "psql"}
    operator = await asyncpg.connect(options.url, server_settings=settings)
    try:
        async with operator.transaction():
            await operator.execute("select from partition_claim for share")
            with pytest.raises(StoreUnavailable, match="55P03"):
                await impatient.claim()
            assert await operator.fetchval("select 1") == 1
    finally:
        await operator.close()
    assert impatient.claims.blockers_ended == 0
    assert (await impatient.claim()).epoch == claim.epoch + 1


async def test_the_workers_sessions_are_told_by_their_name(world: PostgresWorld) -> None:
    assert await world.fetchval("show application_name") == APPLICATION_NAME


async def test_writers_of_many_partitions_and_claims_do_not_deadlock(
    world: PostgresWorld,
) -> None:
    partitions = [Partition("documents", number) for number in range(6)]
    newest = {found: await world.claim(found) for found in partitions}
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    before = await world.fetchval(deadlocks)

    async def claim_often(partition: Partition) -> None:
        for _ in range(10):
            newest[partition] = await world.claim(partition)

    async def write_often(turn: int) -> None:
        for round_ in range(15):
            order = partitions[turn:] + partitions[:turn]
            names = [key(f"d{number}") for number, _ in enumerate(order)]
            writes = [
                write(upsert(world.articles, Base(), of=of, version=round_), newest[partition])
                for of, partition in zip(names[:: (-1) ** turn], order, strict=True)
            ]
            await world.store.apply(writes)

    async with asyncio.TaskGroup() as tasks:
        for partition in partitions[:3]:
            tasks.create_task(claim_often(partition))
        for turn in range(4):
            tasks.create_task(write_often(turn))
    await world.fetchval("select pg_stat_force_next_flush()")
    assert await world.fetchval(deadlocks) == before


async def test_an_epoch_that_is_used_again_after_a_restore_is_another_claim(
    world: PostgresWorld,
) -> None:
    """Protocol, C12: here the server's history has not changed, only the claim id tells."""
    await world.claim()
    await world.fetch("create table backup as select * from partition_claim")
    frozen = await world.claim()
    await world.fetch("delete from partition_claim")
    await world.fetch("insert into partition_claim select * from backup")
    claim = await world.claim()
    assert claim.epoch == frozen.epoch
    assert await world.put(frozen, version=1, texts=["zombie"]) is FENCED
    assert await world.claims.save_progress({frozen: Progress(9)}) == {}
    assert await world.put(claim, version=1, texts=["text"]) is APPLIED


async def test_a_restored_or_restarted_server_is_another_history(tmp_path) -> None:
    with open_folder() as folder, EmbeddedPostgres(folder / "postgres") as server:
        connection = await asyncpg.connect(server.url)
        await connection.execute("create extension vector schema public")
        await connection.close()
        options = DatabaseOptions(url=server.url, pool_min=1, pool_max=4)
        async with postgres_world(options) as world:
            claim = await world.claim()
            await world.claims.begin(claim, 1)
            server.snapshot(tmp_path / "backup")
            restarted = await reconnected(world)
            assert restarted.epoch == claim.epoch + 1
            assert restarted.history != claim.history
            await world.claims.save_progress({restarted: Progress(7)})
            server.restore(tmp_path / "backup")
            restored = await reconnected(world)
            # The epoch that was lost in the restore comes again.
            assert (restored.epoch, restored.next_offset) == (restarted.epoch, 1)
            assert len({claim.history, restarted.history, restored.history}) == 3
            for old in (claim, restarted, restored._replace(history=restarted.history)):
                assert await world.put(old, version=1, texts=["zombie"]) is FENCED
                assert await world.claims.save_progress({old: Progress(9)}) == {}
            assert await world.put(restored, version=1, texts=["text"]) is APPLIED


async def reconnected(world: PostgresWorld):
    """Claim on a connection that works again: the first ones find out that they are lost."""
    for _ in range(world.database.options.pool_max):
        try:
            return await world.claim()
        except StoreUnavailable:
            continue
    return await world.claim()


async def open_transactions(world: PostgresWorld) -> int:
    return await world.fetchval(
        "select count(*) from pg_locks l join pg_class c on c.oid = l.relation"
        " where c.relnamespace = $1::text::regnamespace and c.relname = 'partition_claim'",
        world.database.options.schema,
    )


class CancelAt:
    """Cancels the caller of the n-th statement, when it has been sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 0
        for name in ("execute", "executemany", "fetch", "fetchrow", "fetchval"):
            original = getattr(asyncpg.Connection, name)
            monkeypatch.setattr(asyncpg.Connection, name, self._counted(original))

    def _counted(self, original):
        async def counted(*arguments, **options):
            self.left -= 1
            if self.left == 0:
                asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)
            return await original(*arguments, **options)

        return counted


async def test_a_cancelled_write_is_whole_or_not_at_all_and_leaves_nothing_open(
    world: PostgresWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, cancel_at, stored = await world.claim(), CancelAt(monkeypatch), []
    for number in range(1, 8):
        of = key(f"d{number}")
        change = upsert(world.articles, Base(), of=of, version=1, texts=["one", "two"])
        async with asyncio.TaskGroup() as tasks:
            cancel_at.left = number
            tasks.create_task(world.store.apply([write(change, claim)]))
        cancel_at.left = 0
        assert await open_transactions(world) == 0
        document = (await world.base(of)).document
        assert await world.texts(of) == ([] if document is None else ["one", "two"])
        again = await world.store.apply([write(change, claim)])
        assert again == [APPLIED if document is None else BASE_CHANGED]
        stored.append(document is not None)
    # BEGIN, the fence, the document, its chunks: nothing. COMMIT: unknown. After it: stored.
    assert stored[:4] == [False] * 4
    assert stored[5:] == [True] * 2


async def test_a_write_cancelled_while_it_waits_gives_its_connection_back(
    world: PostgresWorld,
) -> None:
    claim = await world.claim()
    await world.put(claim, version=1, texts=["old"])
    async with asyncio.TaskGroup() as tasks, world.database.transaction() as connection:
        await connection.execute("select from document for update")
        writing = tasks.create_task(world.put(claim, version=2, offset=1, texts=["new"]))
        await world.until_waiting(writing)
        writing.cancel()
        await asyncio.wait({writing})
        assert writing.cancelled()
        assert (await world.base()).document.version == 1
    assert await world.put(claim, version=2, offset=1, texts=["new"]) is APPLIED


async def test_a_connection_that_is_cut_makes_the_outcome_unknown(world: PostgresWorld) -> None:
    claim = await world.claim()
    await world.put(claim, version=1, texts=["old"])
    async with asyncio.TaskGroup() as tasks, world.database.transaction() as connection:
        await connection.execute("select from document for update")
        writing = tasks.create_task(expect_unavailable(world, claim))
        await world.until_waiting(writing)
        await connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where pg_backend_pid() = any (pg_blocking_pids(pid))"
        )
        await writing
    assert await world.texts() == ["old"]
    assert await world.put(claim, version=2, offset=1, texts=["new"]) is APPLIED


async def expect_unavailable(world: PostgresWorld, claim) -> None:
    with pytest.raises(StoreUnavailable):
        await world.put(claim, version=2, offset=1, texts=["new"])


async def test_a_lock_that_is_not_to_be_had_is_an_unknown_outcome_too(
    impatient: PostgresWorld,
) -> None:
    claim = await impatient.claim()
    await impatient.put(claim, version=1, texts=["old"])
    async with impatient.database.transaction() as connection:
        await connection.execute("select from document for update")
        with pytest.raises(StoreUnavailable, match="55P03"):
            await impatient.put(claim, version=2, offset=1)
    assert await impatient.put(claim, version=2, offset=1) is APPLIED


async def test_saving_progress_waits_for_no_writer_and_no_writer_for_it(
    world: PostgresWorld,
) -> None:
    """Why `next_offset` is not in the claim's row."""
    claim = await world.claim()
    await world.claims.begin(claim, 0)
    async with world.database.transaction() as connection, asyncio.timeout(5):
        await connection.execute("update partition_progress set next_offset = 3")
        assert await world.put(claim, version=1, order=at(2)) is APPLIED
    async with world.writing(claim), asyncio.timeout(5):
        assert await world.claims.save_progress({claim: Progress(5)}) == {PARTITION: 5}
    assert await world.claims.next_offset(GROUP, PARTITION) == 5
