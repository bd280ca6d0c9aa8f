"""Workers build the indexes that are due, beside their work, and only when they have time."""

import asyncio

import asyncpg
import pytest

from tests.support.fleet import DIMENSIONS, Fleet, upsert
from worker.core.vector_index import VectorIndex

pytestmark = pytest.mark.real

INDEX = VectorIndex(m=4, ef_construction=16, build_at_rows=20)
OFTEN = {"EMBEDFLEET_INDEX_CHECK_SECONDS": "0.2"}


async def indexed_articles(fleet: Fleet) -> None:
    """Say that the articles should have an index."""
    await fleet.sql.execute(
        "update collection set index_kind = 'hnsw', index_m = 4, index_ef_construction = 16,"
        " index_build_at_rows = 20"
    )


async def indexes(fleet: Fleet) -> list[tuple[str, bool]]:
    rows = await fleet.sql.fetch(
        "select c.relname, i.indisvalid from pg_index i join pg_class c on c.oid = i.indexrelid"
        " where i.indrelid = 'chunk_1_1'::regclass and not i.indisprimary"
    )
    return [tuple(row) for row in rows]


async def has_index(fleet: Fleet) -> bool:
    return await indexes(fleet) == [("chunk_1_1_embedding", True)]


def documents(first: int, count: int) -> list[tuple]:
    return [upsert(f"d{n}", 1, f"text {n}") for n in range(first, first + count)]


async def test_a_collection_gets_its_index_when_it_has_enough_chunks(make_fleet) -> None:
    fleet = await make_fleet(partitions=2)
    await indexed_articles(fleet)
    await fleet.publish(documents(0, 19))
    workers = [await fleet.start(**OFTEN) for _ in range(2)]
    await fleet.settled()
    assert await indexes(fleet) == []
    await fleet.publish(documents(19, 1))
    await fleet.until(lambda: has_index(fleet))
    await fleet.publish(documents(20, 50))
    await fleet.settled()
    assert await fleet.stored() == await fleet.expected()
    for worker in workers:
        assert await fleet.stop(worker) == 0
    # One of them did it, once.
    built = [worker.actions()["index_built"] for worker in workers]
    assert sorted(built) == [0, 1]
    assert sum(worker.actions()["index_failed"] for worker in workers) == 0


async def test_the_index_of_a_first_load_is_not_built_before_the_load_is_done(
    make_fleet,
) -> None:
    fleet = await make_fleet(partitions=1)
    await indexed_articles(fleet)
    await fleet.publish(documents(0, 200))
    fleet.provider.latency_seconds = 0.2
    worker = await fleet.start(
        **OFTEN,
        # What a worker that has caught up may still have to do.
        EMBEDFLEET_QUEUE_MAX_DOCUMENTS="20",
        EMBEDFLEET_QUEUE_MAX_IN_FLIGHT="20",
        EMBEDFLEET_KAFKA_MAX_POLL_RECORDS="10",
    )

    async def has_enough():
        return len(await fleet.stored()) >= 60

    await fleet.until(has_enough)
    assert await indexes(fleet) == []
    await fleet.until(lambda: has_index(fleet))
    assert len(await fleet.stored()) > 150
    assert await fleet.stop(worker) == 0


async def test_a_worker_that_is_killed_or_stopped_while_it_builds_leaves_it_to_the_next(
    make_fleet,
) -> None:
    fleet = await make_fleet(partitions=1)
    await indexed_articles(fleet)
    await fleet.publish(documents(0, 30))
    other = await asyncpg.connect(fleet.database.url)
    async with other.transaction(isolation="repeatable_read"):
        await other.execute("select count(*) from pg_class")
        for end in (fleet.crash, fleet.stop):
            worker = await fleet.start(may_die=True, **OFTEN)
            await fleet.until(lambda: _waits(fleet))
            await end(worker)
            await fleet.until(lambda: _nobody_builds(fleet))
            assert await indexes(fleet) == [("chunk_1_1_embedding", False)]
    await other.close()
    worker = await fleet.start(**OFTEN)
    await fleet.until(lambda: has_index(fleet))
    line = await worker.logged("index_built")
    assert line["did"] == ["dropped the index", "built the index"]
    assert await fleet.stop(worker) == 0


async def _waits(fleet: Fleet) -> bool:
    return await fleet.sql.fetchval(
        "select exists (select from pg_stat_progress_create_index"
        " where relid = 'chunk_1_1'::regclass and phase like 'waiting for old snapshots%')"
    )


async def _nobody_builds(fleet: Fleet) -> bool:
    return not await fleet.sql.fetchval(
        "select exists (select from pg_stat_progress_create_index"
        " where relid = 'chunk_1_1'::regclass)"
    )


async def test_a_worker_may_leave_it_to_an_operator(make_fleet) -> None:
    fleet = await make_fleet(partitions=1)
    await indexed_articles(fleet)
    await fleet.publish(documents(0, 30))
    patient = await fleet.start(**OFTEN, EMBEDFLEET_INDEX_BUILD_DUE="false")
    await fleet.settled()
    await fleet.pass_time(1)
    assert await indexes(fleet) == []
    assert await fleet.stop(patient) == 0


async def test_a_worker_that_may_not_build_says_so_and_goes_on(make_fleet) -> None:
    """A role that does not own the tables may write to them, and build no index."""
    fleet = await make_fleet(partitions=1)
    await indexed_articles(fleet)
    schema = fleet.database.schema
    await fleet.sql.execute(
        f"create role {schema} login password 'secret';"
        f"grant usage on schema {schema} to {schema};"
        f"grant all on all tables in schema {schema} to {schema};"
        f"revoke create on schema {schema} from {schema}"
    )
    try:
        url = fleet.database.url.replace("postgres:", f"{schema}:", 1)
        head, _, tail = url.partition("@")
        url = f"{head.rpartition(':')[0]}:secret@{tail}"
        await fleet.publish(documents(0, 30))
        worker = await fleet.start(**OFTEN, EMBEDFLEET_DATABASE_URL=url)
        line = await worker.logged("index_failed", 2)
        assert "must be owner" in line["error"]
        await fleet.settled()
        assert await fleet.stored() == await fleet.expected()
        assert await fleet.stop(worker) == 0
    finally:
        await fleet.sql.execute(f"drop owned by {schema}; drop role {schema}")


async def test_searches_are_served_while_an_index_is_built_and_after(make_fleet) -> None:
    fleet = await make_fleet(partitions=1)
    await indexed_articles(fleet)
    await fleet.publish(documents(0, 30))
    worker = await fleet.start(**OFTEN)
    vector = str([1.0] * DIMENSIONS)
    nearest = (
        'select document_id from "articles_chunks" where tenant = $1'
        " order by embedding <=> $2::text::vector limit 3"
    )
    await fleet.settled()
    async with asyncio.timeout(30):
        while not await has_index(fleet):
            assert len(await fleet.sql.fetch(nearest, "acme", vector)) == 3
    assert len(await fleet.sql.fetch(nearest, "acme", vector)) == 3
    assert await fleet.stop(worker) == 0
