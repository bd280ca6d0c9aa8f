"""The contract of the port `Catalog`, on memory and on PostgreSQL."""

import asyncio
from dataclasses import replace

import pytest

from tests.support.store_changes import ARTICLES
from tests.support.store_worlds import MemoryWorld, PostgresWorld, World
from worker.core.model import ChunkingOptions
from worker.core.vector_index import VectorIndex
from worker.errors import ConfigError

WIKI = replace(
    ARTICLES,
    name="wiki",
    model="other-model",
    dimensions=3,
    storage="vector",
    metric="l2",
    chunking=ChunkingOptions("markdown", size=500, overlap=50),
    embedding_space="space",
)


class CatalogContract:
    """What the catalog promises; `articles` is there already."""

    async def test_there_is_no_collection_that_was_not_created(self, world: World) -> None:
        assert await world.catalog.collection("wiki") is None

    async def test_a_collection_is_read_back_as_it_was_created(self, world: World) -> None:
        created = await world.catalog.create(WIKI)
        assert created == replace(WIKI, id=created.id, generation=1)
        assert created.id != world.articles.id
        assert await world.catalog.collection("wiki") == created

    async def test_collections_are_listed_by_name(self, world: World) -> None:
        for name in ("b2", "b-1", "a_1"):
            await world.catalog.create(replace(ARTICLES, name=name))
        names = [found.name for found in await world.catalog.collections()]
        assert names == ["a_1", "articles", "b-1", "b2"]

    async def test_creating_it_again_changes_nothing(self, world: World) -> None:
        first = await world.catalog.create(WIKI)
        assert await world.catalog.create(WIKI) == first
        assert await world.catalog.create(first) == first

    async def test_creating_it_again_with_another_index_changes_nothing(
        self, world: World
    ) -> None:
        first = await world.catalog.create(replace(WIKI, index=VectorIndex(m=32)))
        assert await world.catalog.create(WIKI) == first
        assert (await world.catalog.collection("wiki")).index == VectorIndex(m=32)

    async def test_other_settings_under_the_same_name_are_refused(self, world: World) -> None:
        created = await world.catalog.create(WIKI)
        for setting in (
            {"model": "another"},
            {"dimensions": 4},
            {"storage": "halfvec"},
            {"metric": "cosine"},
            {"chunking": ChunkingOptions("markdown", size=501, overlap=50)},
            {"embedding_space": "another"},
        ):
            with pytest.raises(ConfigError, match="wiki"):
                await world.catalog.create(replace(WIKI, **setting))
            assert await world.catalog.collection("wiki") == created

    @pytest.mark.parametrize(
        ("storage", "kind", "limit"),
        [
            ("halfvec", "hnsw", 4_000),
            ("vector", "ivfflat", 2_000),
            ("halfvec", "none", 16_000),
            ("vector", "none", 16_000),
        ],
    )
    async def test_dimensions_that_do_not_fit_are_refused(
        self, world: World, storage: str, kind: str, limit: int
    ) -> None:
        fits = replace(WIKI, storage=storage, dimensions=limit, index=VectorIndex(kind))
        for dimensions in (limit + 1, 0):
            with pytest.raises(ConfigError, match=f"{dimensions} dimensions"):
                await world.catalog.create(replace(fits, dimensions=dimensions))
        assert (await world.catalog.create(fits)).dimensions == limit

    @pytest.mark.parametrize(
        "setting",
        [
            {"name": ""},
            {"name": "Wiki"},
            {"name": "1wiki"},
            {"name": 'wiki"; drop table document; --'},
            {"name": "w" * 49},
            {"name": "wiki\n"},
            {"storage": "sparsevec"},
            {"metric": "hamming"},
            {"index": VectorIndex("btree")},
            {"index": VectorIndex(m=1)},
            {"index": VectorIndex(m=101, ef_construction=202)},
            {"index": VectorIndex(m=16, ef_construction=31)},
            {"index": VectorIndex(ef_construction=1001)},
            {"index": VectorIndex(lists=0)},
            {"index": VectorIndex(lists=32_769)},
            {"index": VectorIndex(build_at_rows=-1)},
            {"index": VectorIndex("ivfflat", build_at_rows=999)},
            {"index": VectorIndex("ivfflat", lists=2000, build_at_rows=1999)},
        ],
        ids=repr,
    )
    async def test_what_pgvector_or_a_name_cannot_be_is_refused(
        self, world: World, setting: dict
    ) -> None:
        with pytest.raises(ConfigError):
            await world.catalog.create(replace(WIKI, **setting))
        assert [found.name for found in await world.catalog.collections()] == ["articles"]

    @pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
    @pytest.mark.parametrize("storage", ["halfvec", "vector"])
    async def test_every_metric_can_be_indexed(
        self, world: World, storage: str, metric: str
    ) -> None:
        wanted = replace(WIKI, name="w" * 48, storage=storage, metric=metric)
        wanted = replace(wanted, index=VectorIndex(build_at_rows=0))
        assert (await world.catalog.create(wanted)).metric == metric

    async def test_concurrent_creations_make_one_collection(self, world: World) -> None:
        async with asyncio.TaskGroup() as tasks:
            creating = [tasks.create_task(world.catalog.create(WIKI)) for _ in range(4)]
        assert len({task.result() for task in creating}) == 1
        assert len(await world.catalog.collections()) == 2


class TestCatalogInMemory(CatalogContract):
    @pytest.fixture
    def world(self, in_memory: MemoryWorld) -> World:
        return in_memory


@pytest.mark.real
class TestCatalogOnPostgres(CatalogContract):
    @pytest.fixture
    def world(self, on_postgres: PostgresWorld) -> World:
        return on_postgres
