"""A load without an index ends with all rows and a valid one, wherever it was ended before."""

import json
import re
import signal

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from tests.support.fleet import Fleet, WorkerProcess, upsert
from worker.core.vector_index import VectorIndex

pytestmark = pytest.mark.real

ALWAYS = VectorIndex(m=4, ef_construction=16, build_at_rows=0)
BULK = ("bulk-load", "--yes")
SLOWLY = {
    "EMBEDFLEET_QUEUE_MAX_DOCUMENTS": "20",
    "EMBEDFLEET_QUEUE_MAX_IN_FLIGHT": "20",
    "EMBEDFLEET_KAFKA_MAX_POLL_RECORDS": "10",
}
NO_UPKEEP = {"EMBEDFLEET_INDEX_BUILD_DUE": "false"}


@pytest.fixture
def loading(make_fleet):
    """A fleet whose articles have an index, and a topic of so many records."""

    async def make(records: int = 300, partitions: int = 2) -> Fleet:
        fleet = await make_fleet(partitions=partitions)
        await fleet.sql.execute(
            "update collection set index_kind = 'hnsw', index_m = 4,"
            " index_ef_construction = 16, index_build_at_rows = 0;"
            "create index chunk_1_1_embedding on chunk_1_1 using hnsw"
            " (embedding vector_cosine_ops) with (m = 4, ef_construction = 16)"
        )
        await fleet.publish(documents(0, records))
        return fleet

    return make


def documents(first: int, count: int) -> list[tuple]:
    return [upsert(f"d{n}", 1, f"text {n}") for n in range(first, first + count)]


async def bulk(fleet: Fleet, *more: str, **environment: str) -> WorkerProcess:
    return await fleet.start(command=(*BULK, *more), may_die=True, **environment)


def said(process: WorkerProcess) -> str:
    return process.log_file.read_text()


async def has_valid_index(fleet: Fleet) -> bool:
    rows = await fleet.sql.fetch(
        "select c.relname, i.indisvalid, c.reloptions from pg_index i"
        " join pg_class c on c.oid = i.indexrelid"
        " where i.indrelid = 'chunk_1_1'::regclass and not i.indisprimary"
    )
    return [tuple(row) for row in rows] == [
        ("chunk_1_1_embedding", True, ["m=4", "ef_construction=16"])
    ]


async def is_dropped(fleet: Fleet) -> bool:
    return await fleet.sql.fetchval("select to_regclass('chunk_1_1_embedding') is null")


async def ends_well(fleet: Fleet, process: WorkerProcess) -> None:
    """The load says that it is done, and the table is right and indexed."""
    assert await process.ended() == 0, said(process)
    assert await has_valid_index(fleet)
    assert await fleet.stored() == await fleet.expected()
    assert await fleet.committed() == await fleet.ends()
    await fleet.check_vectors()


def stored_at_least(fleet: Fleet, count: int):
    async def enough() -> bool:
        return len(await fleet.stored()) >= count

    return enough


async def test_a_load_drops_the_index_loads_all_and_builds_it(loading) -> None:
    fleet = await loading()
    fleet.provider.latency_seconds = 0.05
    process = await bulk(fleet, "--json")
    await fleet.until(lambda: is_dropped(fleet))
    await ends_well(fleet, process)
    told = json.loads("{" + said(process).partition("{")[2].rpartition("}")[0] + "}")
    assert (told["done"], told["records"], told["halted"]) == (True, 300, {})
    (built,) = told["indexes"]
    assert (built["collection"], built["rows"]) == ("articles", 300)
    assert "the group" in said(process)
    assert fleet.embedded_twice() == {}


async def test_a_load_of_nothing_builds_what_is_missing(loading) -> None:
    fleet = await loading(records=0)
    await fleet.sql.execute("drop index chunk_1_1_embedding")
    await ends_well(fleet, await bulk(fleet))


async def test_a_load_of_nothing_leaves_a_good_index_alone(loading) -> None:
    fleet = await loading(records=0)
    oid = "select 'chunk_1_1_embedding'::regclass::oid"
    before = await fleet.sql.fetchval(oid)
    process = await bulk(fleet)
    await ends_well(fleet, process)
    assert await fleet.sql.fetchval(oid) == before
    assert "nothing was done" in said(process)


async def test_a_collection_with_few_chunks_is_left_without_an_index(loading) -> None:
    fleet = await loading(records=20)
    await fleet.sql.execute("update collection set index_build_at_rows = 21")
    process = await bulk(fleet)
    assert await process.ended() == 0
    assert "articles: left without an index, which is due at 21 rows" in said(process)
    assert await is_dropped(fleet)
    assert await fleet.stored() == await fleet.expected()


async def test_what_comes_after_its_start_is_not_waited_for(loading) -> None:
    fleet = await loading()
    async with fleet.flow(documents(1_000, 10_000), size=2):
        process = await bulk(fleet)
        assert await process.ended() == 0, said(process)
    assert await has_valid_index(fleet)
    assert 300 <= len(await fleet.stored()) < 10_300


async def test_ordinary_workers_go_on_beside_it_and_share_the_work(loading) -> None:
    fleet = await loading(records=400, partitions=4)
    fleet.provider.latency_seconds = 1
    worker = await fleet.start(**SLOWLY)
    await worker.works_on(4)
    process = await bulk(fleet, **SLOWLY)
    await worker.works_on(2)
    fleet.provider.latency_seconds = 0
    await ends_well(fleet, process)
    await worker.works_on(4)
    assert worker.actions()["index_built"] == 0
    assert await fleet.stop(worker) == 0
    assert fleet.embedded_twice() == {}


async def test_a_load_whose_partitions_another_worker_has_waits_for_that_one(loading) -> None:
    """It has none itself, and is done when they are."""
    fleet = await loading(records=200, partitions=1)
    fleet.provider.latency_seconds = 0.1
    first = await fleet.start(**SLOWLY)
    await first.works_on(1)
    process = await bulk(fleet)
    await ends_well(fleet, process)
    assert await fleet.stop(first) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_a_load_that_is_ended_half_loaded_is_gone_on_with(loading, number) -> None:
    fleet = await loading()
    fleet.provider.latency_seconds = 0.2
    first = await bulk(fleet, **SLOWLY)
    await fleet.until(stored_at_least(fleet, 60))
    first.signal(number)
    code = await first.ended()
    assert code == (-9 if number == signal.SIGKILL else 130), said(first)
    if number != signal.SIGKILL:
        assert "the load has not ended" in said(first)
        assert "Traceback" not in said(first)
    assert await is_dropped(fleet)
    assert len(await fleet.stored()) < 300
    fleet.provider.latency_seconds = 0
    await ends_well(fleet, await bulk(fleet))


async def test_a_load_that_is_killed_when_the_index_is_dropped_is_gone_on_with(loading) -> None:
    fleet = await loading()
    first = await bulk(fleet, EMBEDFLEET_FAILPOINTS="before_claim:kill")
    assert await first.ended() == -signal.SIGKILL
    assert await is_dropped(fleet)
    assert await fleet.stored() == {}
    await ends_well(fleet, await bulk(fleet))


async def waits_for_us(fleet: Fleet, phase: str) -> bool:
    return await fleet.sql.fetchval(
        "select exists (select from pg_stat_progress_create_index"
        " where relid = 'chunk_1_1'::regclass and phase like $1)",
        f"{phase}%",
    )


async def nobody_holds_the_lock(fleet: Fleet) -> bool:
    return not await fleet.sql.fetchval(
        "select exists (select from pg_stat_activity"
        " where application_name = 'embedfleet bulk-load')"
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
async def test_a_load_that_is_ended_half_built_is_gone_on_with(loading, number) -> None:
    fleet = await loading()
    other = await asyncpg.connect(fleet.database.url)
    async with other.transaction(isolation="repeatable_read"):
        first = await bulk(fleet)
        await fleet.until(lambda: is_dropped(fleet))
        await other.execute("select count(*) from pg_class")
        await fleet.until(lambda: waits_for_us(fleet, "waiting for old snapshots"))
        first.signal(number)
        assert await first.ended() == (-9 if number == signal.SIGKILL else 130), said(first)
        assert ("call it again" in said(first)) == (number != signal.SIGKILL)
        await fleet.until(lambda: nobody_holds_the_lock(fleet))
        assert not await has_valid_index(fleet)
    await other.close()
    assert await fleet.committed() == await fleet.ends()
    await ends_well(fleet, await bulk(fleet))


async def test_a_load_builds_the_index_that_was_asked_for_while_it_loaded(loading) -> None:
    fleet = await loading()
    fleet.provider.latency_seconds = 0.1
    process = await bulk(fleet, **SLOWLY)
    await fleet.until(lambda: is_dropped(fleet))
    await fleet.sql.execute("update collection set index_m = 6")
    assert await process.ended() == 0, said(process)
    options = await fleet.sql.fetchval(
        "select reloptions from pg_class where relname = 'chunk_1_1_embedding'"
    )
    assert options == ["m=6", "ef_construction=16"]


async def test_what_a_killed_load_leaves_is_finished_by_ordinary_workers(loading) -> None:
    fleet = await loading()
    fleet.provider.latency_seconds = 0.2
    first = await bulk(fleet, **SLOWLY)
    await fleet.until(stored_at_least(fleet, 60))
    await fleet.crash(first)
    fleet.provider.latency_seconds = 0
    worker = await fleet.start(EMBEDFLEET_INDEX_CHECK_SECONDS="0.2")
    await fleet.settled()
    await fleet.until(lambda: has_valid_index(fleet))
    assert await fleet.stored() == await fleet.expected()
    assert await fleet.stop(worker) == 0


async def test_two_loads_of_one_collection_are_refused(loading) -> None:
    fleet = await loading()
    fleet.provider.latency_seconds = 2
    first = await bulk(fleet, **SLOWLY)
    await fleet.until(lambda: is_dropped(fleet))
    second = await bulk(fleet)
    assert await second.ended() == 2
    assert "is being worked on by embedfleet bulk-load" in said(second)
    assert "has not ended" not in said(second)
    fleet.provider.latency_seconds = 0
    await ends_well(fleet, first)


async def test_a_halted_partition_is_not_waited_for_and_is_told(loading) -> None:
    fleet = await loading(partitions=2)
    worker = await fleet.start(**NO_UPKEEP)
    await fleet.settled()
    assert await fleet.stop(worker) == 0
    await fleet.publish(documents(300, 100))
    # As if the log had been another one.
    await fleet.sql.execute(
        "update partition_progress set topic_id = gen_random_uuid() where partition = 0"
    )
    process = await bulk(fleet)
    assert await process.ended() == 1, said(process)
    assert re.search(
        rf"{fleet.topic}/0 is halted, \d+ records are left: .*re-created", said(process)
    )
    assert await has_valid_index(fleet)


async def test_the_records_of_a_topic_that_was_created_again_are_not_taken_for_done(
    loading,
) -> None:
    """However many of them there are: the table is as far as that in another log."""
    fleet = await loading(partitions=1)
    worker = await fleet.start(**NO_UPKEEP)
    await fleet.settled()
    assert await fleet.stop(worker) == 0
    await fleet.sql.execute("update partition_progress set topic_id = gen_random_uuid()")
    process = await bulk(fleet)
    assert await process.ended() == 1, said(process)
    assert f"{fleet.topic}/0 is halted, 300 records are left: the topic was re-cr" in said(
        process
    )
    assert await has_valid_index(fleet)


async def test_readers_who_would_miss_their_index_are_asked_for(loading) -> None:
    fleet = await loading(records=1)
    await fleet.sql.execute(
        "insert into chunk_1_1 select 'acme', n::text, n::text::bytea, 0, 0, 'x', 0, 1, null,"
        " '[1,2,3,4,5,6,7,8]' from generate_series(1, 10000) n"
    )
    process = await fleet.start(command=("bulk-load", "--json"), may_die=True)
    assert await process.ended() == 1
    assert '"rows": 10000' in said(process).partition('"would_miss": ')[2]
    assert "searches of articles (10,000 chunks) would compare all chunks" in said(process)
    assert "say --yes" in said(process)
    assert await has_valid_index(fleet)
    auto = ("bulk-load", "--auto", "--threshold", "1")
    process = await fleet.start(command=auto, may_die=True)
    assert await process.ended() == 0
    assert "nothing was done: articles has 10,000 chunks under an index" in said(process)
    assert await has_valid_index(fleet)


async def test_what_would_mean_nothing_is_refused(loading) -> None:
    fleet = await loading(records=1)
    bulk_load = ("bulk-load", "--threshold", "10")
    process = await fleet.start(command=bulk_load, may_die=True)
    assert await process.ended() == 2
    assert "--threshold is for --auto" in said(process)
    await fleet.sql.execute("update collection set index_kind = 'none'")
    process = await fleet.start(command=("bulk-load", "--collection", "articles"), may_die=True)
    assert await process.ended() == 2
    assert "articles should have no index, so there is none to do without" in said(process)


async def test_auto_loads_a_first_load_that_is_worth_it_and_no_other(loading) -> None:
    fleet = await loading()
    auto = ("bulk-load", "--auto", "--threshold")
    process = await fleet.start(command=(*auto, "301"), may_die=True)
    assert await process.ended() == 0
    assert "nothing was done: 300 records wait, fewer than the threshold of 301" in said(
        process
    )
    assert await fleet.stored() == {}
    fleet.provider.latency_seconds = 0.2
    process = await fleet.start(command=(*auto, "300"), may_die=True, **SLOWLY)
    await fleet.until(stored_at_least(fleet, 60))
    await fleet.crash(process)
    fleet.provider.latency_seconds = 0
    # What was begun is brought to its end, though less waits now than the threshold.
    await ends_well(fleet, await fleet.start(command=(*auto, "300"), may_die=True))


async def test_a_load_ends_behind_a_transaction_that_was_aborted(loading) -> None:
    """Its markers are offsets that no record has."""
    fleet = await loading(records=20, partitions=1)
    producer = AIOKafkaProducer(
        bootstrap_servers=fleet.kafka.bootstrap_servers, transactional_id=fleet.topic
    )
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(fleet.topic, b"{}", key=b"acme/articles/x")
    await producer.abort_transaction()
    await ends_well(fleet, await bulk(fleet))
    # One that is open is not waited for.
    await producer.begin_transaction()
    await producer.send_and_wait(fleet.topic, b"{}", key=b"acme/articles/x")
    process = await bulk(fleet)
    assert await process.ended() == 0, said(process)
    await producer.abort_transaction()
    await producer.stop()


async def test_a_load_goes_on_over_a_restart_of_its_connections(loading) -> None:
    """The lock goes with the connection that held it, and is taken again."""
    fleet = await loading()
    fleet.provider.latency_seconds = 0.2
    process = await bulk(fleet, **SLOWLY)
    await fleet.until(stored_at_least(fleet, 60))
    await fleet.sql.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where application_name like 'embedfleet%' and pid <> pg_backend_pid()"
    )
    await ends_well(fleet, process)


async def test_without_kafka_or_topics_nothing_is_dropped(loading) -> None:
    fleet = await loading(records=0)
    process = await bulk(fleet, EMBEDFLEET_KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert await process.ended() == 2
    process = await bulk(fleet, EMBEDFLEET_KAFKA_TOPICS="nowhere")
    assert await process.ended() == 2
    assert "run `embedfleet topics create`" in said(process)
    process = await bulk(fleet, "--collection", "dogs")
    assert await process.ended() == 2
    assert "there are: articles" in said(process)
    assert await has_valid_index(fleet)
