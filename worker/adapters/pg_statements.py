"""
SQL that several adapters of PostgreSQL share: the fence, the order of records, the scopes.

Texts are constants, so that each connection prepares each statement once. The order of records
is `core.changeset.newer` said again in SQL: the store is a wall of its own, and
`tests/adapters/test_pg_order.py` holds the two together.
"""

from collections.abc import Collection as Several
from typing import Any

from worker.adapters.pg_client import Connection
from worker.core.model import Claim, Order

ORDER_COLUMNS = ("topic", "partition", "offset", "timestamp_ms", "incarnation")
ORDER_TYPES = ("text", "int", "bigint", "bigint", "int")

NOTHING = (None,) * len(ORDER_COLUMNS)

# FOR UPDATE waits for every open writer, who holds the row FOR SHARE (protocol, section 5).
LOCK_CLAIM = """
select from partition_claim where grp = $1 and topic = $2 and partition = $3 for update
"""


def order_columns(prefix: str) -> tuple[str, ...]:
    """Return the five columns of an order, as they are named in a table."""
    return tuple(f"{prefix}_{column}" for column in ORDER_COLUMNS)


def order_values(order: Order | None) -> tuple[Any, ...]:
    """Return the values for `order_columns`, all null for none."""
    return NOTHING if order is None else tuple(order)


def order_of(row: Any, prefix: str) -> Order | None:
    """Return the order that a row holds, None where it holds none."""
    topic, *rest = (row[column] for column in order_columns(prefix))
    return None if topic is None else Order(topic, *rest)


def _is_after(one: str, other: str) -> str:
    """Say `Order.is_after` for two prefixes such as `c.order`."""
    in_partition = f"({one}_incarnation, {one}_offset) > ({other}_incarnation, {other}_offset)"
    columns = ("timestamp_ms", "topic", "partition", "offset")
    mine = ", ".join(f"{one}_{column}" for column in columns)
    theirs = ", ".join(f"{other}_{column}" for column in columns)
    return (
        f"case when {one}_topic = {other}_topic and {one}_partition = {other}_partition"
        f" then {in_partition} else ({mine}) > ({theirs}) end"
    )


NEWER = f"""(
    (d.barrier_topic is null or {_is_after("c.order", "d.barrier")})
    and (c.version is null or d.version is null or c.version > d.version
         or (c.version = d.version and {_is_after("c.order", "d.order")}))
)"""
"""Tells whether a change `c` is newer than the document row `d`."""

REACHED_BY_SCOPE = """exists (
    select from scope_tombstone s
    where s.tenant = c.tenant and s.collection in ('', c.collection) and s.version >= c.version
)"""
"""Tells whether a scope delete reaches a change `c`; one without a version is never reached."""

# The rows are locked in one order by all writers, and stay locked to the end of the
# transaction: a claim waits for it. Behind an open claim this returns the row as that claim
# leaves it (EvalPlanQual), so a zombie sees the new epoch.
_FENCE = """
select c.grp, c.topic, c.partition, c.epoch, c.claim_id, {history} as history
from unnest($1::text[], $2::text[], $3::int[]) as w (grp, topic, partition)
join partition_claim c using (grp, topic, partition)
order by c.grp, c.topic, c.partition
for share of c
"""


async def live_claims(
    connection: Connection, claims: Several[Claim], history: str
) -> frozenset[Claim]:
    """
    Lock the claims' rows in share mode and return those that are still the newest.

    A missing row, another epoch or claim id, or another history of the server: not live.
    """
    places = sorted({(claim.group, *claim.partition) for claim in claims})
    if not places:
        return frozenset()
    columns = zip(*places, strict=True)
    rows = await connection.fetch(_FENCE.format(history=history), *map(list, columns))
    newest = {tuple(row)[:3]: tuple(row)[3:] for row in rows}
    return frozenset(
        claim
        for claim in claims
        if newest.get((claim.group, *claim.partition))
        == (claim.epoch, claim.claim_id, claim.history)
    )
