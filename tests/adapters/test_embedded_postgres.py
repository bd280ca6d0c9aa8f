import asyncpg
import pytest

from tests.support.orphans import outlives_its_parent
from tests.support.postgres import drop_schema
from tests.support.servers import open_folder
from worker.embedded.postgres import EmbeddedPostgres

pytestmark = pytest.mark.real

STARTER = """
import pathlib, sys
from tests.support.orphans import children
from worker.embedded.postgres import EmbeddedPostgres
postgres = EmbeddedPostgres(pathlib.Path(sys.argv[1]))
postgres.start()
print(postgres.pid, postgres._process._guard.pid, *children(postgres.pid), flush=True)
input()
"""


async def query(url, sql, **options):
    connection = await asyncpg.connect(url, **options)
    try:
        return [row[0] for row in await connection.fetch(sql)]
    finally:
        await connection.close()


@pytest.fixture(scope="module")
def postgres():
    with open_folder() as folder, EmbeddedPostgres(folder / "postgres") as server:
        yield server


async def test_the_run_s_server_compares_vectors(database):
    assert await query(database.url, "SELECT '[1,2]'::vector <-> '[1,4]'::vector") == [2]


async def test_the_schema_of_a_test_is_dropped_with_all_in_it(postgres):
    await query(postgres.url, "CREATE SCHEMA mine")
    await query(postgres.url, "CREATE TABLE mine.t AS SELECT 1 AS n")
    await drop_schema(postgres.url, "mine")
    assert await query(postgres.url, "SELECT 1 FROM pg_namespace WHERE nspname = 'mine'") == []


async def test_it_takes_as_many_connections_as_the_tests_need(postgres):
    assert await query(postgres.url, "SHOW max_connections") == ["300"]


async def test_it_asks_for_the_password(postgres):
    with pytest.raises(asyncpg.InvalidPasswordError):
        await query(postgres.url, "SELECT 1", password="wrong")


async def test_a_killed_server_recovers_what_was_committed_at_the_same_url(postgres):
    url, pid = postgres.url, postgres.pid
    await query(url, "CREATE TABLE kept AS SELECT 42 AS n")
    postgres.kill()
    with pytest.raises(ConnectionRefusedError):
        await query(url, "SELECT 1")
    postgres.start()
    assert (postgres.url, postgres.pid != pid) == (url, True)
    assert await query(url, "SELECT n FROM kept") == [42]


async def test_a_restored_snapshot_knows_nothing_of_what_came_after_it(postgres, tmp_path):
    await query(postgres.url, "CREATE TABLE history AS SELECT 1 AS n")
    postgres.snapshot(tmp_path / "snapshot")
    await query(postgres.url, "INSERT INTO history VALUES (2)")
    assert await query(postgres.url, "SELECT n FROM history ORDER BY n") == [1, 2]
    await query(postgres.url, "CREATE TABLE later (n int)")
    (later,) = await query(postgres.url, "SELECT pg_relation_filepath('later')")
    assert (postgres.folder / "data" / later).exists()
    postgres.restore(tmp_path / "snapshot")
    assert await query(postgres.url, "SELECT n FROM history") == [1]
    assert not (postgres.folder / "data" / later).exists()
    await query(postgres.url, "INSERT INTO history VALUES (3)")
    postgres.restore(tmp_path / "snapshot")
    assert await query(postgres.url, "SELECT n FROM history") == [1]


async def test_it_is_durable_only_when_asked(postgres):
    assert await query(postgres.url, "SHOW fsync") == ["off"]
    with open_folder() as folder, EmbeddedPostgres(folder, durable=True) as durable:
        assert await query(durable.url, "SHOW fsync") == ["on"]


def test_no_process_of_it_outlives_its_killed_parent():
    with open_folder() as folder:
        assert outlives_its_parent(STARTER, str(folder)) == []
