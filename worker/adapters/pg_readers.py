"""
What readers get of a collection: whether the index serves them, and how much it finds.

Asks what a reader would ask, `pg_search.nearest_query`, with vectors that are stored, and as a
reader's connection would plan it: the pool's own connections are told not to scan tables.
Samples a few pages of the chunk table, so a large one costs no more than a small one. Reads
only.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any, NamedTuple

from msgspec import json

from worker.adapters.pg_client import Connection, Database
from worker.adapters.pg_documents import chunk_table, index_name
from worker.adapters.pg_search import nearest_query, scan_on
from worker.core.model import Collection

_AS_READERS_PLAN = """
set local enable_seqscan = on; set local enable_hashjoin = on; set local enable_mergejoin = on
"""
_PAGES = "select relpages from pg_class where oid = to_regclass($1)"
_SAMPLE = """
select tenant, id, seq, embedding from {table} tablesample system ({percent})
order by random() limit $1
"""
_TENANTS = """
select tenant, count(*) as rows from {table} tablesample system ({percent}) group by tenant
"""
_SAMPLED_PAGES = 2_000
"""Some 10,000 rows, of which the vectors are mostly elsewhere."""
_SAME = 1e-6
"""Distances are computed in another order by an index."""


class Recall(NamedTuple):
    """
    How many of the k nearest chunks readers are given, as a share, on average and at worst.

    `queries` is how many stored vectors it was measured with, `by_index` how many of these
    queries the index has served.
    """

    share: float
    worst: float
    k: int
    queries: int
    by_index: int


class Sample(NamedTuple):
    """A stored chunk, to be asked for."""

    tenant: str
    document_id: str
    seq: int
    vector: bytes


class Readers:
    """Asks as readers do."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def tenants(self, collection: Collection) -> list[tuple[str, float]]:
        """Return the tenants with their shares of the chunks, the largest first: a sample's."""
        table = chunk_table(collection.id, collection.generation)
        async with self._database.connection() as connection:
            percent = await _percent(connection, table)
            rows = await connection.fetch(_TENANTS.format(table=table, percent=percent))
        counts = Counter({row["tenant"]: row["rows"] for row in rows})
        return [(tenant, count / counts.total()) for tenant, count in counts.most_common()]

    async def is_served_by_index(self, collection: Collection, k: int = 10) -> bool | None:
        """Tell whether a query of the largest tenant uses the index; None: there is none."""
        tenants = await self.tenants(collection)
        if not tenants:
            return None
        async with self._as_reader(collection) as connection:
            samples = await _samples(connection, collection, 1)
            if not samples:
                return None
            (one,) = samples
            return await _is_by_index(connection, collection, (tenants[0][0], one.vector, k))

    async def recall(self, collection: Collection, queries: int, k: int) -> Recall | None:
        """Compare what readers are given with what is nearest; None: nothing is stored."""
        shares: list[float] = []
        by_index = 0
        async with self._as_reader(collection) as connection:
            for one in await _samples(connection, collection, queries):
                # One more, since the nearest one is the asked one itself.
                asked = (one.tenant, one.vector, k + 1)
                given = await connection.fetch(nearest_query(collection), *asked)
                nearest = await connection.fetch(nearest_query(collection, exact=True), *asked)
                by_index += await _is_by_index(connection, collection, asked)
                if (share := _share(one, given, nearest, k)) is not None:
                    shares.append(share)
        if not shares:
            return None
        return Recall(sum(shares) / len(shares), min(shares), k, len(shares), by_index)

    @asynccontextmanager
    async def _as_reader(self, collection: Collection) -> AsyncIterator[Connection]:
        async with self._database.transaction() as connection:
            await connection.execute(_AS_READERS_PLAN)
            await scan_on(connection, collection)
            yield connection


async def _percent(connection: Connection, table: str) -> float:
    # A table that was never analysed says -1, or 0, and is a small one.
    pages = await connection.fetchval(_PAGES, table)
    percent: float = min(100.0, 100 * _SAMPLED_PAGES / max(1, pages))
    return percent


async def _samples(connection: Connection, collection: Collection, count: int) -> list[Sample]:
    table = chunk_table(collection.id, collection.generation)
    percent = await _percent(connection, table)
    rows = await connection.fetch(_SAMPLE.format(table=table, percent=percent), count)
    return [Sample(*row) for row in rows]


async def _is_by_index(connection: Connection, collection: Collection, asked: Any) -> bool:
    explain = f"explain (format json) {nearest_query(collection)}"
    plan = json.decode(await connection.fetchval(explain, *asked))
    name = index_name(chunk_table(collection.id, collection.generation))
    return name in _indexes(plan[0]["Plan"])


def _indexes(node: dict[str, Any]) -> set[str]:
    """Return the names of the indexes in a plan."""
    below = (_indexes(child) for child in node.get("Plans", ()))
    return {node.get("Index Name", "")}.union(*below)


def _share(one: Sample, given: list[Any], nearest: list[Any], k: int) -> float | None:
    """Return how much of the nearest was given; equal distances are equally good."""
    wanted = _without(one, nearest, k)
    if not wanted:
        return None
    bound = wanted[-1] + _SAME * max(1.0, abs(wanted[-1]))
    found = sum(distance <= bound for distance in _without(one, given, k))
    return min(1.0, found / len(wanted))


def _without(one: Sample, rows: list[Any], k: int) -> list[float]:
    others = (
        row["distance"]
        for row in rows
        if (row["document_id"], row["seq"]) != (one.document_id, one.seq)
    )
    return list(islice(others, k))
