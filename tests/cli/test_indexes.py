"""The commands of `embedfleet index` on a real PostgreSQL, and how they end."""

import asyncio
import signal
import sys
from contextlib import asynccontextmanager

import asyncpg
import numpy as np
import pytest

from tests.support.fleet import PATIENCE_SECONDS
from worker.adapters.pg_catalog import PostgresCatalog
from worker.adapters.pg_client import Database
from worker.adapters.pg_indexes import PostgresIndexes, table_of
from worker.adapters.pgvector_format import wire
from worker.core.model import Vector
from worker.core.vector_index import Place, Present

pytestmark = pytest.mark.real

CREATE = ("collections", "create", "docs", "--model", "m", "--dimensions", "8")
SMALL = ("--m", "4", "--ef-construction", "16", "--build-at-rows", "100")
GOOD = Present("hnsw", 4, 16)


async def fill(database: Database, name: str = "docs", rows: int = 200) -> None:
    """Store live documents of one chunk each."""
    one = await PostgresCatalog(database).collection(name)
    values = np.random.default_rng(1).normal(size=(rows, 8)).astype("<f4")
    vectors = wire([Vector(row.tobytes()) for row in values], 8, one.storage)
    async with database.connection() as connection:
        await connection.copy_records_to_table(
            table_of(one),
            schema_name=database.options.schema,
            records=[
                ("acme", f"{n:05}", f"{n:05}".encode(), 0, 0, "text", 0, 4, None, vector)
                for n, vector in enumerate(vectors)
            ],
        )
        await connection.execute(
            "insert into document (tenant, collection, id, version, order_topic,"
            " order_partition, order_offset, order_timestamp_ms, order_incarnation, revision,"
            f" deleted) select tenant, '{name}', id, 1, 't', 0, 0, 0, 0, 1, false"
            f" from {table_of(one)}"
        )


@pytest.fixture
async def docs(migrated, embedfleet_beside) -> PostgresIndexes:
    """A collection that is due for its index."""
    assert (await embedfleet_beside(*CREATE, *SMALL)).code == 0
    await fill(migrated)
    return PostgresIndexes(migrated)


async def found(database: Database, name: str = "docs") -> dict[Place, Present]:
    one = await PostgresCatalog(database).collection(name)
    return await PostgresIndexes(database).found(one)


async def test_what_is_said_at_its_creation_is_what_a_collection_should_have(
    migrated, embedfleet_beside
):
    created = (await embedfleet_beside(*CREATE, *SMALL, "--json")).json
    assert created["index"] == {
        "kind": "hnsw",
        "m": 4,
        "ef_construction": 16,
        "lists": None,
        "build_at_rows": 100,
    }
    shown = await embedfleet_beside("collections", "show", "docs")
    assert "index.build_at_rows: 100" in shown.out
    assert await found(migrated) == {}
    always = ("collections", "create", "at-once", *CREATE[3:], "--build-at-rows", "0")
    await embedfleet_beside(*always)
    assert await found(migrated, "at-once") == {Place.MAIN: Present("hnsw", 16, 64)}
    wide = ("exact", "--model", "m", "--dimensions", "9000")
    refused = await embedfleet_beside("collections", "create", *wide)
    assert (refused.code, "takes 1 to 4000 with an index" in refused.err) == (2, True)
    wide = (*wide, "--index", "none")
    assert (await embedfleet_beside("collections", "create", *wide)).code == 0


async def test_an_index_becomes_due_is_built_and_serves(docs, migrated, embedfleet_beside):
    status = await embedfleet_beside("index", "status", "--json")
    (row,) = status.json
    assert (status.code, row["state"], row["rows"]) == (1, "due", 200)
    assert (row["serves_readers"], row["found"]) == (None, [])
    shown = await embedfleet_beside("index", "status")
    assert "the index of docs is due: `embedfleet index build docs`" in shown.err
    advised = await embedfleet_beside("index", "advise")
    assert (advised.code, "! build the hnsw index: " in advised.out) == (1, True)
    built = await embedfleet_beside("index", "build", "--due", "--json")
    (one,) = built.json
    assert (built.code, one["collection"], one["did"]) == (0, "docs", ["built the index"])
    assert one["rows"] == 200
    assert await found(migrated) == {Place.MAIN: GOOD}
    status = await embedfleet_beside("index", "status", "docs", "--recall", "20", "--json")
    (row,) = status.json
    assert (status.code, row["state"]) == (0, "valid")
    assert row["found"] == [
        {
            "place": "main",
            "kind": "hnsw",
            "m": 4,
            "ef_construction": 16,
            "lists": None,
            "is_valid": True,
        }
    ]
    assert row["index_bytes"] > 0
    assert (row["recall"]["queries"], row["recall"]["k"]) == (20, 10)
    assert 0.5 < row["recall"]["share"] <= 1
    shown = await embedfleet_beside("index", "status", "--recall", "5", "--k", "3")
    assert "hnsw m=4 ef_construction=16 from 100 rows" in shown.out
    advised = await embedfleet_beside("index", "advise", "--json")
    assert (advised.code, advised.json["docs"][0]["what"]) == (0, "nothing")


async def test_building_again_does_nothing_and_a_rebuild_does(
    docs, migrated, embedfleet_beside
):
    await embedfleet_beside("index", "build", "docs")
    again = await embedfleet_beside("index", "build", "docs")
    assert (again.code, "nothing was done" in again.err) == (0, True)
    due = await embedfleet_beside("index", "build", "--due")
    assert (due.code, due.err) == (0, "no index is due\n")
    anew = await embedfleet_beside("index", "build", "docs", "--rebuild")
    assert "built the index that replaces it, dropped the index" in anew.err
    assert await found(migrated) == {Place.MAIN: GOOD}


async def test_another_index_is_said_and_then_built(docs, migrated, embedfleet_beside):
    await embedfleet_beside("index", "build", "docs")
    said = await embedfleet_beside("index", "set", "docs", "--m", "6", "--json")
    assert said.json["state"] == "differs"
    assert said.json["index"]["m"] == 6
    assert said.json["index"]["ef_construction"] == 16
    assert await found(migrated) == {Place.MAIN: GOOD}
    # Not by itself: it may take hours, and readers have one.
    assert "no index is due" in (await embedfleet_beside("index", "build", "--due")).err
    await embedfleet_beside("index", "build", "docs")
    assert await found(migrated) == {Place.MAIN: GOOD._replace(m=6)}
    lists = ("--index", "ivfflat", "--lists", "5", "--build-at-rows", "1000")
    shown = await embedfleet_beside("index", "set", "docs", *lists)
    assert "ivfflat lists=5 from 1000 rows; its index now: differs" in shown.err
    await embedfleet_beside("index", "build", "docs")
    assert await found(migrated) == {Place.MAIN: Present("ivfflat", lists=5)}


async def test_an_index_is_dropped_for_good_and_only_with_yes(
    docs, migrated, embedfleet_beside
):
    await embedfleet_beside("index", "build", "docs")
    asked = await embedfleet_beside("index", "drop", "docs")
    assert (asked.code, "say --yes" in asked.err) == (1, True)
    assert await found(migrated) == {Place.MAIN: GOOD}
    gone = await embedfleet_beside("index", "drop", "docs", "--yes", "--json")
    assert (gone.code, gone.json[0]["done"]) == (0, True)
    assert await found(migrated) == {}
    # Or a worker would build it again.
    assert (await embedfleet_beside("index", "status", "--json")).json[0]["state"] == "none"
    asked = await embedfleet_beside("index", "drop", "docs")
    assert asked.code == 1
    assert asked.err == (
        "docs has no index, and none would be built before `embedfleet index set` says so: "
        "say --yes\n"
    )
    again = await embedfleet_beside("index", "drop", "docs", "--yes")
    assert again.code == 0
    assert again.err == (
        "docs has no index, and none is built before `embedfleet index set` says so\n"
    )
    refused = await embedfleet_beside("index", "build", "docs")
    assert (refused.code, "embedfleet index set docs --index hnsw" in refused.err) == (2, True)
    kept = await embedfleet_beside("index", "set", "docs", "--ef-construction", "20")
    assert kept.err == (
        "docs should have: none; its index now: none\n"
        "kept for later: `embedfleet index set docs --index hnsw` gives it an index\n"
    )
    back = await embedfleet_beside("index", "set", "docs", "--index", "hnsw", "--json")
    assert (back.json["index"]["m"], back.json["state"]) == (4, "due")
    assert back.json["index"]["ef_construction"] == 20


async def test_a_drop_that_was_ended_half_way_is_repaired(docs, migrated, embedfleet_beside):
    """It leaves an index that is not valid, where there should be none."""
    for repair in (("docs",), ("--due",)):
        await embedfleet_beside("index", "set", "docs", "--index", "hnsw")
        await embedfleet_beside("index", "build", "docs")
        await embedfleet_beside("index", "set", "docs", "--index", "none")
        async with migrated.connection() as connection:
            await connection.execute(
                "update pg_index set indisvalid = false"
                " where indexrelid = 'chunk_1_1_embedding'::regclass"
            )
        status = await embedfleet_beside("index", "status")
        assert (status.code, "`embedfleet index build docs`" in status.err) == (1, True)
        ended = await embedfleet_beside("index", "build", *repair)
        assert (ended.code, ended.err) == (
            0,
            "docs: dropping an index\ndocs: dropped the index\n",
        )
        assert await found(migrated) == {}


async def test_one_whose_index_cannot_be_built_keeps_no_other_from_its_own(
    docs, migrated, embedfleet_beside
):
    assert (await embedfleet_beside(*CREATE[:2], "a-first", *CREATE[3:], *SMALL)).code == 0
    await fill(migrated, "a-first")
    async with migrated.connection() as connection:
        await connection.execute("create table chunk_2_1_embedding ()")
    ended = await embedfleet_beside("index", "build", "--due")
    assert (ended.code, '"chunk_2_1_embedding" already exists' in ended.err) == (2, True)
    assert await found(migrated) == {Place.MAIN: GOOD}
    assert await found(migrated, "a-first") == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build",), "name the collections whose index is to be built, or say --due"),
        (("build", "docs", "--due"), "not both"),
        (("build", "--due", "--rebuild"), "--rebuild is for collections that are named"),
        (("build", "dogs"), "there are: docs"),
        (("drop", "--yes"), "name the collections"),
        (("set", "docs"), "say what to change"),
        (("set", "docs", "--m", "1"), "m is 1: it must be 2 to 100"),
        (("set", "docs", "--index", "btree"), "btree"),
        (("set", "docs", "--index", "ivfflat"), "build_at_rows must be at least 1000"),
        (("status", "--recall", "0"), "--recall"),
        (("build", "docs", "--index.max-memory-bytes", "1"), "index.max_memory_bytes"),
    ],
)
async def test_what_cannot_be_is_refused_in_a_sentence(
    arguments, words, docs, embedfleet_beside
):
    ended = await embedfleet_beside("index", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert words in ended.err
    assert ended.err.count("\n") == 1


async def test_without_a_server_every_command_says_so(embedfleet_beside, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://postgres@127.0.0.1:1/postgres")
    for arguments in (("status",), ("advise",), ("build", "--due"), ("drop", "x", "--yes")):
        ended = await embedfleet_beside("index", *arguments)
        assert (ended.code, ended.out) == (2, "")
        assert "cannot be reached" in ended.err


async def test_without_collections_there_is_nothing_to_say(migrated, embedfleet_beside):
    for command in ("status", "advise"):
        ended = await embedfleet_beside("index", command)
        assert (ended.code, ended.err) == (0, "there are no collections\n")


async def test_doctor_tells_of_an_index_that_is_due(docs, embedfleet_beside):
    found = {one["check"]: one for one in (await embedfleet_beside("doctor", "--json")).json}
    assert found["index docs"]["status"] == "warn"
    assert found["index docs"]["hint"] == "embedfleet index build docs"
    await embedfleet_beside("index", "build", "docs")
    found = {one["check"]: one for one in (await embedfleet_beside("doctor", "--json")).json}
    assert (found["index docs"]["status"], found["index docs"]["detail"]) == ("ok", "valid")


# ---- a process that is ended while it builds ----


@asynccontextmanager
async def building(
    docs: PostgresIndexes, database: Database, what=("build", "docs"), waits="old snapshots"
):
    """Run `index build docs` as a process, until it waits for a transaction of ours."""
    other = await asyncpg.connect(database.options.url)
    process = None
    try:
        async with other.transaction(isolation="repeatable_read"):
            schema = database.options.schema
            await other.execute(f'select count(*) from "{schema}".chunk_1_1')
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", "index", *what),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            one = await PostgresCatalog(database).collection("docs")
            async with asyncio.timeout(60):
                while True:
                    progress = await docs.progress(one)
                    if progress is not None and waits in progress.phase:
                        break
                    assert process.returncode is None
            yield process
    finally:
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        await other.close()


async def nobody_builds(docs: PostgresIndexes, database: Database) -> None:
    one = await PostgresCatalog(database).collection("docs")
    async with asyncio.timeout(20):
        while (await docs.look(one)).holder is not None:
            pass


async def test_ctrl_c_ends_the_build_on_the_server_and_the_next_call_repairs(
    docs, migrated, embedfleet_beside
):
    async with building(docs, migrated) as process:
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert process.returncode == 130
        assert b"interrupted: " in said
        assert b"Traceback" not in said
        # Nothing is left to wait for: it was cancelled, not left behind.
        one = await PostgresCatalog(migrated).collection("docs")
        assert (await docs.look(one)).holder is None
    status = await embedfleet_beside("index", "status", "--json")
    assert (status.code, status.json[0]["state"]) == (1, "invalid")
    built = await embedfleet_beside("index", "build", "docs", "--json")
    assert built.json[0]["did"] == ["dropped the index", "built the index"]
    assert await found(migrated) == {Place.MAIN: GOOD}


async def test_ctrl_c_ends_a_drop_and_the_next_call_goes_on(docs, migrated, embedfleet_beside):
    assert (await embedfleet_beside("index", "build", "docs")).code == 0
    what, waits = ("drop", "docs", "--yes"), "waiting for a transaction's end"
    async with building(docs, migrated, what, waits) as process:
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        assert process.returncode == 130
        assert b"interrupted: there should be no index any more" in said
    again = await embedfleet_beside("index", "drop", "docs", "--yes")
    assert again.code == 0
    assert "is gone, and none is built again" in again.err
    assert await found(migrated) == {}


async def test_a_build_that_was_killed_ends_on_the_server_and_the_next_call_repairs(
    docs, migrated, embedfleet_beside
):
    async with building(docs, migrated) as process:
        second = await embedfleet_beside("index", "build", "docs")
        assert (second.code, "is being worked on by embedfleet index build" in second.err) == (
            2,
            True,
        )
        process.kill()
        await nobody_builds(docs, migrated)
    assert await found(migrated) == {Place.MAIN: GOOD._replace(is_valid=False)}
    built = await embedfleet_beside("index", "build", "--due", "--json")
    assert built.json[0]["did"] == ["dropped the index", "built the index"]
    assert await found(migrated) == {Place.MAIN: GOOD}
