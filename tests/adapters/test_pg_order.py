"""The order of records in SQL is the one of the core."""

from itertools import product

import pytest

from tests.support.store_worlds import PostgresWorld, postgres_world
from worker.adapters.pg_statements import NEWER, ORDER_TYPES, order_columns, order_values
from worker.core.changeset import newer
from worker.core.model import Order, Rank, StoredDocument

pytestmark = pytest.mark.real

VERSIONS = (None, 0, 1, 2**63 - 1)
ORDERS = (
    Order("a", 0, 5, 100),
    Order("a", 0, 6, 99),
    Order("a", 0, 4, 100, incarnation=1),
    Order("a", 1, 5, 100),
    Order("a", 1, 5, 101),
    # Between upper and lower case, and before both in most languages.
    Order("B", 0, 5, 100),
    Order("_", 0, 5, 100),
)
COLUMNS = (
    *(f"row_{column}" for column in ("version", *order_columns("order"))),
    *(f"row_{column}" for column in order_columns("barrier")),
    *("version", *order_columns("order")),
)
TYPES = ("bigint", *ORDER_TYPES, *ORDER_TYPES, "bigint", *ORDER_TYPES)


@pytest.fixture
async def world(database):
    async with postgres_world(database) as world:
        yield world


async def test_the_store_ranks_records_as_the_core_does(world: PostgresWorld) -> None:
    """Every row against every record: versions, partitions, topics, incarnations, barriers."""
    cases = [
        (StoredDocument(1, version, stored, barrier, version is None, None), Rank(*rank))
        for version, stored, barrier in product(VERSIONS, ORDERS, (None, *ORDERS))
        for rank in product(VERSIONS, ORDERS)
    ]
    arrays = [
        (
            document.version,
            *document.order,
            *order_values(document.barrier),
            rank.version,
            *rank.order,
        )
        for document, rank in cases
    ]
    parameters = ", ".join(f"${number}::{kind}[]" for number, kind in enumerate(TYPES, 1))
    row = ", ".join(f"q.row_{name} as {name}" for name in names_of_a_row())
    query = f"""
        select {NEWER} as newer
        from unnest({parameters}) with ordinality as q ({", ".join(COLUMNS)}, n)
        cross join lateral (select {row}) as d
        cross join lateral (select q.version, {", ".join(order_columns("q.order"))}) as c
        order by n
    """
    found = await world.fetch(query, *map(list, zip(*arrays, strict=True)))
    expected = [newer(rank, document) for document, rank in cases]
    assert [row["newer"] for row in found] == expected
    assert 0 < sum(expected) < len(expected)


def names_of_a_row() -> tuple[str, ...]:
    return ("version", *order_columns("order"), *order_columns("barrier"))
