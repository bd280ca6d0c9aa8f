"""
Nearest chunks, as a reader would ask for them: from the view, of one tenant.

With an index, the scan goes on until enough rows pass the filter (`hnsw.iterative_scan`), so
that a small tenant still gets its k results; `exact` leaves the index aside. IVFFlat looks at
as many lists as pgvector's manual recommends. Reads only.
"""

from operator import itemgetter
from typing import Any, NamedTuple

from msgspec import json

from worker.adapters.pg_client import Connection, Database
from worker.adapters.pg_documents import chunk_table, index_name, view_name
from worker.adapters.pgvector_format import METRIC_OPERATORS, wire
from worker.core.model import Collection, Vector
from worker.core.vector_index import probes_for

_SCANS = {
    "hnsw": "set local hnsw.iterative_scan = strict_order",
    "ivfflat": "set local ivfflat.iterative_scan = relaxed_order",
}
_LISTS = """
select option_value::int from pg_class, pg_options_to_table(reloptions)
where oid = to_regclass($1) and option_name = 'lists'
"""
# The sum is what no index offers, so all rows of the tenant are compared.
_NEAREST = """
select document_id, seq, heading, content, version, metadata,
       embedding {operator} $2::{storage} as distance
from "{view}"
where tenant = $1
order by (embedding {operator} $2::{storage}){exact}
limit $3
"""


class Hit(NamedTuple):
    """A chunk that is near; the smaller `distance`, the nearer."""

    document_id: str
    seq: int
    heading: str | None
    content: str
    distance: float
    version: int
    metadata: dict[str, Any] | None


class Search:
    """Nearest-neighbour queries on the readers' views."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def nearest(
        self,
        collection: Collection,
        tenant: str,
        vector: Vector,
        k: int,
        *,
        exact: bool = False,
    ) -> list[Hit]:
        """Return a tenant's k chunks that are nearest to a vector, the nearest first."""
        (wired,) = wire([vector], collection.dimensions, collection.storage)
        async with self._database.transaction() as connection:
            await scan_on(connection, collection)
            query = nearest_query(collection, exact=exact)
            rows = await connection.fetch(query, tenant, wired, k)
        # A relaxed order is not quite one.
        return [_hit(row) for row in sorted(rows, key=itemgetter("distance"))]


async def scan_on(connection: Connection, collection: Collection) -> None:
    """Let scans of the index go on, in this transaction, until there is enough."""
    kind = collection.index.kind
    if kind in _SCANS:
        await connection.execute(_SCANS[kind])
    if kind == "ivfflat":
        table = chunk_table(collection.id, collection.generation)
        lists = await connection.fetchval(_LISTS, index_name(table))
        await connection.execute(f"set local ivfflat.probes = {probes_for(lists or 1)}")


def nearest_query(collection: Collection, *, exact: bool = False) -> str:
    """Return the query, with the tenant, the vector and k as its parameters."""
    return _NEAREST.format(
        view=view_name(collection.name),
        operator=METRIC_OPERATORS[collection.metric],
        storage=collection.storage,
        exact=" + 0" if exact else "",
    )


def _hit(row: Any) -> Hit:
    fields = dict(row)
    metadata = fields.pop("metadata")
    return Hit(**fields, metadata=None if metadata is None else json.decode(metadata))
