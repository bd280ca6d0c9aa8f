"""Readers of the view get the nearest chunks, by the index, and only of live documents."""

from dataclasses import replace

import asyncpg
import numpy as np
import pytest

from schemas.events import ScopeDeleted
from tests.support.store_changes import ARTICLES, INDEXED, at, chunk, key, vector_of
from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.adapters.pg_client import Database
from worker.adapters.pg_search import Search, nearest_query
from worker.adapters.pgvector_format import wire
from worker.config import DatabaseOptions
from worker.core.model import Base, ChangeSet, Claim, Collection, Rank, Vector
from worker.ports import Verdict, Write

pytestmark = pytest.mark.real

DIMENSIONS = 8
RARE_EVERY = 100
ROWS = 3_000
RANDOM = np.random.default_rng(1)


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


def random_vectors(count: int) -> list[Vector]:
    values = RANDOM.normal(size=(count, DIMENSIONS)).astype("<f4")
    return [Vector(row.tobytes()) for row in values]


def document(collection: Collection, name: str, tenant: str, **columns: object) -> ChangeSet:
    return ChangeSet(
        key=key(name, tenant=tenant, collection=collection.name),
        collection=collection,
        base=None,
        rank=Rank(1, at(0)),
        barrier=None,
        deleted=False,
        insert=(chunk(name, heading="Title"),),
        **columns,
    )


async def fill(world: PostgresWorld, collection: Collection, claim: Claim) -> list[Vector]:
    """Store documents of one chunk each; one of a hundred is the rare tenant's."""
    vectors = random_vectors(ROWS)
    writes = []
    for number, found in enumerate(vectors):
        tenant = "common" if number % RARE_EVERY else "rare"
        change = document(collection, f"{number:05}", tenant, metadata=b'{"n": 1}')
        writes.append(Write(change, claim, {change.insert[0].id: found}))
    for start in range(0, ROWS, 500):
        assert set(await world.store.apply(writes[start : start + 500])) == {Verdict.APPLIED}
    await world.fetch("analyze")
    return vectors


def nearest_by_numpy(vectors: list[Vector], of: Vector, k: int) -> list[str]:
    values = np.frombuffer(b"".join(vectors[::RARE_EVERY]), "<f4").reshape(-1, DIMENSIONS)
    wanted = np.frombuffer(of, "<f4")
    distances = np.linalg.norm(values - wanted, axis=1)
    return [f"{number * RARE_EVERY:05}" for number in np.argsort(distances)[:k]]


async def plan(
    options: DatabaseOptions, collection: Collection, tenant: str, *, exact: bool = False
) -> str:
    """Explain the query to a reader, who has a connection of his own."""
    query = nearest_query(collection, exact=exact).replace("$2", f"'{[0] * DIMENSIONS}'")
    settings = {"search_path": f"{options.schema}, public"}
    reader = await asyncpg.connect(options.url, server_settings=settings)
    try:
        rows = await reader.fetch(f"explain {query.replace('$3', '$2')}", tenant, 10)
    finally:
        await reader.close()
    return "\n".join(row[0] for row in rows)


@pytest.fixture
async def by_index(world: PostgresWorld):
    """A database on which nothing is sorted, so that the order comes from the index."""
    options = world.database.options
    url = f"{options.url}?enable_sort=off"
    database = await Database.open(replace(options, url=url))
    yield database
    await database.close()


async def test_a_tenant_with_few_of_the_rows_gets_all_its_results_by_the_index(
    world: PostgresWorld, by_index: Database
) -> None:
    settings = replace(
        ARTICLES,
        name="wiki",
        dimensions=DIMENSIONS,
        storage="vector",
        metric="l2",
        index=INDEXED,
    )
    collection = await world.catalog.create(settings)
    vectors = await fill(world, collection, await world.claim())
    assert "chunk_2_1_embedding" in await plan(by_index.options, collection, "rare")
    k = 10
    for wanted in random_vectors(5):
        expected = nearest_by_numpy(vectors, wanted, k)
        exact = await Search(world.database).nearest(collection, "rare", wanted, k, exact=True)
        assert [hit.document_id for hit in exact] == expected
        hits = await Search(by_index).nearest(collection, "rare", wanted, k)
        # The index is approximate in what it finds, not in how much.
        assert len({hit.document_id for hit in hits}) == k
        assert len({hit.document_id for hit in hits} & set(expected)) >= k - 2
        distances = [hit.distance for hit in hits]
        assert distances == sorted(distances)
    # What the setting is for: one scan of the index sees a few dozen rows, of all tenants.
    query, (wired,) = nearest_query(collection), wire(vectors[1:2], DIMENSIONS, "vector")
    async with by_index.connection() as connection:
        assert len(await connection.fetch(query, "rare", wired, k)) < k
    # By its own choice the server uses the index where a tenant has many rows.
    assert "chunk_2_1_embedding" in await plan(world.database.options, collection, "common")
    exactly = await plan(world.database.options, collection, "common", exact=True)
    assert "chunk_2_1_embedding" not in exactly


async def test_the_scan_goes_on_until_there_are_enough(world: PostgresWorld) -> None:
    async with world.database.transaction() as connection:
        await connection.execute("set local hnsw.iterative_scan = strict_order")
        # The setting is checked only where the library that owns it is loaded.
        await connection.fetchval("select '[1]'::vector <-> '[2]'::vector")
        assert await connection.fetchval("show hnsw.iterative_scan") == "strict_order"
    assert await world.fetchval("show hnsw.iterative_scan") == "off"


@pytest.mark.parametrize("storage", ["halfvec", "vector"])
@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
async def test_each_metric_finds_the_nearest_first(
    world: PostgresWorld, storage: str, metric: str
) -> None:
    named = replace(
        ARTICLES,
        name="wiki",
        dimensions=DIMENSIONS,
        storage=storage,
        metric=metric,
        index=INDEXED,
    )
    collection = await world.catalog.create(named)
    claim, wanted = await world.claim(), random_vectors(1)[0]
    opposite = Vector((-np.frombuffer(wanted, "<f4")).tobytes())
    for name, found in (("far", opposite), ("near", wanted)):
        change = document(collection, name, "tenant", metadata=b'{"a": [1]}')
        await world.store.apply([Write(change, claim, {change.insert[0].id: found})])
    for exact in (False, True):
        near, far = await Search(world.database).nearest(
            collection, "tenant", wanted, 5, exact=exact
        )
        assert (near.document_id, far.document_id) == ("near", "far")
        assert near.distance < far.distance
        assert near[1:4] == (0, "Title", "near")
        assert near[5:] == (1, {"a": [1]})


async def test_a_tenant_finds_nothing_of_another_one(world: PostgresWorld) -> None:
    claim = await world.claim()
    await world.put(claim, version=1, texts=["mine"])
    await world.put(claim, of=key(tenant="other"), version=1, texts=["theirs"])
    wanted = vector_of("theirs", world.articles.dimensions)
    for exact in (False, True):
        hits = await Search(world.database).nearest(
            world.articles, "tenant", wanted, 5, exact=exact
        )
        assert [hit.content for hit in hits] == ["mine"]


async def test_readers_see_no_deleted_document_and_nothing_a_scope_reaches(
    world: PostgresWorld,
) -> None:
    claim = await world.claim()
    for name, version in (("live", 11), ("deleted", 3), ("reached", 10), ("flagged", 12)):
        await world.put(claim, of=key(name), version=version, texts=[name])
    await world.drop(claim, of=key("deleted"), version=4, offset=1)
    # No write leaves chunks under a tombstone; the view does not rely on it.
    await world.fetch("update document set deleted = true where id = 'flagged'")
    # As a scope delete leaves it between its first step and its last.
    await world.fetch(
        "insert into scope_tombstone values ('tenant', 'articles', 10, 't', 0, 0, 0, 0)"
    )
    assert await world.base(key("reached")) != Base()
    seen = await world.fetch('select document_id, content from "articles_chunks"')
    assert [tuple(row) for row in seen] == [("live", "live")]


async def test_the_view_asks_for_the_rights_of_its_reader(world: PostgresWorld) -> None:
    options = await world.fetchval(
        "select reloptions from pg_class where oid = '\"articles_chunks\"'::regclass"
    )
    assert options == ["security_invoker=true"]


async def test_a_scope_delete_of_a_tenant_hides_its_documents_in_every_view(
    world: PostgresWorld,
) -> None:
    claim = await world.claim()
    await world.put(claim, version=1, texts=["gone"])
    await world.put(claim, of=key(tenant="other"), version=1, texts=["stays"])
    scope = ScopeDeleted(tenant="tenant", version=5)
    await world.store.delete_scope(claim, scope, Rank(5, at(9)))
    seen = await world.fetch('select content from "articles_chunks"')
    assert [row["content"] for row in seen] == ["stays"]
