"""An export reads what readers of the view see, at one moment, whoever writes meanwhile."""

import errno
import json
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tests.support.exports import SUBJECT
from tests.support.store_changes import ARTICLES, chunk, key, upsert, write
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.adapters import pg_export
from worker.adapters.pg_export import ExportSnapshot
from worker.adapters.pg_patient import PatientReader
from worker.core.exports import Part, PartitionPosition
from worker.core.model import Base, Collection, Partition, Progress, Vector
from worker.errors import ConfigError, StoreUnavailable

pytestmark = pytest.mark.real

AWKWARD = 'quo"te \\ back\\\\slash \n new\r\nline \t \x01 \u2028 \U0001f600 é %s {x} $1 \\N \\.'


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


def snapshot_of(world: PostgresWorld, collection: Collection | None = None, **settings):
    collection = collection or world.articles
    subject = msgspec.structs.replace(
        SUBJECT,
        collection=collection.name,
        dimensions=collection.dimensions,
        storage=collection.storage,
        **settings,
    )
    return ExportSnapshot.open(world.database.options, collection, subject)


class Taken:
    """What was handed out, and which documents were reached after how many rows."""

    def __init__(self, dimensions: int, dtype: str) -> None:
        self.rows, self.documents, self.reached = [], 0, []
        self._parts = [np.empty((0, dimensions), dtype)]

    def take(self, rows) -> None:
        self.rows += [json.loads(line) for line in rows.lines.decode().split("\n")[:-1]]
        self.documents += rows.documents
        self._parts.append(np.array(rows.vectors))
        assert len(self._parts[-1]) == rows.rows

    async def reach(self, key) -> None:
        self.reached.append((key, len(self.rows)))

    @property
    def vectors(self):
        return np.concatenate(self._parts)


async def everything(snapshot, after=None, *, dimensions=2, dtype="<f4") -> Taken:
    taken = Taken(dimensions, dtype)
    await snapshot.read(after, taken.take, taken.reach)
    return taken


async def exported(world, **settings) -> Taken:
    async with snapshot_of(world, **settings) as snapshot:
        return await everything(snapshot)


async def seen(world: PostgresWorld) -> list[tuple]:
    """What a reader of the view sees, in the order of an export."""
    rows = await world.fetch(
        "select tenant, document_id, seq, version, embedding::text from articles_chunks"
        " order by tenant, document_id, seq"
    )
    return [(*row[:4], tuple(json.loads(row[4]))) for row in rows]


def told(taken: Taken) -> list[tuple]:
    names = ("tenant", "document_id", "seq", "version")
    rows = [tuple(row[name] for name in names) for row in taken.rows]
    vectors = map(tuple, taken.vectors.tolist())
    return [(*row, vector) for row, vector in zip(rows, vectors, strict=True)]


async def put_some(world: PostgresWorld) -> None:
    claim = await world.claim()
    for number, (tenant, document) in enumerate(
        [("b", "1"), ("a", "2"), ("a", "10"), ("a", "é"), ("B", "1"), ("a", "Z")]
    ):
        texts = [f"{tenant}{document} {seq}" for seq in range(number)]
        await world.put(claim, of=key(document, tenant=tenant), version=number, texts=texts)


async def test_rows_are_those_of_the_view_in_the_order_of_their_keys(world):
    await put_some(world)
    taken = await exported(world)
    assert told(taken) == await seen(world)
    assert len(taken.rows) == 15
    assert taken.documents == 5  # one has no chunk
    assert taken.reached == [(None, 15)]


async def test_what_readers_do_not_see_is_not_exported(world):
    claim = await world.claim()
    for name, version in (("live", 11), ("deleted", 3), ("reached", 10), ("flagged", 12)):
        await world.put(claim, of=key(name), version=version, texts=[name])
    await world.drop(claim, of=key("deleted"), version=4, offset=1)
    await world.fetch("update document set deleted = true where id = 'flagged'")
    await world.fetch(
        "insert into scope_tombstone values ('tenant', 'articles', 10, 't', 0, 0, 0, 0)"
    )
    taken = await exported(world)
    assert [row["document_id"] for row in taken.rows] == ["live"]
    assert told(taken) == await seen(world)


async def test_a_row_says_all_that_an_index_job_needs(world):
    claim = await world.claim()
    change = replace(
        upsert(world.articles, Base(), version=7, texts=["one", "two"]),
        metadata=b'{"tags": ["a", {"b": null}]}',
        content_type="text/markdown",
        occurred_at_ms=1_700_000_000_123,
        insert=(chunk("one", 0, heading="A > B"), chunk("two", 1)),
    )
    await world.store.apply([write(change, claim)])
    first, second = (await exported(world)).rows
    stored_at = first.pop("stored_at")
    assert stored_at.endswith("+00:00")
    assert first == {
        "tenant": "tenant",
        "document_id": "document",
        "seq": 0,
        "version": 7,
        "chunk_hash": change.insert[0].id.hash.hex(),
        "heading": "A > B",
        "span_start": 0,
        "span_end": 3,
        "content_type": "text/markdown",
        "metadata": {"tags": ["a", {"b": None}]},
        "occurred_at": "2023-11-14T22:13:20.123+00:00",
    }
    assert (second["seq"], second["heading"], second["span_start"]) == (1, None, 10)
    with_content = (await exported(world, content=True, metadata="parquet")).rows
    assert [row["content"] for row in with_content] == ["one", "two"]
    assert json.loads(with_content[0]["metadata"]) == first["metadata"]


async def test_no_text_breaks_a_line(world):
    claim = await world.claim()
    awkward = AWKWARD.replace("\x01", "")
    change = replace(
        upsert(world.articles, Base(), version=1, of=key(awkward, tenant=awkward)),
        metadata=json.dumps({awkward: [awkward]}).encode(),
        insert=(chunk(AWKWARD, heading=AWKWARD),),
    )
    await world.store.apply([write(change, claim)])
    for tenant in (None, awkward):
        (row,) = (await exported(world, content=True, tenant=tenant)).rows
        assert (row["tenant"], row["document_id"]) == (awkward, awkward)
        assert (row["content"], row["heading"]) == (AWKWARD, AWKWARD)
        assert row["metadata"] == {awkward: [awkward]}


@pytest.mark.parametrize("storage", ["halfvec", "vector"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
async def test_vectors_are_exactly_what_is_stored(storage, dtype, world):
    settings = replace(ARTICLES, name="wiki", dimensions=5, storage=storage)
    collection = await world.catalog.create(settings)
    wanted = np.random.default_rng(1).normal(size=(40, 5)).astype("<f2").astype("<f4")
    claim, writes = await world.claim(), []
    for number, numbers in enumerate(wanted):
        of = key(f"{number:02}", collection="wiki")
        change = upsert(collection, Base(), version=1, of=of, texts=[f"{number}"])
        vectors = {change.insert[0].id: Vector(numbers.tobytes())}
        writes.append(write(change, claim)._replace(vectors=vectors))
    await world.store.apply(writes)
    async with snapshot_of(world, collection, dtype=dtype) as snapshot:
        taken = await everything(snapshot, dimensions=5, dtype=dtype)
    assert taken.vectors.dtype == np.dtype(dtype)
    assert np.array_equal(taken.vectors, wanted.astype(dtype))


async def test_a_vector_that_float16_cannot_hold_is_refused_in_one_sentence(world):
    settings = replace(ARTICLES, name="wiki", dimensions=1, storage="vector")
    collection = await world.catalog.create(settings)
    change = upsert(collection, Base(), version=1, of=key(collection="wiki"), texts=["x"])
    vectors = {change.insert[0].id: Vector(np.float32([1e9]).tobytes())}
    claim = await world.claim()
    await world.store.apply([write(change, claim)._replace(vectors=vectors)])
    async with snapshot_of(world, collection, dtype="float16") as snapshot:
        with pytest.raises(ConfigError, match="range of float16"):
            await everything(snapshot)


async def test_a_tenant_gets_its_own_rows_and_no_others(world):
    await put_some(world)
    taken = await exported(world, tenant="a")
    assert told(taken) == [row for row in await seen(world) if row[0] == "a"]
    assert {row["tenant"] for row in taken.rows} == {"a"}
    assert (await exported(world, tenant="nobody")).rows == []


# ---- one moment ----


async def test_writers_go_on_and_the_export_does_not_see_them(world):
    await put_some(world)
    before, claim = await seen(world), await world.claim()
    async with snapshot_of(world) as snapshot:
        await world.put(claim, of=key("2", tenant="a"), version=50, texts=["new", "newer"])
        await world.put(claim, of=key("new", tenant="a"), version=1, texts=["new"])
        await world.drop(claim, of=key("1", tenant="B"), version=50)
        assert told(await everything(snapshot)) == before
        assert told(await everything(snapshot)) == before
        async with snapshot_of(world) as later:
            assert told(await everything(later)) == await seen(world) != before


async def test_a_table_cannot_be_dropped_under_an_export(world):
    await put_some(world)
    async with snapshot_of(world) as snapshot:
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            await drop_impatiently(world)
        assert len((await everything(snapshot)).rows) == 15


async def drop_impatiently(world: PostgresWorld) -> None:
    async with world.database.transaction() as connection:
        await connection.execute("set local lock_timeout = 50")
        await connection.execute("drop table chunk_1_1 cascade")


async def test_the_moment_says_up_to_which_event_it_is(world):
    claims = world.claims
    for number, offset in ((1, 40), (0, 7)):
        claim = await world.claim(Partition("documents", number))
        await claims.begin(claim, 0)
        await claims.save_progress({claim: Progress(offset)})
    await world.renew_topic(Partition("documents", 1), 3)
    async with snapshot_of(world) as snapshot:
        await claims.save_progress({claim: Progress(99)})
        moment = snapshot.moment
    position = {"group": "group", "topic": "documents"}
    assert moment.partitions == (
        PartitionPosition(**position, partition=0, incarnation=0, next_offset=7),
        PartitionPosition(**position, partition=1, incarnation=3, next_offset=40),
    )
    assert await world.fetchval(f"select pg_snapshot_xmax('{moment.xids}')::text::int > 0")
    assert await world.fetchval(f"select '{moment.wal_lsn}'::pg_lsn < pg_current_wal_lsn()")


async def test_a_collection_that_has_changed_since_it_was_looked_up_is_not_exported(world):
    await world.fetch("update collection set generation = 2")
    with pytest.raises(ConfigError, match="'articles' was changed just now"):
        async with snapshot_of(world):
            raise AssertionError
    await world.fetch("drop table chunk_1_1 cascade")
    with pytest.raises(StoreUnavailable, match="chunk_1_1"):
        async with snapshot_of(world):
            raise AssertionError


# ---- slices ----


@pytest.mark.parametrize("blocks_ahead", [1, 8])
async def test_slices_are_read_ahead_and_handed_out_in_order(blocks_ahead, world, monkeypatch):
    monkeypatch.setattr(pg_export, "SLICE_BYTES", 2_000)  # three rows
    monkeypatch.setattr(pg_export, "BLOCK_BYTES", 100)
    monkeypatch.setattr(pg_export, "BLOCKS_AHEAD", blocks_ahead)
    await put_some(world)
    claim = await world.claim()
    texts = [f"{number}" for number in range(20)]
    await world.put(claim, of=key("large", tenant="a"), version=1, texts=texts)
    async with snapshot_of(world) as snapshot:
        whole = await everything(snapshot)
        assert told(whole) == await seen(world)
        assert len(whole.reached) > 3
        for document, rows in whole.reached[:-1]:
            last = whole.rows[rows - 1]
            assert document == (last["tenant"], last["document_id"])
            rest = await everything(snapshot, document)
            assert told(rest) == told(whole)[rows:]
    assert whole.reached[-1] == (None, 35)


async def test_what_is_raised_where_rows_are_taken_ends_the_export_as_it_is(world):
    await put_some(world)

    def full(_rows) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with snapshot_of(world) as snapshot:
        with pytest.raises(OSError, match="No space left") as caught:
            await snapshot.read(None, full, None)
    assert caught.value.errno == errno.ENOSPC


async def test_the_rows_of_a_slice_are_looked_up_by_key_wherever_it_ends(world):
    """
    The server thought one row to be behind the last keys, and read all of them once for each.

    So the plan does not depend on what it thinks.
    """
    await world.fetch(
        "insert into document select 't' || n % 3, 'articles', n::text, 1, 'd', 0, 0, 0, 0,"
        " null, null, null, null, null, 1, false from generate_series(1, 3000) n"
    )
    await world.fetch(
        "insert into chunk_1_1 select tenant, id, '', seq, seq, '', 0, 0, null, '[1,2]'"
        " from document cross join generate_series(0, 3) seq"
    )
    await world.fetch("analyze")
    async with snapshot_of(world) as snapshot:
        for part in (
            Part(None, None),
            Part(None, ("t0", "3")),
            Part(("t1", "2"), ("t1", "9")),
            Part(("t2", "998"), None),
        ):
            query, arguments = snapshot._rows_of(part)
            rows = await snapshot._readers.leader.fetch(f"explain {query}", *arguments)
            plan = "\n".join(row[0] for row in rows)
            assert "Merge Join" in plan
            assert "Index Scan using chunk_1_1_pkey on chunk_1_1 c" in plan
            assert "Index Scan using document_pkey on document d" in plan
            assert "Nested Loop" not in plan


# ---- digests ----


async def digest(world: PostgresWorld, after=None, upto=None, **settings):
    async with snapshot_of(world, **settings) as snapshot:
        return await snapshot.digest(Part(after, upto))


async def test_a_digest_names_the_documents_of_a_part_as_they_are(world):
    await put_some(world)
    whole, half = await digest(world), ("a", "2")
    parts = [await digest(world, None, half), await digest(world, half, None)]
    assert [part.documents for part in parts] == [3, 3]
    assert whole.documents == 6
    assert sum(part.hashes for part in parts) % 2**64 == whole.hashes
    assert (await digest(world, tenant="a")).documents == 4
    assert await digest(world) == whole


async def test_any_write_of_a_document_changes_the_digest_of_its_part_alone(world):
    await put_some(world)
    claim, one = await world.claim(), key("2", tenant="a")
    bounds = ((None, ("a", "10")), (("a", "10"), ("a", "2")), (("a", "2"), None))
    before = [await digest(world, *bound) for bound in bounds]

    async def metadata_only():
        base = await world.base(one)
        change = upsert(world.articles, base, version=21, of=one, texts=["x"], metadata=b"{}")
        await world.store.apply([write(change, claim)])

    for change in (
        lambda: world.put(claim, of=one, version=20, texts=["x"]),
        metadata_only,
        lambda: world.fetch(
            "update document set revision = 99 where (tenant, id) = ('a', '2')"
        ),
        lambda: world.fetch("update document set version = 22 where (tenant, id) = ('a', '2')"),
        lambda: world.drop(claim, of=one, version=22, offset=1),
        lambda: world.put(claim, of=one, version=23, texts=["x"]),
        lambda: world.fetch(
            "insert into scope_tombstone values ('a', 'articles', 23, 't', 0, 0, 0, 0)"
        ),
    ):
        await change()
        now = [await digest(world, *bound) for bound in bounds]
        assert now[1] != before[1]
        before[1] = now[1]
    assert now[1].documents == 0


async def test_other_collections_do_not_count(world):
    await put_some(world)
    before = await digest(world)
    wiki = await world.catalog.create(replace(ARTICLES, name="wiki"))
    change = upsert(wiki, Base(), version=1, of=key("2", tenant="a", collection="wiki"))
    await world.store.apply([write(change, await world.claim())])
    assert await digest(world) == before


async def test_what_is_removed_and_stored_again_is_not_what_it_was(world):
    """Its revision begins at 1 again; the time tells."""
    claim, one = await world.claim(), key("2", tenant="a")
    await world.put(claim, of=one, version=1, texts=["x"])
    before = await digest(world)
    await world.fetch("delete from chunk_1_1")
    await world.fetch("delete from document")
    await world.put(claim, of=one, version=1, texts=["x"])
    assert (await world.base(one)).document.revision == 1
    assert await digest(world) != before


# ---- the connection ----


async def test_a_connection_that_is_ended_is_told_as_such(world):
    await put_some(world)
    async with snapshot_of(world) as snapshot:
        await world.fetch(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where state = 'idle in transaction' and pid <> pg_backend_pid()"
        )
        with pytest.raises(StoreUnavailable):
            await everything(snapshot)


def reading(world: PostgresWorld, patience_seconds: float):
    options = replace(
        world.database.options,
        command_timeout_seconds=patience_seconds,
        statement_timeout_seconds=patience_seconds / 2,
        lock_timeout_seconds=patience_seconds / 2,
    )
    return PatientReader.open(options, "test", {})


async def test_a_server_that_falls_silent_is_not_waited_for(world):
    async def take(_data):
        raise AssertionError

    for call in (
        lambda reader: reader.fetch("select pg_sleep(60)"),
        lambda reader: reader.execute("select pg_sleep(60)"),
        lambda reader: reader.copy("select pg_sleep(60)", take=take),
    ):
        async with reading(world, 0.1) as reader:
            with pytest.raises(StoreUnavailable, match="did not answer in time"):
                await call(reader)


async def test_who_takes_rows_may_take_his_time(world):
    async with reading(world, 0.2) as reader, reading(world, 60) as other:
        count, taken = 200_000, 0

        async def take(data):
            nonlocal taken
            if not taken:
                await other.fetch("select pg_sleep(0.5)")
            taken += len(data)

        query = f"select n from generate_series(1, {count}) n"
        assert await reader.copy(query, take=take) == count
        assert taken == 11 + 8 + 10 * count + 2
