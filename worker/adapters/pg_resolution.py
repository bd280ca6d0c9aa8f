"""
Dead letters that a later success of their document makes pointless.

Works inside the transaction that writes document rows: a letter whose rank is not newer than
its document's row any more could change nothing by a replay, so it is `resolved`. One
statement for all documents of the transaction, on a partial index that holds only letters
which can be resolved. A letter that names no document, because nobody could read it, stays.
"""

from collections.abc import Iterable

from worker.adapters.pg_client import Connection
from worker.adapters.pg_statements import NEWER, ORDER_COLUMNS
from worker.core.model import DocumentKey

_PLACE = ("grp", "topic", "partition", "incarnation", '"offset"')
_ORDER = ", ".join(
    f'coalesce(l.origin_{column}, l."{column}") as order_{column}' for column in ORDER_COLUMNS
)
# Locked in the order in which the ledger writes its rows, or the two could deadlock.
_RESOLVE = f"""
with c as materialized (
    select {", ".join(f"l.{column}" for column in _PLACE)},
           l.tenant, l.collection, l.document_id, l.version, {_ORDER}
    from unnest($1::text[], $2::text[], $3::text[]) as k (tenant, collection, id)
    join dead_letter l on l.tenant = k.tenant and l.collection = k.collection
     and l.document_id = k.id and l.state in ('published', 'parked', 'replayed')
    order by {", ".join(f"l.{column}" for column in _PLACE)}
    for no key update of l
)
update dead_letter l set state = 'resolved', state_changed_at = now()
from c join document d
  on d.tenant = c.tenant and d.collection = c.collection and d.id = c.document_id
where {" and ".join(f"l.{column} = c.{column}" for column in _PLACE)} and not {NEWER}
"""  # noqa: S608 - built of constants of this module


async def resolve_letters(connection: Connection, keys: Iterable[DocumentKey]) -> None:
    """Resolve the letters of documents whose rows this transaction has written."""
    columns = zip(*keys, strict=True)
    await connection.execute(_RESOLVE, *map(list, columns))
