"""How vector indexes are looked at, built and dropped on a real server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import dropwhile
from time import monotonic

import asyncpg
import numpy as np
import pytest

from tests.support.store_changes import ARTICLES
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.adapters.pg_client import Database
from worker.adapters.pg_indexes import (
    IndexBuilder,
    PostgresIndexes,
    table_of,
)
from worker.adapters.pg_readers import Readers
from worker.adapters.pgvector_format import wire
from worker.core.index_facts import BuildProgress
from worker.core.model import Collection, Vector
from worker.core.vector_index import (
    Create,
    Place,
    Present,
    State,
    VectorIndex,
    build_bytes,
    index_bytes,
    steps,
)
from worker.errors import ConfigError, StoreUnavailable
from worker.ops.index_build import is_due

pytestmark = pytest.mark.real

DIMENSIONS = 16
INDEX = VectorIndex(m=4, ef_construction=16, build_at_rows=50)
GOOD = Present("hnsw", 4, 16)
BROKEN = GOOD._replace(is_valid=False)
MIB = 2**20
RANDOM = np.random.default_rng(7)


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


@pytest.fixture
def indexes(world: PostgresWorld) -> PostgresIndexes:
    return PostgresIndexes(world.database)


async def collection(world: PostgresWorld, index: VectorIndex = INDEX, **other) -> Collection:
    wanted = {"name": "wiki", "dimensions": DIMENSIONS, "storage": "vector", "index": index}
    return await world.catalog.create(replace(ARTICLES, **(wanted | other)))


async def fill(
    world: PostgresWorld, one: Collection, rows: int, *, tenants: tuple[str, ...] = ("t",)
) -> None:
    """Store live documents of one chunk each, around a few centres; all tenants in turn."""
    centres = RANDOM.normal(size=(8, one.dimensions))
    near = centres[RANDOM.integers(0, 8, rows)] + RANDOM.normal(size=(rows, one.dimensions)) / 5
    vectors = [Vector(row.tobytes()) for row in near.astype("<f4")]
    wired = wire(vectors, one.dimensions, one.storage)
    names = [(tenants[n % len(tenants)], f"{n:06}") for n in range(rows)]
    async with world.database.connection() as connection:
        await connection.copy_records_to_table(
            table_of(one),
            schema_name=world.database.options.schema,
            records=[
                (*name, name[1].encode(), 0, 0, "text", 0, 4, None, vector)
                for name, vector in zip(names, wired, strict=True)
            ],
        )
        await connection.execute(
            "insert into document (tenant, collection, id, version, order_topic,"
            " order_partition, order_offset, order_timestamp_ms, order_incarnation, revision,"
            " deleted) select tenant, $1, id, 1, 't', 0, 0, 0, 0, 1, false"
            f" from {table_of(one)}",
            one.name,
        )


async def create(
    builder: IndexBuilder, place: Place = Place.MAIN, index: VectorIndex = INDEX, **how
) -> None:
    await builder.create(
        place, index, **({"rows": 100, "memory_bytes": 64 * MIB, "workers": None} | how)
    )


@asynccontextmanager
async def open_snapshot(world: PostgresWorld) -> AsyncIterator[asyncpg.Connection]:
    """Hold a transaction for which a build waits at its end."""
    options = world.database.options
    settings = {"application_name": "a report"}
    other = await asyncpg.connect(options.url, server_settings=settings)
    try:
        async with other.transaction(isolation="repeatable_read"):
            await other.execute("select count(*) from pg_class")
            yield other
    finally:
        await other.close()


async def waits(indexes: PostgresIndexes, one: Collection) -> BuildProgress:
    """Return when a build waits for the transactions of others."""
    async with asyncio.timeout(30):
        while True:
            progress = await indexes.progress(one)
            if progress is not None and progress.phase.startswith("waiting for old snapshots"):
                return progress


async def leave_broken(world: PostgresWorld, indexes: PostgresIndexes, one: Collection) -> None:
    """Leave what a build leaves that is ended."""
    async with (
        open_snapshot(world),
        indexes.locked(one, "a test") as builder,
        asyncio.TaskGroup() as tasks,
    ):
        building = tasks.create_task(create(builder))
        await waits(indexes, one)
        building.cancel()


@pytest.mark.parametrize(
    ("index", "present"),
    [
        (INDEX, GOOD),
        (replace(INDEX, m=5, ef_construction=10), Present("hnsw", 5, 10)),
        (
            VectorIndex("ivfflat", lists=3, build_at_rows=1_000),
            Present("ivfflat", lists=3),
        ),
        (VectorIndex("ivfflat", build_at_rows=1_000), Present("ivfflat", lists=2)),
    ],
    ids=repr,
)
async def test_an_index_is_built_as_it_should_be_and_readers_use_it(
    world: PostgresWorld, indexes: PostgresIndexes, index: VectorIndex, present: Present
) -> None:
    one = await collection(world, index)
    await fill(world, one, 3_000)
    before = await indexes.look(one)
    assert (before.rows, before.is_exact, before.found) == (3_000, True, {})
    assert (before.index_bytes, before.progress, before.holder) == (0, None, None)
    assert before.state is State.DUE
    assert await is_due(indexes, one)
    assert not await is_due(indexes, world.articles)
    async with indexes.locked(one, "a test") as builder:
        assert await builder.count() == 3_000
        await create(builder, index=index, rows=2_000)
        await builder.analyse()
    after = await indexes.look(one)
    assert after.found == {Place.MAIN: present}
    assert after.index_bytes > 0
    assert after.state is State.VALID
    assert not await is_due(indexes, one)
    readers = Readers(world.database)
    assert await readers.is_served_by_index(one)
    recall = await readers.recall(one, 20, 5)
    assert recall is not None
    assert (recall.queries, recall.by_index, recall.k) == (20, 20, 5)
    assert 0.5 < recall.share <= 1
    assert recall.worst <= recall.share


async def test_without_an_index_readers_are_given_all_of_the_nearest(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    readers = Readers(world.database)
    assert await readers.recall(one, 20, 5) is None
    assert await readers.is_served_by_index(one) is None
    assert await readers.tenants(one) == []
    await fill(world, one, 100, tenants=("a", "b", "b", "b"))
    recall = await readers.recall(one, 20, 5)
    assert recall is not None
    assert (recall.share, recall.worst, recall.by_index) == (1, 1, 0)
    assert await readers.tenants(one) == [("b", 0.75), ("a", 0.25)]
    assert await readers.is_served_by_index(one) is False


async def test_a_small_tenant_with_few_neighbours_is_measured_by_what_there_is(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    await fill(world, one, 3, tenants=("a", "b", "b"))
    recall = await Readers(world.database).recall(one, 20, 5)
    assert recall is not None
    # The one that is alone has no neighbour that could be found.
    assert (recall.queries, recall.share) == (2, 1)


async def test_an_index_that_was_made_without_parameters_has_those_of_pgvector(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    """As the indexes of before there was a choice."""
    one = await collection(world, VectorIndex())
    table = table_of(one)
    await world.fetch(
        f"create index {table}_embedding on {table} using hnsw (embedding vector_cosine_ops)"
    )
    facts = await indexes.look(one)
    assert facts.found == {Place.MAIN: Present("hnsw", 16, 64)}
    assert facts.state is State.VALID


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        ("using hnsw (embedding vector_l2_ops)", "hnsw (embedding vector_l2_ops)"),
        (
            "using hnsw (embedding vector_cosine_ops) where tenant = 'acme'",
            "hnsw (embedding vector_cosine_ops) WHERE (tenant = 'acme'::text)",
        ),
        (
            "using btree (seq) with (deduplicate_items = off)",
            "btree (seq) WITH (deduplicate_items=off)",
        ),
    ],
)
async def test_an_index_of_our_name_and_another_shape_is_another_index(
    definition, kind, world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    """It serves none of the readers' queries, however it is called."""
    one = await collection(world, VectorIndex())
    table = table_of(one)
    await world.fetch(f"create index {table}_embedding on {table} {definition}")
    facts = await indexes.look(one)
    assert facts.found == {Place.MAIN: Present(kind)}
    assert facts.state is State.DIFFERS


async def test_an_index_of_somebody_elses_is_not_ours(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    await world.fetch(
        f"create index by_tenant on {table_of(one)} using hnsw (embedding vector_cosine_ops)"
        " where tenant = 'acme'"
    )
    assert (await indexes.look(one)).found == {}


async def test_an_index_is_replaced_while_the_one_before_serves(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    async with indexes.locked(one, "a test") as builder:
        await create(builder)
    other = await world.catalog.set_index(one, replace(INDEX, m=6))
    assert (await indexes.look(other)).state is State.DIFFERS
    async with indexes.locked(other, "a test") as builder:
        await create(builder, Place.NEXT, other.index)
        new = GOOD._replace(m=6)
        assert await indexes.found(other) == {Place.MAIN: GOOD, Place.NEXT: new}
        await builder.drop(Place.MAIN)
        await builder.promote()
    assert await indexes.found(other) == {Place.MAIN: new}


async def test_a_build_that_is_cancelled_ends_on_the_server_and_leaves_what_can_be_repaired(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    await leave_broken(world, indexes, one)
    facts = await indexes.look(one)
    assert (facts.found, facts.progress, facts.holder) == ({Place.MAIN: BROKEN}, None, None)
    assert facts.state is State.INVALID
    assert await is_due(indexes, one)
    async with indexes.locked(one, "a test") as builder:
        for step in steps(one.index, facts.found):
            await (create if isinstance(step, Create) else IndexBuilder.drop)(
                builder, step.place
            )
    assert await indexes.found(one) == {Place.MAIN: GOOD}


async def test_a_build_tells_for_whom_it_waits(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    async with indexes.locked(one, "a test") as builder, asyncio.TaskGroup() as tasks:
        async with open_snapshot(world) as other:
            building = tasks.create_task(create(builder))
            told = f"(PostgreSQL's process {other.get_server_pid()}, a report)"
            # At first it may be waiting for whoever looked just now.
            while told not in (progress := await waits(indexes, one)).phase:
                assert not building.done()
            assert progress.share is None
            assert (await indexes.look(one)).state is State.BUILDING
        await building
    assert await indexes.found(one) == {Place.MAIN: GOOD}


async def test_a_drop_tells_for_whom_it_waits(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    async with indexes.locked(one, "a test") as builder:
        await create(builder)
        assert await indexes.progress(one) is None
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(30):
            async with open_snapshot(world) as other:
                schema = world.database.options.schema
                await other.execute(f'select from "{schema}".{table_of(one)}')
                dropping = tasks.create_task(builder.drop(Place.MAIN))
                while (progress := await indexes.progress(one)) is None:
                    assert not dropping.done()
                assert progress == BuildProgress(
                    "waiting for a transaction's end "
                    f"(PostgreSQL's process {other.get_server_pid()}, a report)",
                    None,
                )
            await dropping
    assert await indexes.found(one) == {}


async def test_a_build_tells_how_much_is_done(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    await fill(world, one, 5_000)
    shares: list[float | None] = []
    async with indexes.locked(one, "a test") as builder, asyncio.TaskGroup() as tasks:
        building = tasks.create_task(create(builder))
        while not building.done():
            progress = await indexes.progress(one)
            if progress is not None and progress.phase == "building index: loading tuples":
                shares.append(progress.share)
    told = [share for share in shares if share is not None]
    # PostgreSQL says of the block that it begins with that it was the last (heapam_handler.c,
    # heapam_scan_get_blocks_done): rarely caught.
    seen = list(dropwhile(lambda share: share == 1, told))
    assert len(set(seen)) > 3
    assert seen == sorted(seen)
    assert 0 <= seen[0] < 0.5 < seen[-1] <= 1


async def test_a_small_table_is_built_by_several_processes_where_they_are_asked_for(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    """Its vectors are out of line: by its pages it would be too small for any help."""
    one = await collection(world, dimensions=512, storage="halfvec")
    await fill(world, one, 3_000)
    helpers = (
        "select count(*) from pg_stat_activity"
        " where backend_type = 'parallel worker' and query like $1"
    )
    statement = f"create index concurrently {table_of(one)}%"
    for workers in (0, 1):
        most = 0
        async with indexes.locked(one, "a test") as builder, asyncio.TaskGroup() as tasks:
            building = tasks.create_task(create(builder, workers=workers))
            while not building.done():
                most = max(most, await world.fetchval(helpers, statement))
        assert most == workers
        async with indexes.locked(one, "a test") as builder:
            await builder.drop(Place.MAIN)


async def test_two_who_work_on_one_index_are_refused_and_two_on_two_are_not(
    world: PostgresWorld, indexes: PostgresIndexes, monkeypatch
) -> None:
    monkeypatch.setattr("worker.adapters.pg_indexes._LOCK_PATIENCE_SECONDS", 0.3)
    one, other = await collection(world), await collection(world, name="other")
    async with indexes.locked(one, "the first"):
        holder = (await indexes.look(one)).holder
        assert holder is not None
        assert (holder.application, (await indexes.look(one)).state) == (
            "the first",
            State.BUSY,
        )
        with pytest.raises(ConfigError) as refused:
            async with indexes.locked(one, "the second"):
                pytest.fail("both are at it")
        assert "the index of wiki is being worked on by the first" in str(refused.value)
        assert f"process {holder.pid} since 20" in str(refused.value)
        assert (await indexes.look(other)).holder is None
        async with indexes.locked(other, "the second"):
            pass
    async with indexes.locked(one, "the second"):
        pass


async def test_a_lock_is_waited_for_a_moment_as_a_killed_process_may_have_held_it(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)

    async def hold() -> None:
        async with indexes.locked(one, "the first"):
            taken.set()
            await release.wait()

    async def come() -> None:
        async with indexes.locked(one, "the second"):
            assert release.is_set()

    is_there = (
        "select exists (select from pg_stat_activity where application_name = 'the second')"
    )
    taken, release = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(hold())
        await taken.wait()
        coming = tasks.create_task(come())
        async with asyncio.timeout(5):
            while not await world.fetchval(is_there):
                assert not coming.done()
        release.set()


async def test_no_time_limit_of_the_pool_ends_a_build(database) -> None:
    short = replace(database, statement_timeout_seconds=0.3, lock_timeout_seconds=0.1)
    async with postgres_world(replace(short, command_timeout_seconds=0.4)) as world:
        indexes, one = PostgresIndexes(world.database), await collection(world)
        async with indexes.locked(one, "a test") as builder, asyncio.TaskGroup() as tasks:
            async with open_snapshot(world):
                building = tasks.create_task(create(builder))
                began = monotonic()
                while monotonic() - began < 1:
                    await indexes.progress(one)
                    assert not building.done()
            await building
        assert await indexes.found(one) == {Place.MAIN: GOOD}


async def test_a_build_is_given_memory_and_tells_when_the_graph_outgrows_it(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    """So many rows find room as `build_bytes` says; the server is given what is asked for."""
    one = await collection(world)
    await fill(world, one, 5_000)
    async with indexes.locked(one, "a test") as builder:
        await create(builder, memory_bytes=MIB, workers=0)
        (notice,) = builder.notices
    found = int(notice.removesuffix(" tuples").rpartition(" ")[2])
    assert "no longer fits into maintenance_work_mem" in notice
    need = build_bytes(INDEX, found, DIMENSIONS, "vector")
    assert need == pytest.approx(MIB, rel=0.03)


class FullServer:
    """A connection to a server whose shared memory is smaller than what a build asks for."""

    message = 'could not resize shared memory segment "/PostgreSQL.1" to 67146080 bytes'

    def add_log_listener(self, _) -> None:
        """Say nothing."""

    async def execute(self, statement: str, *_) -> None:
        if statement.startswith("create index"):
            raise asyncpg.DiskFullError(self.message)


async def test_too_little_shared_memory_is_explained_and_a_full_disk_is_not_taken_for_it() -> (
    None
):
    one, server = replace(ARTICLES, index=INDEX), FullServer()
    builder = IndexBuilder(server, one, "schema")
    with pytest.raises(ConfigError, match=r"/dev/shm.*--shm-size.*index.parallel_workers"):
        await create(builder)
    server.message = 'could not extend file "base/5/16384"'
    with pytest.raises(asyncpg.DiskFullError):
        await create(builder)


async def test_rows_beyond_those_that_are_counted_are_the_servers_guess(
    world: PostgresWorld, indexes: PostgresIndexes, monkeypatch
) -> None:
    monkeypatch.setattr("worker.adapters.pg_indexes.EXACT_ROWS", 1_000)
    one = await collection(world)
    await fill(world, one, 1_000)
    assert (await indexes.look(one))[1:3] == (1_000, True)
    await fill_more(world, one)
    await world.fetch(f"analyze {table_of(one)}")
    assert (await indexes.look(one))[1:3] == (1_500, False)


async def fill_more(world: PostgresWorld, one: Collection) -> None:
    table = table_of(one)
    await world.fetch(
        f"insert into {table} select 'other', id, chunk_hash, occurrence, seq, content,"
        f" span_start, span_end, heading, embedding from {table} order by id limit 500"
    )


async def test_how_fast_a_build_was_is_kept(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    assert (await indexes.look(one)).rows_per_second is None
    await indexes.keep_rate(one, 1234.5)
    assert (await indexes.look(one)).rows_per_second == 1234.5
    assert (await indexes.look(world.articles)).rows_per_second is None


async def test_the_size_of_an_index_is_foreseen(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world, dimensions=512, storage="halfvec")
    await fill(world, one, 1_000)
    async with indexes.locked(one, "a test") as builder:
        await create(builder)
    size = (await indexes.look(one)).index_bytes
    assert size == pytest.approx(index_bytes(1_000, 512, "halfvec"), rel=0.25)


async def test_a_collection_whose_table_is_gone_is_named(
    world: PostgresWorld, indexes: PostgresIndexes
) -> None:
    one = await collection(world)
    await world.fetch(f"drop table {table_of(one)} cascade")
    with pytest.raises(StoreUnavailable, match=table_of(one)):
        await indexes.look(one)
    with pytest.raises(ConfigError, match=f"table {table_of(one)} of wiki is missing"):
        async with indexes.locked(one, "a test"):
            """Nobody comes here."""


async def test_the_server_tells_what_a_build_depends_on(indexes: PostgresIndexes) -> None:
    server = await indexes.server()
    assert server.shared_buffers_bytes >= MIB
    assert server.cache_bytes >= server.shared_buffers_bytes
    assert server.maintenance_workers >= 0


async def test_an_exact_search_may_take_longer_than_a_statement_of_the_pool(database) -> None:
    async with postgres_world(database) as world:
        one = await collection(world, dimensions=1024, storage="halfvec")
        await fill(world, one, 5_000)
    short = replace(database, statement_timeout_seconds=0.01, lock_timeout_seconds=0.01)
    pool = await Database.open(short)
    try:
        recall = await Readers(pool).recall(one, 3, 5)
    finally:
        await pool.close()
    assert recall is not None
    assert recall.share == 1
