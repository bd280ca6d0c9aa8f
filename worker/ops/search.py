"""
One-shot job: which chunks of a collection are nearest to some words.

Embeds the words with the collection's own model and asks the readers' view. Reads only.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from worker.core.model import Collection, Vector
from worker.errors import ConfigError
from worker.ports import Catalog, Embedder, EmbeddingRequest


class Query(NamedTuple):
    """What is searched, and where."""

    words: str
    collection: str
    tenant: str
    k: int


class Found(NamedTuple):
    """One chunk; `score` is higher where it is nearer."""

    rank: int
    score: float
    distance: float
    document: str
    version: int
    heading: str | None
    content: str
    metadata: dict[str, Any] | None


class Nearest(Protocol):
    """Nearest-neighbour queries, as `worker.adapters.pg_search.Search` answers them."""

    async def nearest(
        self, collection: Collection, tenant: str, vector: Vector, k: int
    ) -> Sequence[Any]:
        """Return a tenant's k nearest chunks, the nearest first."""


async def search(
    catalog: Catalog, embedder: Embedder, nearest: Nearest, query: Query
) -> list[Found]:
    """
    Return the chunks nearest to the words of a query.

    Raises:
        ConfigError: there is no such collection.
        ProviderUnavailable: the words could not be embedded.
    """
    collection = await named(catalog, query.collection)
    request = EmbeddingRequest(
        collection.model, collection.dimensions, [query.words], input_type="query"
    )
    (vector,) = await embedder.embed(request)
    hits = await nearest.nearest(collection, query.tenant, vector, query.k)
    return [_found(rank, hit, collection.metric) for rank, hit in enumerate(hits, start=1)]


async def named(catalog: Catalog, name: str) -> Collection:
    """
    Return a collection by its name.

    Raises:
        ConfigError: there is none; says which there are.
    """
    collection = await catalog.collection(name)
    if collection is None:
        known = ", ".join(one.name for one in await catalog.collections())
        raise ConfigError(
            f"there is no collection {name!r}; "
            + (f"there are: {known}" if known else "create it: `embedfleet collections create`")
        )
    return collection


def _found(rank: int, hit: Any, metric: str) -> Found:
    return Found(
        rank,
        score(hit.distance, metric),
        hit.distance,
        hit.document_id,
        hit.version,
        hit.heading,
        hit.content,
        hit.metadata,
    )


def score(distance: float, metric: str) -> float:
    """Return a number that is higher where a chunk is nearer, as each metric is used to."""
    match metric:
        case "cosine":
            return 1 - distance
        case "inner_product":
            return -distance  # pgvector negates it, so that an index can sort by it
        case _:
            return 1 / (1 + distance)
