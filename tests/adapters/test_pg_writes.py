"""What a write touches on a real server, and what it leaves alone."""

from dataclasses import replace

import pytest

from schemas.events import ScopeDeleted
from tests.support.store_changes import (
    ARTICLES,
    GROUP,
    INDEXED,
    PARTITION,
    at,
    chunk,
    key,
    upsert,
    write,
)
from tests.support.store_letters import letter
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.core.model import Base, Collection, Progress, Rank
from worker.ports import LetterPlace, Query, Verdict

pytestmark = pytest.mark.real

APPLIED = Verdict.APPLIED
WIDE = replace(ARTICLES, name="wide", dimensions=1536, index=INDEXED)
OF = key(collection="wide")


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


@pytest.fixture
async def wide(world: PostgresWorld) -> Collection:
    """A collection with an index, whose vectors are stored out of line (3 KB)."""
    return await world.catalog.create(WIDE)


async def places(world: PostgresWorld) -> dict[str, tuple[str, int]]:
    """Where each chunk's row is, and which transaction wrote it."""
    rows = await world.fetch("select content, ctid::text, xmin::text::bigint from chunk_2_1")
    return {row[0]: (row[1], row[2]) for row in rows}


async def toast_rows(world: PostgresWorld) -> int:
    """Rows ever written out of line for the chunk table: vectors and long texts."""
    await world.fetch("select pg_stat_force_next_flush()")
    return await world.fetchval(
        "select n_tup_ins from pg_stat_all_tables where relid = ("
        "select reltoastrelid from pg_class where oid = 'chunk_2_1'::regclass)"
    )


async def updates(world: PostgresWorld, table: str) -> tuple[int, int]:
    """Updates of a table so far, and those of them that touched no index (HOT)."""
    await world.fetch("select pg_stat_force_next_flush()")
    (row,) = await world.fetch(
        "select n_tup_upd, n_tup_hot_upd from pg_stat_all_tables"
        f" where relid = '{table}'::regclass"
    )
    return tuple(row)


async def put(world: PostgresWorld, wide: Collection, version: int, *texts: str, **other):
    await put_as(world, wide, OF.id, *texts, version=version, **other)


async def put_as(
    world: PostgresWorld, wide: Collection, name: str, *texts: str, version: int = 1, **other
):
    claim, of = await world.claim(), OF._replace(id=name)
    change = upsert(
        wide, await world.base(of), of=of, version=version, offset=version, texts=texts, **other
    )
    (verdict,) = await world.store.apply([write(change, claim)])
    assert verdict is APPLIED


async def test_new_metadata_writes_no_chunk(world: PostgresWorld, wide: Collection) -> None:
    await put(world, wide, 1, "one", "two", metadata=b'{"a": 1}')
    before, toast = await places(world), await toast_rows(world)
    await put(world, wide, 2, "one", "two", metadata=b'{"a": 2}')
    assert await places(world) == before
    assert await toast_rows(world) == toast
    assert (await world.row(OF)).metadata == {"a": 2}


async def test_an_edit_writes_only_the_chunk_that_changed(
    world: PostgresWorld, wide: Collection
) -> None:
    await put(world, wide, 1, "one", "two", "three")
    before = await places(world)
    await put(world, wide, 2, "one", "zwei", "three")
    after = await places(world)
    assert set(after) == {"one", "zwei", "three"}
    assert (after["one"], after["three"]) == (before["one"], before["three"])


async def test_a_moved_chunk_touches_no_index_and_no_vector(
    world: PostgresWorld, wide: Collection
) -> None:
    await put(world, wide, 1, "one", "two")
    toast = await toast_rows(world)
    size = "select pg_relation_size('chunk_2_1_embedding')"
    index = await world.fetchval(size)
    for version in range(2, 12):
        texts = ("one", "two") if version % 2 else ("two", "one")
        await put(world, wide, version, *texts)
    assert await toast_rows(world) == toast
    assert await world.fetchval(size) == index
    assert await updates(world, "chunk_2_1") == (20, 20)


async def test_all_chunks_behind_a_new_one_move_without_their_texts_and_indexes(
    world: PostgresWorld, wide: Collection
) -> None:
    texts = [f"{number:02d} ".ljust(1200, "x") for number in range(20)]
    for other in range(30):  # pages are as full as they get
        await put_as(world, wide, f"other-{other}", *texts)
    await put(world, wide, 1, *texts)
    await put(world, wide, 2, "a new beginning", *texts)
    assert await updates(world, "chunk_2_1") == (20, 20)


async def test_new_versions_of_a_document_row_are_hot(
    world: PostgresWorld, wide: Collection
) -> None:
    for version in range(1, 12):
        await put(world, wide, version, "text")
    assert await updates(world, "document") == (10, 10)


async def test_a_document_that_shrinks_leaves_no_chunk_behind(
    world: PostgresWorld, wide: Collection
) -> None:
    await put(world, wide, 1, *(f"text {number}" for number in range(50)))
    await put(world, wide, 2, "text 7")
    assert list(await places(world)) == ["text 7"]
    await put(world, wide, 3)
    assert await places(world) == {}


async def test_rows_are_looked_up_by_their_keys_whatever_the_server_knows_of_the_tables(
    world: PostgresWorld,
) -> None:
    """A plan made for small tables is kept while they grow: it must not scan them."""
    claim, before = await world.claim(), await scans(world)
    for turn in range(12):
        if turn == 6:
            await world.fetch("analyze")
        names = [key(f"d{turn} {number}") for number in range(20)]
        for version in (1, 2):
            bases = await world.store.read([Query(of, "group", at(1)) for of in names])
            texts = ["same", f"version {version}"][:: (-1) ** version]
            changes = [
                upsert(
                    world.articles, base, of=of, version=version, offset=version, texts=texts
                )
                for of, base in zip(names, bases, strict=True)
            ]
            answers = await world.store.apply([write(found, claim) for found in changes])
            assert set(answers) == {APPLIED}
        await world.drop(claim, of=names[0], version=None, offset=1)
        await world.drop(claim, of=names[0], version=None, offset=9)
        scope = ScopeDeleted(tenant=f"tenant {turn}", version=1)
        await world.store.delete_scope(claim, scope, Rank(1, at(1)))
        await world.ledger.record([letter(claim, turn)])
        await world.ledger.mark_published(GROUP, [LetterPlace(*PARTITION, turn)])
        await world.claims.save_progress({claim: Progress(turn)})
    assert await scans(world) == before


async def test_a_row_that_was_purged_and_stored_again_is_another_base(
    world: PostgresWorld,
) -> None:
    """Same revision, same version: the record tells them apart."""
    claim = await world.claim()
    await world.put(claim, version=1, offset=1, texts=["x", "y"])
    late = upsert(world.articles, await world.base(), version=2, offset=9, texts=["x"])
    await world.fetch("delete from document")
    await world.fetch("delete from chunk_1_1")
    await world.put(claim, version=1, offset=5, texts=["z"])
    assert await world.store.apply([write(late, claim)]) == [Verdict.BASE_CHANGED]
    assert await world.texts() == ["z"]


async def test_chunks_whose_document_was_deleted_by_hand_are_in_nobodys_way(
    world: PostgresWorld,
) -> None:
    claim = await world.claim()
    await world.put(claim, version=1, texts=["x", "y"])
    await world.fetch("delete from document")
    changes = [
        upsert(world.articles, Base(), version=2, texts=["y", "z"]),
        upsert(world.articles, Base(), of=key("other"), version=1, texts=["new"]),
    ]
    assert await world.store.apply([write(found, claim) for found in changes]) == [APPLIED] * 2
    assert await world.texts(key("other")) == ["new"]
    assert {"y", "z"} <= set(await world.texts())


async def scans(world: PostgresWorld) -> dict[str, int]:
    """How often each table was scanned; building its indexes counts too."""
    await world.fetch("select pg_stat_force_next_flush()")
    rows = await world.fetch(
        "select relname, seq_scan from pg_stat_user_tables where schemaname = $1"
        " and relname not in ('collection', 'partition_claim', 'schema_migrations')",
        world.database.options.schema,
    )
    return dict(map(tuple, rows))


async def test_vectors_are_stored_big_endian(world: PostgresWorld) -> None:
    """pgvector takes the other order for good numbers too: only the way back shows it."""
    claim = await world.claim()
    await world.put(claim, version=1, texts=["text"])
    stored = await world.fetchval("select embedding::text from chunk_1_1")
    wanted = write(upsert(world.articles, Base(), version=1, texts=["text"]), claim)
    (vector,) = wanted.vectors.values()
    assert stored == str(list(memoryview(vector).cast("f"))).replace(".0", "").replace(" ", "")


async def test_what_two_collections_take_is_one_transaction(
    world: PostgresWorld, wide: Collection
) -> None:
    claim = await world.claim()
    changes = [
        upsert(wide, Base(), of=OF, version=1, texts=["wide"]),
        upsert(world.articles, Base(), version=1, texts=["narrow"]),
    ]
    assert await world.store.apply([write(found, claim) for found in changes]) == [APPLIED] * 2
    xmins = "select distinct xmin::text from document"
    assert len(await world.fetch(xmins)) == 1


async def test_a_large_call_is_written_and_read_back(world: PostgresWorld) -> None:
    claim = await world.claim()
    names = [key(f"d{number:04}") for number in range(1_000)]
    changes = [
        upsert(world.articles, Base(), of=of, version=1, order=at(number), texts=[of.id])
        for number, of in enumerate(names)
    ]
    answers = await world.store.apply([write(found, claim) for found in changes])
    assert set(answers) == {APPLIED}
    bases = await world.store.read([Query(of, "group") for of in names])
    assert [base.document.chunks[0].id for base in bases] == [chunk(of.id).id for of in names]
